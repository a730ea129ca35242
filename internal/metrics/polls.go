package metrics

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/store"
)

const (
	// pollInterval is how often servers are polled.
	pollInterval = 5 * time.Second
	// pollTimeout bounds a poll.
	pollTimeout = 4 * time.Second
	// maxAge is the age from which on the result of a poll is absent.
	maxAge = 3 * pollInterval
)

// Sources are polled for the metrics that no call of an observer tells. Each may be nil.
type Sources struct {
	// Backlog is what the relay has before it.
	Backlog func(context.Context) (store.Backlog, error)
	// Letters counts the dead letters in the store.
	Letters func(context.Context) (int, error)
	// Queues are the queues of RabbitMQ, the failed one last.
	Queues func(context.Context) ([]amqp.QueueDepth, error)
	// Parts tells of each part of the worker whether it can work.
	Parts func(context.Context) map[string]bool

	// The others answer at once, and are asked at each scrape: the connections to RabbitMQ that stand, the pools of the
	// store's, whether this worker relays, and what has become of messages, by outcome.
	Connections func() map[string]bool
	Pools       func() []store.Pool
	Leads       func() bool
	Outcomes    func() map[string]int64
}

// Poll polls the sources until ctx is done.
func (m *Metrics) Poll(ctx context.Context, s Sources) {
	p := m.polls
	p.mu.Lock()
	p.sources = s
	p.mu.Unlock()
	var polling sync.WaitGroup
	each := func(at string, poll func(context.Context) ([]prometheus.Metric, error)) {
		polling.Go(func() { p.repeat(ctx, at, poll) })
	}
	if s.Backlog != nil {
		each("backlog", func(ctx context.Context) ([]prometheus.Metric, error) {
			b, err := s.Backlog(ctx)
			return []prometheus.Metric{
				p.relayLag.gauge(float64(b.Events)), p.relayLagSeconds.gauge(b.Age.Seconds()),
			}, err
		})
	}
	if s.Letters != nil {
		each("store", func(ctx context.Context) ([]prometheus.Metric, error) {
			n, err := s.Letters(ctx)
			return []prometheus.Metric{p.deadLetters.gauge(float64(n), "store")}, err
		})
	}
	if s.Queues != nil {
		each("queues", func(ctx context.Context) ([]prometheus.Metric, error) { return p.queues(s.Queues(ctx)) })
	}
	if s.Parts != nil {
		each("parts", func(ctx context.Context) ([]prometheus.Metric, error) {
			return p.up(p.partUp, s.Parts(ctx)), nil
		})
	}
	polling.Wait()
}

func (p *polls) queues(depths []amqp.QueueDepth, err error) ([]prometheus.Metric, error) {
	if err != nil {
		return nil, err
	}
	failed := len(depths) - 1
	list := []prometheus.Metric{p.deadLetters.gauge(float64(depths[failed].Messages), "queue")}
	for _, d := range depths[:failed] {
		list = append(list, p.queueMessages.gauge(float64(d.Messages), d.Queue),
			p.queueConsumers.gauge(float64(d.Consumers), d.Queue))
	}
	return list, nil
}

func (p *polls) up(d desc, parts map[string]bool) []prometheus.Metric {
	var list []prometheus.Metric
	for part, up := range parts {
		list = append(list, d.gauge(number(up), part))
	}
	return list
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// desc describes a metric whose values are made at a scrape.
type desc struct{ *prometheus.Desc }

func newDesc(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc("worker_"+name, help, labels, nil)}
}

func (d desc) gauge(v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d.Desc, prometheus.GaugeValue, v, labels...)
}

func (d desc) counter(v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d.Desc, prometheus.CounterValue, v, labels...)
}

// polls collects the results of the polls.
type polls struct {
	errors *prometheus.CounterVec

	relayLag, relayLagSeconds, relayLeads       desc
	queueMessages, queueConsumers, deadLetters  desc
	partUp, connectionUp                        desc
	connections, maxConnections, waits, waiting desc
	messages                                    desc

	mu      sync.Mutex
	sources Sources
	seen    map[string]polled
}

// polled is the result of a poll, and its time.
type polled struct {
	at      time.Time
	metrics []prometheus.Metric
}

func newPolls(errors *prometheus.CounterVec) *polls {
	return &polls{
		errors: errors, seen: map[string]polled{},
		relayLag: newDesc("relay_lag_events", "Events that are not on the bus yet; it stops counting at 100000."),
		relayLagSeconds: newDesc("relay_lag_seconds",
			"Age, by its created_at, of the first event that is not on the bus yet; 0 if all are."),
		relayLeads:     newDesc("relay_leads", "1 if this worker is the one that relays."),
		queueMessages:  newDesc("queue_messages", "Messages in a queue of RabbitMQ, ready to be delivered.", "queue"),
		queueConsumers: newDesc("queue_consumers", "Consumers of a queue of RabbitMQ.", "queue"),
		deadLetters: newDesc("dead_letters",
			`Dead letters that wait in the table of the "store", where it stops counting at 100000, or are ready in RabbitMQ's "queue".`, "place"),
		partUp:       newDesc("part_up", "1 if a part of the worker can work, as /readyz tells.", "part"),
		connectionUp: newDesc("rabbitmq_connection_up", "1 if a connection to RabbitMQ stands and is not blocked.", "connection"),
		connections:  newDesc("store_connections", "Connections to the store.", "pool", "state"),
		maxConnections: newDesc("store_connections_limit",
			"Most connections to the store; 0 is no limit.", "pool"),
		waits:    newDesc("store_connection_waits_total", "Calls that had to wait for a connection to the store.", "pool"),
		waiting:  newDesc("store_connection_wait_seconds_total", "Time that calls have waited for a connection to the store.", "pool"),
		messages: newDesc("messages_total", "Messages that were settled, by what became of them.", "outcome"),
	}
}

// repeat polls until ctx is done.
func (p *polls) repeat(ctx context.Context, at string, poll func(context.Context) ([]prometheus.Metric, error)) {
	failed := p.errors.WithLabelValues(at)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, pollTimeout)
		metrics, err := poll(bounded)
		cancel()
		if err != nil {
			metrics = nil
			if ctx.Err() == nil {
				failed.Inc()
			}
		}
		p.mu.Lock()
		p.seen[at] = polled{time.Now(), metrics}
		p.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Describe implements [prometheus.Collector].
func (p *polls) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []desc{
		p.relayLag, p.relayLagSeconds, p.relayLeads, p.queueMessages, p.queueConsumers, p.deadLetters, p.partUp,
		p.connectionUp, p.connections, p.maxConnections, p.waits, p.waiting, p.messages,
	} {
		ch <- d.Desc
	}
}

// Collect implements [prometheus.Collector].
func (p *polls) Collect(ch chan<- prometheus.Metric) {
	p.mu.Lock()
	s, seen := p.sources, maps.Clone(p.seen)
	p.mu.Unlock()
	for _, result := range seen {
		if time.Since(result.at) > maxAge {
			continue
		}
		for _, m := range result.metrics {
			ch <- m
		}
	}
	if s.Connections != nil {
		for _, m := range p.up(p.connectionUp, s.Connections()) {
			ch <- m
		}
	}
	if s.Pools != nil {
		for _, pool := range s.Pools() {
			ch <- p.connections.gauge(float64(pool.InUse), pool.Name, "in_use")
			ch <- p.connections.gauge(float64(pool.Idle), pool.Name, "idle")
			ch <- p.maxConnections.gauge(float64(pool.Max), pool.Name)
			ch <- p.waits.counter(float64(pool.Waits), pool.Name)
			ch <- p.waiting.counter(pool.Waited.Seconds(), pool.Name)
		}
	}
	if s.Leads != nil {
		ch <- p.relayLeads.gauge(number(s.Leads()))
	}
	if s.Outcomes != nil {
		for outcome, n := range s.Outcomes() {
			ch <- p.messages.counter(float64(n), outcome)
		}
	}
}
