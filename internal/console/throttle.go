package console

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of failed logins.
const (
	freeFailures    = 5
	throttlePause   = time.Minute
	throttleClients = 4096
)

// throttle limits the login attempts per client. The zero value is ready; it is safe for concurrent use.
type throttle struct {
	mu      sync.Mutex
	clients map[netip.Prefix]failures
}

type failures struct {
	count int
	last  time.Time
}

// try returns 0 if a client may try to log in now, else the time it has to wait. An attempt counts as failed until passed is
// called, so that parallel attempts are limited, too. Failures expire if there is no other during throttlePause.
func (t *throttle) try(client netip.Addr, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.clients[network(client)]
	if now.Sub(f.last) >= throttlePause {
		f.count = 0
	}
	if f.count >= freeFailures {
		return f.last.Add(throttlePause).Sub(now)
	}
	if len(t.clients) >= throttleClients {
		t.evict(now)
	}
	if t.clients == nil {
		t.clients = map[netip.Prefix]failures{}
	}
	t.clients[network(client)] = failures{count: f.count + 1, last: now}
	return 0
}

func (t *throttle) passed(client netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, known := t.clients[network(client)]; known {
		t.clients[network(client)] = failures{count: max(0, f.count-1), last: f.last}
	}
}

// evict removes expired clients or, if there are none, all clients.
func (t *throttle) evict(now time.Time) {
	for client, f := range t.clients {
		if now.Sub(f.last) >= throttlePause {
			delete(t.clients, client)
		}
	}
	if len(t.clients) >= throttleClients {
		clear(t.clients)
	}
}

// network returns the addresses that count as one client: a client may use all addresses of an IPv6 /64 network.
func network(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	p, _ := client.Prefix(bits)
	return p
}
