package torture

import (
	"bufio"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const moment = 100 * time.Millisecond

// echo is a server that says what it is told.
func echo(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	return listener.Addr().String()
}

func newTestProxy(t *testing.T) *proxy {
	t.Helper()
	p, err := newProxy(t.Context(), echo(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	return p
}

// say sends a line over a connection and waits for its echo.
func say(conn net.Conn, patience time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err := bufio.NewReader(conn).ReadString('\n')
	return err
}

func through(t *testing.T, p *proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.address())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestProxyCutsAndRefuses(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t)
	conn := through(t, p)
	require.NoError(t, say(conn, time.Minute))
	p.cut()
	require.Error(t, say(conn, time.Minute))

	p.refuse(true)
	require.Error(t, say(through(t, p), time.Minute))
	p.refuse(false)
	require.NoError(t, say(through(t, p), time.Minute))
}

func TestProxyResetsInAMessage(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t)
	conn := through(t, p)
	require.NoError(t, say(conn, time.Minute))
	p.tear()
	require.ErrorIs(t, say(conn, time.Minute), syscall.ECONNRESET)
	require.NoError(t, say(through(t, p), time.Minute), "a new connection works")
}

func TestProxyLeadsToAServerThatListens(t *testing.T) {
	t.Parallel()
	const gone = "127.0.0.1:1" // a free port could be another test's soon
	p, err := newProxy(t.Context(), gone, echo(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	conn := through(t, p)
	for range 3 {
		require.NoError(t, say(through(t, p), time.Minute))
	}

	p.lead(gone)
	require.Error(t, say(conn, time.Minute), "it is cut")
	require.Error(t, say(through(t, p), time.Minute))
}

func TestProxyIsSlow(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t)
	p.slowDown(true)
	conn := through(t, p)
	for range 2 {
		began := time.Now()
		require.NoError(t, say(conn, time.Minute))
		require.GreaterOrEqual(t, time.Since(began), 2*latency)
	}
}

func TestProxyIsHalfOpen(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t)
	before := through(t, p)
	require.NoError(t, say(before, time.Minute))
	p.silence(true)
	during := through(t, p)
	for _, conn := range []net.Conn{before, during} {
		require.ErrorIs(t, say(conn, moment), os.ErrDeadlineExceeded, "the connection stands, and nothing comes")
	}
	p.silence(false)
	require.NoError(t, say(through(t, p), time.Minute))
	for _, conn := range []net.Conn{before, during} {
		require.ErrorIs(t, say(conn, moment), os.ErrDeadlineExceeded, "it stays as it is")
	}
	p.cut()
	require.ErrorIs(t, say(before, time.Minute), io.EOF)
}
