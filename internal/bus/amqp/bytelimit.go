package amqp

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxReceivedBytes bounds the bodies in memory: above it, nothing more is read, but for one read each maxReadWait.
	maxReceivedBytes = 64 << 20
	// largeBody is what takes long to parse.
	largeBody = 1 << 20
	// maxReadWait bounds the wait before a read, so that the broker does not consider the worker dead.
	maxReadWait = 250 * time.Millisecond
	// minReadDeadline is after how much silence a connection is given up at the earliest, however short its heartbeat is:
	// until then a subscription only hands nothing over.
	minReadDeadline = 3 * time.Second
)

// byteLimit bounds by bytes what the broker sends ahead. AMQP has only a number of messages for that, and the library
// keeps in memory whatever it reads. It is safe for concurrent use.
type byteLimit struct {
	mu        sync.Mutex
	bytes     int
	suspended int
	notFull   chan struct{} // closed, and replaced, when it is no longer full
}

func newByteLimit() *byteLimit { return &byteLimit{notFull: make(chan struct{})} }

// add counts bytes that are in memory, or with less than 0 no longer are.
func (l *byteLimit) add(bytes int) { l.change(bytes, 0) }

// suspend lifts the limit until resume is called: an answer of the broker may follow what exceeds it.
func (l *byteLimit) suspend() (resume func()) {
	l.change(0, 1)
	return func() { l.change(0, -1) }
}

func (l *byteLimit) change(bytes, suspended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wasFull := l.isFull()
	l.bytes += bytes
	l.suspended += suspended
	if wasFull && !l.isFull() {
		close(l.notFull)
		l.notFull = make(chan struct{})
	}
}

func (l *byteLimit) isFull() bool { return l.bytes > maxReceivedBytes && l.suspended == 0 }

func (l *byteLimit) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isFull()
}

// limitedConn is a connection that is read while its limit is not exceeded.
type limitedConn struct {
	net.Conn

	limit *byteLimit
	last  *atomic.Pointer[time.Time]
}

// SetReadDeadline is called by the library, for one and a half heartbeats.
func (c limitedConn) SetReadDeadline(t time.Time) error {
	if least := time.Now().Add(minReadDeadline); !t.IsZero() && t.Before(least) {
		t = least
	}
	return c.Conn.SetReadDeadline(t)
}

func (c limitedConn) Read(p []byte) (int, error) {
	c.limit.mu.Lock()
	full, notFull := c.limit.isFull(), c.limit.notFull
	c.limit.mu.Unlock()
	if full {
		timer := time.NewTimer(maxReadWait)
		defer timer.Stop()
		select {
		case <-notFull:
		case <-timer.C:
		}
	}
	n, err := c.Conn.Read(p)
	if err == nil {
		now := time.Now()
		c.last.Store(&now)
	}
	return n, err
}
