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
	// lookInterval is how often servers are looked at.
	lookInterval = 5 * time.Second
	// lookTimeout bounds a look.
	lookTimeout = 4 * time.Second
	// lookAge is how old what a look has told may become; older, it is absent.
	lookAge = 3 * lookInterval
)

// Sources are where metrics are looked at that nobody tells of. Each may be nil.
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

// Look looks at the sources until ctx is done, and shows them.
func (m *Metrics) Look(ctx context.Context, s Sources) {
	l := m.looks
	l.mu.Lock()
	l.sources = s
	l.mu.Unlock()
	var looking sync.WaitGroup
	each := func(at string, look func(context.Context) ([]prometheus.Metric, error)) {
		looking.Go(func() { l.repeat(ctx, at, look) })
	}
	if s.Backlog != nil {
		each("backlog", func(ctx context.Context) ([]prometheus.Metric, error) {
			b, err := s.Backlog(ctx)
			return []prometheus.Metric{
				l.relayLag.gauge(float64(b.Events)), l.relayLagSeconds.gauge(b.Age.Seconds()),
			}, err
		})
	}
	if s.Letters != nil {
		each("store", func(ctx context.Context) ([]prometheus.Metric, error) {
			n, err := s.Letters(ctx)
			return []prometheus.Metric{l.deadLetters.gauge(float64(n), "store")}, err
		})
	}
	if s.Queues != nil {
		each("queues", func(ctx context.Context) ([]prometheus.Metric, error) { return l.queues(s.Queues(ctx)) })
	}
	if s.Parts != nil {
		each("parts", func(ctx context.Context) ([]prometheus.Metric, error) {
			return l.up(l.partUp, s.Parts(ctx)), nil
		})
	}
	looking.Wait()
}

func (l *looks) queues(depths []amqp.QueueDepth, err error) ([]prometheus.Metric, error) {
	if err != nil {
		return nil, err
	}
	failed := len(depths) - 1
	list := []prometheus.Metric{l.deadLetters.gauge(float64(depths[failed].Messages), "queue")}
	for _, d := range depths[:failed] {
		list = append(list, l.queueMessages.gauge(float64(d.Messages), d.Queue),
			l.queueConsumers.gauge(float64(d.Consumers), d.Queue))
	}
	return list, nil
}

func (l *looks) up(d desc, parts map[string]bool) []prometheus.Metric {
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

// looks collects what was looked at.
type looks struct {
	errors *prometheus.CounterVec

	relayLag, relayLagSeconds, relayLeads       desc
	queueMessages, queueConsumers, deadLetters  desc
	partUp, connectionUp                        desc
	connections, maxConnections, waits, waiting desc
	messages                                    desc

	mu      sync.Mutex
	sources Sources
	seen    map[string]look
}

// look is what a look has told, and when.
type look struct {
	at      time.Time
	metrics []prometheus.Metric
}

func newLooks(errors *prometheus.CounterVec) *looks {
	return &looks{
		errors: errors, seen: map[string]look{},
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

// repeat looks until ctx is done.
func (l *looks) repeat(ctx context.Context, at string, see func(context.Context) ([]prometheus.Metric, error)) {
	failed := l.errors.WithLabelValues(at)
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, lookTimeout)
		metrics, err := see(bounded)
		cancel()
		if err != nil {
			metrics = nil
			if ctx.Err() == nil {
				failed.Inc()
			}
		}
		l.mu.Lock()
		l.seen[at] = look{time.Now(), metrics}
		l.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Describe implements [prometheus.Collector].
func (l *looks) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []desc{
		l.relayLag, l.relayLagSeconds, l.relayLeads, l.queueMessages, l.queueConsumers, l.deadLetters, l.partUp,
		l.connectionUp, l.connections, l.maxConnections, l.waits, l.waiting, l.messages,
	} {
		ch <- d.Desc
	}
}

// Collect implements [prometheus.Collector].
func (l *looks) Collect(ch chan<- prometheus.Metric) {
	l.mu.Lock()
	s, seen := l.sources, maps.Clone(l.seen)
	l.mu.Unlock()
	for _, look := range seen {
		if time.Since(look.at) > lookAge {
			continue
		}
		for _, m := range look.metrics {
			ch <- m
		}
	}
	if s.Connections != nil {
		for _, m := range l.up(l.connectionUp, s.Connections()) {
			ch <- m
		}
	}
	if s.Pools != nil {
		for _, p := range s.Pools() {
			ch <- l.connections.gauge(float64(p.InUse), p.Name, "in_use")
			ch <- l.connections.gauge(float64(p.Idle), p.Name, "idle")
			ch <- l.maxConnections.gauge(float64(p.Max), p.Name)
			ch <- l.waits.counter(float64(p.Waits), p.Name)
			ch <- l.waiting.counter(p.Waited.Seconds(), p.Name)
		}
	}
	if s.Leads != nil {
		ch <- l.relayLeads.gauge(number(s.Leads()))
	}
	if s.Outcomes != nil {
		for outcome, n := range s.Outcomes() {
			ch <- l.messages.counter(float64(n), outcome)
		}
	}
}
