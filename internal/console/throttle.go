package console

import (
	"net/netip"
	"sync"
	"time"
)

// Bounds of failed logins.
const (
	freeFailures    = 5
	throttlePause   = time.Minute
	throttleClients = 4096
)

// throttle makes those wait who fail to log in. The zero value is ready; it is safe for concurrent use.
type throttle struct {
	mu      sync.Mutex
	clients map[netip.Prefix]failures
}

type failures struct {
	count int
	last  time.Time
}

// try lets a client try, or says how long it has to wait first. A try counts as failed, so that of many at once no more
// are let through, until it has passed; it is forgotten when there was no other for the pause.
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
		t.forget(now)
	}
	if t.clients == nil {
		t.clients = map[netip.Prefix]failures{}
	}
	t.clients[network(client)] = failures{count: f.count + 1, last: now}
	return 0
}

// passed says that a try did not fail.
func (t *throttle) passed(client netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, known := t.clients[network(client)]; known {
		t.clients[network(client)] = failures{count: max(0, f.count-1), last: f.last}
	}
}

// forget makes room: of those who are quiet, or else of all.
func (t *throttle) forget(now time.Time) {
	for client, f := range t.clients {
		if now.Sub(f.last) >= throttlePause {
			delete(t.clients, client)
		}
	}
	if len(t.clients) >= throttleClients {
		clear(t.clients)
	}
}

// network is what counts as one client: a customer of a provider has all addresses of an IPv6 network of 64 bits.
func network(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	p, _ := client.Prefix(bits)
	return p
}
