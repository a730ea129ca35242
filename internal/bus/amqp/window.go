package amqp

import (
	"net"
	"sync"
	"time"
)

const (
	// maxHeldBytes bounds the bodies that a Connection holds: when they are more, no more is read, but for the trickle.
	maxHeldBytes = 64 << 20
	// largeBody is what takes its time to be read as JSON.
	largeBody = 1 << 20
	// trickle is how long a read waits at the most, so that the broker does not take the worker for dead.
	trickle = 250 * time.Millisecond
)

// window bounds by bytes what the broker sends ahead, for which AMQP has only a number of messages: the library keeps in
// memory whatever it reads. It is safe for concurrent use.
type window struct {
	mu     sync.Mutex
	held   int
	lifted int
	opened chan struct{} // closed when it is no longer full
}

func newWindow() *window { return &window{opened: make(chan struct{})} }

// hold counts bytes that are held, and with less than 0 such as no longer are.
func (w *window) hold(bytes int) { w.change(bytes, 0) }

// lift lets everything in until release is called: an answer of the broker may stand behind what does not fit.
func (w *window) lift() (release func()) {
	w.change(0, 1)
	return func() { w.change(0, -1) }
}

func (w *window) change(held, lifted int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wasFull := w.isFull()
	w.held += held
	w.lifted += lifted
	if wasFull && !w.isFull() {
		close(w.opened)
		w.opened = make(chan struct{})
	}
}

func (w *window) isFull() bool { return w.held > maxHeldBytes && w.lifted == 0 }

// full tells whether nothing more fits.
func (w *window) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isFull()
}

// wait returns when something fits again, or the trickle is due.
func (w *window) wait() {
	w.mu.Lock()
	full, opened := w.isFull(), w.opened
	w.mu.Unlock()
	if !full {
		return
	}
	timer := time.NewTimer(trickle)
	defer timer.Stop()
	select {
	case <-opened:
	case <-timer.C:
	}
}

// windowedConn is a connection that is read while its window is open.
type windowedConn struct {
	net.Conn

	window *window
}

func (c windowedConn) Read(p []byte) (int, error) {
	c.window.wait()
	return c.Conn.Read(p)
}
