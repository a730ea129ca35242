package metrics

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/observe"
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

// Sources are polled for the metrics that no call of an observer tells.
type Sources struct {
	// Backlog is what the relay has before it.
	Backlog func(context.Context) (store.Backlog, error)
	// Letters counts the dead letters in the store.
	Letters func(context.Context) (int, error)
	// Queues are the queues of RabbitMQ, the failed one last; nil without RabbitMQ.
	Queues func(context.Context) ([]amqp.QueueDepth, error)
	// Parts tells of each part of the worker why it cannot work, nil if it can.
	Parts func(context.Context) map[string]error

	// The others answer at once, and are asked at each scrape: the connections to RabbitMQ that stand (nil without it), the
	// pools of the store's, the worker's shares of the queues (nil without RabbitMQ), whether it holds the relay's lease and
	// whether it gets events out, and what has become of messages.
	Connections func() map[string]bool
	Pools       func() []store.Pool
	Shares      func() []amqp.Share
	Leads       func() bool
	Publishes   func() bool
	Outcomes    func() map[observe.Outcome]int64
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
	var waiting lag
	each("backlog", func(ctx context.Context) ([]prometheus.Metric, error) {
		b, err := s.Backlog(ctx)
		if err != nil {
			return nil, err
		}
		return []prometheus.Metric{
			gauge("relay_lag_events", "Events that are not on the bus yet; it stops counting at 100000.", float64(b.Events), nil),
			gauge("relay_lag_seconds", "Time since the worker first saw the first event that is not on the bus yet; 0 if all are.",
				waiting.of(b, time.Now()).Seconds(), nil),
		}, nil
	})
	each("store", func(ctx context.Context) ([]prometheus.Metric, error) {
		n, err := s.Letters(ctx)
		return []prometheus.Metric{deadLetters(n, "store")}, err
	})
	if s.Queues != nil {
		each("queues", func(ctx context.Context) ([]prometheus.Metric, error) { return queues(s.Queues(ctx)) })
	}
	each("parts", func(ctx context.Context) ([]prometheus.Metric, error) {
		return partsUp(s.Parts(ctx)), nil
	})
	polling.Wait()
}

func deadLetters(n int, place string) prometheus.Metric {
	return gauge("dead_letters", `Dead letters that wait in the table of the "store", where it stops counting at 100000, `+
		`or are ready in RabbitMQ's "queue".`, float64(n), prometheus.Labels{"place": place})
}

func queues(depths []amqp.QueueDepth, err error) ([]prometheus.Metric, error) {
	if err != nil {
		return nil, err
	}
	failed := len(depths) - 1
	list := []prometheus.Metric{deadLetters(depths[failed].Messages, "queue")}
	for _, d := range depths[:failed] {
		of := prometheus.Labels{"queue": d.Queue}
		list = append(list,
			gauge("queue_messages", "Messages in a queue of RabbitMQ, ready to be delivered.", float64(d.Messages), of),
			gauge("queue_consumers", "Consumers of a queue of RabbitMQ.", float64(d.Consumers), of))
	}
	return list, nil
}

func partsUp(parts map[string]error) []prometheus.Metric {
	var list []prometheus.Metric
	for part, err := range parts {
		list = append(list, gauge("part_up", "1 if a part of the worker can work, as /readyz tells.", number(err == nil), prometheus.Labels{"part": part}))
	}
	return list
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// gauge is a metric whose value is made at a poll or a scrape.
func gauge(name, help string, v float64, labels prometheus.Labels) prometheus.Metric {
	return prometheus.MustNewConstMetric(prometheus.NewDesc("worker_"+name, help, nil, labels), prometheus.GaugeValue, v)
}

// counter is as gauge.
func counter(name, help string, v float64, labels prometheus.Labels) prometheus.Metric {
	return prometheus.MustNewConstMetric(prometheus.NewDesc("worker_"+name, help, nil, labels), prometheus.CounterValue, v)
}

// polls collects the results of the polls.
type polls struct {
	errors    *prometheus.CounterVec
	receiving *inFlight

	mu      sync.Mutex
	sources Sources
	seen    map[string]polled
}

// polled is the result of a poll, and its time.
type polled struct {
	at      time.Time
	metrics []prometheus.Metric
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

// Describe implements [prometheus.Collector]. It describes nothing: which metrics there are is known at each scrape.
func (p *polls) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (p *polls) Collect(ch chan<- prometheus.Metric) {
	p.mu.Lock()
	s, seen := p.sources, maps.Clone(p.seen)
	p.mu.Unlock()
	if s.Outcomes == nil { // Poll was not called yet
		return
	}
	for _, result := range seen {
		if time.Since(result.at) > maxAge {
			continue
		}
		for _, m := range result.metrics {
			ch <- m
		}
	}
	if s.Connections != nil {
		for connection, up := range s.Connections() {
			ch <- gauge("rabbitmq_connection_up", "1 if a connection to RabbitMQ stands and is not blocked.", number(up),
				prometheus.Labels{"connection": connection})
		}
	}
	for _, pool := range s.Pools() {
		of := prometheus.Labels{"pool": pool.Name}
		for state, n := range map[string]int{"in_use": pool.InUse, "idle": pool.Idle} {
			ch <- gauge("store_connections", "Connections to the store.", float64(n), prometheus.Labels{"pool": pool.Name, "state": state})
		}
		ch <- gauge("store_connections_limit", "Most connections to the store; 0 is no limit.", float64(pool.Max), of)
		ch <- counter("store_connection_waits_total", "Calls that had to wait for a connection to the store.", float64(pool.Waits), of)
		ch <- counter("store_connection_wait_seconds_total", "Time that calls have waited for a connection to the store.",
			pool.Waited.Seconds(), of)
	}
	if s.Shares != nil {
		for _, share := range s.Shares() {
			of := prometheus.Labels{"queue": share.Queue}
			ch <- gauge("queue_consumed", "1 if RabbitMQ delivers the messages of the queue to this worker; of a partition since its first delivery.", number(share.Consumes), of)
			ch <- gauge("queue_unacked", "Messages of the queue that are delivered to this worker and not settled.", float64(share.Unacked), of)
		}
	}
	count, oldest := p.receiving.state(time.Now())
	ch <- gauge("messages_in_flight", "Messages that handlers work on, or that wait for another attempt of one.", float64(count), nil)
	ch <- gauge("oldest_in_flight_seconds", "Time since the oldest message in flight was received; 0 if there is none.", oldest.Seconds(), nil)
	ch <- gauge("relay_leads", "1 if this worker holds the lease by which it alone relays.", number(s.Leads()), nil)
	ch <- gauge("relay_publishing", "1 if this worker holds the lease by which it alone relays and, as far as it has tried, brings events to the bus.",
		number(s.Publishes()), nil)
	for outcome, n := range s.Outcomes() {
		ch <- counter("messages_total", "Deliveries that were settled, by what became of them.", float64(n), prometheus.Labels{"outcome": string(outcome)})
	}
}
