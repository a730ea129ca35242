package console

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestConsoleIsForLoopbackUnlessItHasAToken(t *testing.T) {
	t.Parallel()
	token := strings.Repeat("t", MinTokenLength)
	for address, loopback := range map[string]bool{
		"127.0.0.1:8080": true, "127.1.2.3:1": true, "[::1]:8080": true, "[::ffff:127.0.0.1]:1": true,
		"0.0.0.0:8080": false, "[::]:8080": false, "10.0.0.7:8080": false, "[fe80::1]:8080": false,
	} {
		listening, err := net.ResolveTCPAddr("tcp", address)
		require.NoError(t, err)
		for _, open := range []Access{{}, {Write: true}} {
			if err := open.CheckAddress(listening); loopback {
				require.NoError(t, err, address)
			} else {
				require.ErrorIs(t, err, ErrNotServed, address)
			}
		}
		require.NoError(t, Access{Token: token}.CheckAddress(listening))
		require.NoError(t, Access{WriteToken: token}.CheckAddress(listening))
	}
}

func TestAccessCheck(t *testing.T) {
	t.Parallel()
	token, short := strings.Repeat("t", MinTokenLength), strings.Repeat("s", MinTokenLength-1)
	require.NoError(t, Access{}.Check())
	require.NoError(t, Access{Token: token, WriteToken: token + "2"}.Check())
	for _, wrong := range []Access{{Token: short}, {WriteToken: short}, {Token: token, WriteToken: short}, {Token: token, WriteToken: token}} {
		err := wrong.Check()
		require.Error(t, err)
		require.NotContains(t, err.Error(), short)
		require.NotContains(t, err.Error(), token)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	require.Equal(t, reader, Access{}.anonymous())
	require.Equal(t, writer, Access{Write: true}.anonymous())
	require.Equal(t, nobody, Access{Token: "r"}.anonymous())
	require.Equal(t, nobody, Access{WriteToken: "w", Write: true}.anonymous())
	both := Access{Token: "r", WriteToken: "w"}
	for given, want := range map[string]role{"r": reader, "w": writer, "": nobody, "x": nobody, "rw": nobody} {
		require.Equal(t, want, both.roleOf(given), given)
	}
	require.Equal(t, writer, Access{Token: "r", Write: true}.roleOf("r"))
	require.Equal(t, nobody, Access{WriteToken: "w"}.roleOf(""))
}

func TestSessions(t *testing.T) {
	t.Parallel()
	access := Access{Token: "a-token-of-16-characters", WriteToken: "another-of-16-characters"}
	open := func(a Access) *sessions {
		l, err := newSessions(a)
		require.NoError(t, err)
		return l
	}
	l, restarted := open(access), open(access)
	now := time.Now()
	begin := func(of role, who string, at time.Time) string {
		cookie, err := l.begin(of, who, at)
		require.NoError(t, err)
		return cookie
	}
	one, other := begin(reader, "Kim, \"the\" other.", now), begin(writer, "Ana", now.Add(time.Hour))
	for name, of := range map[string]*sessions{"here": l, "after a restart, or at another worker": restarted} {
		s, ok := of.get(one, now)
		require.True(t, ok, name)
		require.Equal(t, "Kim, \"the\" other.", s.Who)
		require.Equal(t, reader, s.Role)
		theirs, ok := of.get(other, now)
		require.True(t, ok)
		require.NotEqual(t, of.formToken(s), of.formToken(theirs))
		require.Equal(t, l.formToken(s), of.formToken(s))
		_, ok = of.get(one, now.Add(sessionAge))
		require.False(t, ok)
	}
	for _, changed := range []Access{
		{Token: access.Token},
		{Token: access.WriteToken, WriteToken: access.Token},
		{Token: access.Token, WriteToken: access.WriteToken, Write: true},
		{},
	} {
		_, ok := open(changed).get(one, now)
		require.False(t, ok, "other settings")
	}
	text, code, _ := strings.Cut(one, ".")
	content, err := base64.RawURLEncoding.DecodeString(text)
	require.NoError(t, err)
	raised := base64.RawURLEncoding.EncodeToString(bytes.Replace(content, []byte("reader"), []byte("writer"), 1))
	s, _ := l.get(one, now)
	for _, forged := range []string{"", ".", text, text + ".", raised + "." + code, other[:len(other)-4] + "AAAA", text + "." + l.formToken(s)} {
		_, ok := l.get(forged, now)
		require.False(t, ok, forged)
	}
	l.end(other, now)
	_, ok := l.get(other, now)
	require.False(t, ok)
	_, ok = l.get(one, now)
	require.True(t, ok)
	l.end("forged", now)
	l.end(one, now)
	require.Len(t, l.ended, 2)
	l.end(begin(reader, "Ben", now.Add(2*sessionAge)), now.Add(2*sessionAge))
	require.Len(t, l.ended, 1, "what has expired is not kept")
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	var s streams
	for i := range maxLive {
		require.True(t, s.open(fmt.Sprint(i/maxLiveOfOne)))
	}
	require.False(t, s.open("another"))
	s.close("0")
	require.False(t, s.open("1"), "it has as many as one may have")
	require.True(t, s.open("another"))
	s.close("another")
	require.NotContains(t, s.by, "another")
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	var th throttle
	now := time.Now()
	one, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("192.0.2.1")
	for range 2 * freeFailures {
		require.Zero(t, th.try(other, now))
		th.passed(other)
	}
	for range freeFailures {
		require.Zero(t, th.try(one, now))
	}
	require.Equal(t, throttlePause, th.try(one, now))
	require.Equal(t, throttlePause, th.try(neighbour, now), "one network counts as one client")
	require.Zero(t, th.try(other, now))
	require.Zero(t, th.try(one, now.Add(throttlePause)))
	require.Zero(t, th.try(one, now.Add(throttlePause)), "what is long ago is forgotten")

	for i := range throttleClients + 10 {
		th.try(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	require.LessOrEqual(t, len(th.clients), throttleClients)
}
