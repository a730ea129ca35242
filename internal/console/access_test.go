package console

import (
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

func TestSessionsExpire(t *testing.T) {
	t.Parallel()
	var l sessions
	now := time.Now()
	_, ok := l.get("", now)
	require.False(t, ok, "there is none yet")
	one, other := l.begin(reader, "Kim", now), l.begin(writer, "Ana", now.Add(time.Hour))
	s, ok := l.get(one, now)
	require.True(t, ok)
	require.Equal(t, "Kim", s.Who)
	require.Equal(t, reader, s.Role)
	theirs, ok := l.get(other, now)
	require.True(t, ok)
	require.NotEqual(t, s.FormToken, theirs.FormToken)
	_, ok = l.get(one, now.Add(sessionAge))
	require.False(t, ok)
	l.begin(reader, "Ben", now.Add(sessionAge+time.Minute))
	require.Len(t, l.bySecret, 2, "what has expired is not kept")
	l.end(other)
	_, ok = l.get(other, now)
	require.False(t, ok)
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
