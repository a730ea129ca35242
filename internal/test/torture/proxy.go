package torture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// latency is what a slow network adds to each direction.
	latency = 200 * time.Millisecond
	// abandonedFor is how long a server keeps a connection whose client is gone without a word: what its kernel's
	// keepalive takes, with the settings of the worker's, to find out.
	abandonedFor = 12 * time.Second
	// linkBuffer is how many reads may be under way in one direction.
	linkBuffer = 256
)

// errTorn ends a connection that is to be reset.
var errTorn = errors.New("reset")

// proxy stands between clients and a server, and can fail as a network does.
type proxy struct {
	listener net.Listener
	tasks    sync.WaitGroup
	life     context.Context // ends with close
	end      context.CancelFunc

	mu      sync.Mutex
	servers []string
	links   map[*link]struct{}
	cuts    int // how often those that stood were cut
	slow    bool
	silent  bool
	refuses bool
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn
	delay          time.Duration
	torn           atomic.Bool   // ends within the next message
	silent         chan struct{} // closed when nothing comes through any more
	hush           func()
}

// newProxy returns a proxy to the servers at some addresses: a connection is to the next one of them that accepts it, as
// with a load balancer that only sees whether a port is open.
func newProxy(ctx context.Context, servers ...string) (*proxy, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for a proxy: %w", err)
	}
	p := &proxy{servers: servers, listener: listener, links: map[*link]struct{}{}}
	p.life, p.end = context.WithCancel(context.WithoutCancel(ctx))
	p.tasks.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// close ends the proxy and all connections through it.
func (p *proxy) close() error {
	err := p.listener.Close()
	p.end()
	p.cut()
	p.tasks.Wait()
	return err
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.tasks.Go(func() { p.serve(client) })
	}
}

// serve carries one connection until both of its ends are closed.
func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	l := &link{client: client, silent: make(chan struct{})}
	l.hush = sync.OnceFunc(func() { close(l.silent) })
	p.mu.Lock()
	refuses, servers, cuts := p.refuses, p.servers, p.cuts
	p.servers = slices.Concat(servers[1:], servers[:1])
	if p.slow {
		l.delay = latency
	}
	p.mu.Unlock()
	if refuses {
		return
	}
	var server net.Conn
	for _, address := range servers {
		if server, _ = (&net.Dialer{Timeout: time.Second}).DialContext(p.life, "tcp", address); server != nil {
			break
		}
	}
	if server == nil {
		return
	}
	defer server.Close()
	l.server = server

	p.mu.Lock()
	p.links[l] = struct{}{}
	cut := p.cuts != cuts // while it was being made
	if p.silent {
		l.hush()
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	if cut {
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { p.carry(l, server, client) })
	ways.Go(func() { p.carry(l, client, server) })
	ways.Wait()
}

// lead ends the connections that stand, and leads new ones to another server.
func (p *proxy) lead(server string) {
	p.mu.Lock()
	p.servers = []string{server}
	p.mu.Unlock()
	p.cut()
}

// piece is what one read gave, and when it arrives.
type piece struct {
	data []byte
	at   time.Time
}

// carry copies one direction until it ends, and then ends the other. On a silent link neither end learns of the other's.
func (p *proxy) carry(l *link, to, from net.Conn) {
	under := make(chan piece, linkBuffer)
	var delivery sync.WaitGroup
	delivery.Go(func() {
		for d := range under {
			time.Sleep(time.Until(d.at)) //nolint:forbidigo // a network's delay, bounded by latency
			if _, err := to.Write(d.data); err != nil {
				_ = from.Close()
			}
		}
	})
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		if l.torn.Load() && err == nil {
			n, err = n/2, errTorn
		}
		if n > 0 && !l.isSilent() {
			under <- piece{buffer[:n], time.Now().Add(l.delay)}
		}
		if err != nil {
			break
		}
	}
	close(under)
	delivery.Wait()
	if l.torn.Load() {
		for _, end := range []net.Conn{l.client, l.server} {
			_ = end.(*net.TCPConn).SetLinger(0) // a reset
			_ = end.Close()
		}
		return
	}
	if l.isSilent() {
		if from == l.server {
			return // the client finds out by itself
		}
		select {
		case <-time.After(abandonedFor):
		case <-p.life.Done():
		}
	}
	_ = to.Close()
}

func (l *link) isSilent() bool {
	select {
	case <-l.silent:
		return true
	default:
		return false
	}
}

// cut ends the connections that stand.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	for l := range p.links {
		_, _ = l.client.Close(), l.server.Close()
	}
}

// tear resets the connections that stand, in the middle of the next message over each.
func (p *proxy) tear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.torn.Store(true)
	}
}

// refuse makes new connections fail, or work again.
func (p *proxy) refuse(refuses bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = refuses
}

// slowDown delays what goes through connections made from now on, or no longer does.
func (p *proxy) slowDown(slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = slow
}

// silence makes the connections that stand, and those made until it is lifted, half-open: both ends believe in them, and
// nothing comes through. Those stay so when it is lifted.
func (p *proxy) silence(silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = silent
	if silent {
		for l := range p.links {
			l.hush()
		}
	}
}
