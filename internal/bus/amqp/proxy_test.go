package amqp_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// proxy stands between the worker and the broker, and can fail as a network does.
type proxy struct {
	server   string
	listener net.Listener
	tasks    sync.WaitGroup

	mu      sync.Mutex
	refuses bool
	sockets map[net.Conn]struct{}
	clients []net.Conn
	rate    atomic.Int64  // bytes per second to the broker; 0: no limit
	frozen  chan struct{} // closed while traffic of the connections that stand is swallowed
}

// listen returns a listener on a free port, closed when the test ends.
func listen(tb testing.TB) net.Listener {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = listener.Close() }) // the test may have closed it
	return listener
}

// newProxy returns a proxy to the broker, and the URL by which it is reached.
func newProxy(t *testing.T, amqpURL string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(amqpURL)
	require.NoError(t, err)
	listener := listen(t)
	p := &proxy{server: u.Host, listener: listener, sockets: map[net.Conn]struct{}{}, frozen: make(chan struct{})}
	p.tasks.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close() // accept ends
		p.cut()
		p.tasks.Wait()
	})
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		p.mu.Lock()
		if err != nil || p.refuses {
			_ = client.Close()
			if err == nil {
				_ = server.Close()
			}
			p.mu.Unlock()
			continue
		}
		p.sockets[client], p.sockets[server] = struct{}{}, struct{}{}
		p.clients = append(p.clients, client)
		frozen := p.frozen
		p.mu.Unlock()
		p.tasks.Go(func() { pump(client, server, frozen, new(atomic.Int64)) })
		p.tasks.Go(func() { pump(server, client, frozen, &p.rate) })
	}
}

// pump copies until either side ends, at no more than a rate; once frozen it reads on and delivers nothing.
func pump(to, from net.Conn, frozen <-chan struct{}, rate *atomic.Int64) {
	defer func() { _ = to.Close() }()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-frozen:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
		if rate := rate.Load(); rate > 0 {
			<-time.After(time.Second * time.Duration(n) / time.Duration(rate))
		}
	}
}

// freeze makes the connections that stand half-open: both ends believe in them, and nothing comes through.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.frozen)
	p.frozen = make(chan struct{})
}

// cut ends the connections that stand.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for socket := range p.sockets {
		_ = socket.Close()
	}
	clear(p.sockets)
}

// refuse makes every new connection fail, or work again.
func (p *proxy) refuse(refuses bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = refuses
}

// inject sends the clients of all connections a method of class and number, with a short string, as if it came from the
// broker. Nothing else may be under way.
func (p *proxy) inject(class, method byte, arguments string) {
	frame := []byte{1, 0, 0, 0, 0, 0, byte(4 + len(arguments)), 0, class, 0, method}
	frame = append(append(frame, arguments...), 0xCE)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, client := range p.clients {
		_, _ = client.Write(frame) // some may be gone
	}
}

// newLateDeliveries returns the URL of a proxy to the broker that delays each delivery: it arrives right before the answer
// to the second passive declaration after it, as a large one does behind a broker and a network that are busy.
func newLateDeliveries(t *testing.T, amqpURL string) string {
	t.Helper()
	const deliver, declared = 60<<16 | 60, 50<<16 | 11
	u, err := url.Parse(amqpURL)
	require.NoError(t, err)
	listener, server := listen(t), u.Host
	pass := func(client io.Writer, frames io.Reader) error {
		var held []byte // the frames of the delivery
		polls := 0
		for {
			frame := make([]byte, 7) // type, channel, size
			if _, err := io.ReadFull(frames, frame); err != nil {
				return err
			}
			frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame[3:])+1)...)
			if _, err := io.ReadFull(frames, frame[7:]); err != nil {
				return err
			}
			method := uint32(0)
			if frame[0] == 1 {
				method = binary.BigEndian.Uint32(frame[7:])
			}
			if method == deliver || frame[0] == 2 || frame[0] == 3 {
				held, polls = append(held, frame...), 0
				continue
			}
			if method == declared && held != nil {
				if polls++; polls == 2 {
					frame, held = append(held, frame...), nil
				}
			}
			if _, err := client.Write(frame); err != nil {
				return err
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			broker, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(broker, client) // until either side ends
				_ = broker.Close()
			}()
			go func() {
				_ = pass(client, broker)
				_ = client.Close()
			}()
		}
	}()
	u.Host = listener.Addr().String()
	return u.String()
}
