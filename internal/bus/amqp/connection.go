// Package amqp is the bus on RabbitMQ: the contract's topology, a publisher that waits for confirms, a subscriber that
// keeps the order of each aggregate, and the queue of dead letters.
//
// Connection, publisher and subscriber are not watermill-amqp's: there, a reconnect is a data race and leaks a slot of the
// channel pool, confirms are awaited one by one without a timeout, and one delivery at a time is in flight.
package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/healz/worker/internal/observe"
)

// Defaults of [Config].
const (
	DefaultName            = "worker"
	DefaultHeartbeat       = time.Minute
	DefaultConcurrency     = 32
	DefaultPrefetch        = 256
	DefaultMaxMessage      = 16 << 20 // RabbitMQ 4's own limit
	DefaultResponseTimeout = 30 * time.Second
	DefaultDrainTimeout    = 30 * time.Second
)

const (
	// connectTimeout bounds a connection attempt, from the first packet to the declared topology.
	connectTimeout = 15 * time.Second
	// closeTimeout bounds the closing handshake.
	closeTimeout = 2 * time.Second
	// maxReconnectWait bounds the backoff between two attempts to reconnect.
	maxReconnectWait = 5 * time.Second
	// aloneHeartbeat bounds the heartbeat of a connection that consumes alone, so that a frozen worker is replaced within
	// five seconds: the broker closes a connection after two to three intervals of silence.
	aloneHeartbeat = time.Second
)

// Values of [Config.QueueType].
const (
	ClassicQueues = amqp091.QueueTypeClassic
	QuorumQueues  = amqp091.QueueTypeQuorum
)

// Config is how to use a broker. Only URL is required.
type Config struct {
	// URL is amqp[s]://user:password@host:port/vhost; reserved characters are percent-encoded.
	URL string
	// ManagementURL is http[s]://[user:password@]host:port of the broker's management API, see [QueueLimits]. If it is empty,
	// the host is that of URL, the port the plugin's default; without a user, so is that.
	ManagementURL string
	// Prefix is the name of the exchange, from which the other names are made; [DefaultPrefix] if empty.
	Prefix string
	// Service is the name of the service that the worker belongs to, see [CheckService]. Each service has queues of its own, and
	// gets each event of its Types. Without a name they are the contract's, which get all events.
	Service string
	// Types are the event types that a service handles; "#" is all. Its queue stays bound to what it was bound to before: see
	// [Unbind].
	Types []string
	// Name is what the broker shows for the connections; [DefaultName] if empty.
	Name string
	// Prefetch is how many unacked deliveries a subscription may have; [DefaultPrefetch] if 0. Once the bodies of all
	// subscriptions exceed 64 MiB, no more are read until some are acked.
	Prefetch int
	// MaxMessage is the most bytes of a body that is parsed for what the headers lack; [DefaultMaxMessage] if 0.
	MaxMessage int
	// Concurrency is how many messages of a Subscriber's queue, or of all queues of [Connection.Topics], are in flight
	// at once; [DefaultConcurrency] if 0. Those of one aggregate are always handled one after another; with 1, all are.
	Concurrency int
	// Heartbeat is after how much silence either side considers the other dead; [DefaultHeartbeat] if 0. The URL may
	// set another.
	Heartbeat time.Duration
	// ResponseTimeout is how long an answer to a request, or the next confirm of what is published, may take until the
	// connection is replaced, unless the broker says that it blocks; [DefaultResponseTimeout] if 0.
	ResponseTimeout time.Duration
	// DrainTimeout is how long a subscription that ends waits for the messages in flight; [DefaultDrainTimeout] if 0.
	DrainTimeout time.Duration
	// Partitions is the number of queues over which events are spread by their aggregates, so that several workers share
	// them and still handle each aggregate in order; 0: the contract's one queue. All that use the prefix must agree on it.
	Partitions int
	// LeavePartitions makes a Connection without partitions remove those that the broker has, instead of failing. What
	// their queues hold is consumed before all else; it stays set until they are empty.
	LeavePartitions bool
	// Competing lets several workers consume the contract's queue at once, which does not keep the order of an aggregate.
	// Without it, and without partitions, one of them consumes and the others are on standby.
	Competing bool
	// QueueType is [ClassicQueues] or [QuorumQueues], of all queues; [ClassicQueues], the contract's, if empty.
	QueueType string
	// RetryLater are the delays after which a message whose handler has failed is handled again, one after another,
	// before it becomes a dead letter; none if empty. Meanwhile the later events of its aggregate are handled.
	RetryLater []time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Watcher may be nil.
	Watcher Watcher
}

// Watcher observes the connections. Its methods are called for each message, by many goroutines: they must be quick.
type Watcher interface {
	// Confirmed reports the time from publishing a message to its confirm.
	Confirmed(took time.Duration)
	// ConnectionLost reports that the connection to "publish" or the one to "consume" was lost.
	ConnectionLost(connection string)
}

func (c Config) withDefaults() Config {
	c.Prefix = cmp.Or(c.Prefix, DefaultPrefix)
	c.Name = cmp.Or(c.Name, DefaultName)
	c.Prefetch = cmp.Or(c.Prefetch, DefaultPrefetch)
	c.MaxMessage = cmp.Or(c.MaxMessage, DefaultMaxMessage)
	c.Concurrency = cmp.Or(c.Concurrency, DefaultConcurrency)
	c.Heartbeat = cmp.Or(c.Heartbeat, DefaultHeartbeat)
	c.ResponseTimeout = cmp.Or(c.ResponseTimeout, DefaultResponseTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, DefaultDrainTimeout)
	c.QueueType = cmp.Or(c.QueueType, ClassicQueues)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Watcher == nil {
		c.Watcher = observe.None{}
	}
	return c
}

// Queue is the name of the queue that workers consume.
func (c Config) Queue() string { return c.names().consumerQueue }

// FailedQueue is the name of the queue of dead letters.
func (c Config) FailedQueue() string { return c.names().failedQueue }

func (c Config) names() names { return namesOf(cmp.Or(c.Prefix, DefaultPrefix), c.Service) }

// Connection is a lasting connection to a broker. It consists of two, so that a broker that blocks publishers does not
// block acks. A lost one is replaced, with the topology, for as long as that takes. All methods are safe for concurrent
// use.
type Connection struct {
	topology
	config   Config
	uri      amqp091.URI
	declares bool // declares the topology; tests may not
	alone    turn
	warned   sync.Once             // of missing rights
	split    atomic.Pointer[error] // what [Connection.Split] returns
	// leftovers are the queues to be emptied before the others are consumed: what they hold is older.
	leftovers []string

	publishing, consuming *link
	received              *byteLimit
	life                  context.Context // ends with Close
	end                   context.CancelFunc

	mu     sync.Mutex // guards closed against a task that is about to start
	closed bool
	tasks  sync.WaitGroup
}

// Dial connects to the broker and declares the contract's topology. It tries once. The error wraps [ErrUnavailable]
// when the broker is not up (yet); else trying again is useless: it wraps [ErrRefused], or is a *[TopologyError], or
// says that the URL is invalid. It never contains the password.
//
// ctx bounds the connecting, not the connection, which lives until Close.
func Dial(ctx context.Context, c Config) (*Connection, error) {
	conn, err := newConnection(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := conn.dial(ctx); err != nil {
		return nil, err
	}
	return conn, nil
}

var errURL = errors.New("the RabbitMQ URL is not amqp[s]://user:password@host:port/vhost with reserved characters " +
	"percent-encoded")

// newConnection checks the settings.
func newConnection(ctx context.Context, c Config) (*Connection, error) {
	c = c.withDefaults()
	uri, err := amqp091.ParseURI(c.URL)
	switch {
	case err != nil: // its text may quote the password
		return nil, errURL
	case c.Prefetch < 1 || c.Prefetch > math.MaxUint16 || c.Concurrency < 1:
		return nil, fmt.Errorf("prefetch %d and concurrency %d must be at least 1, and prefetch at most %d",
			c.Prefetch, c.Concurrency, math.MaxUint16)
	case CheckService(c.Service) != nil:
		return nil, fmt.Errorf("the name of the service %w", CheckService(c.Service))
	case c.Partitions < 0 || c.Partitions > MaxPartitions:
		return nil, fmt.Errorf("partitions must be from 0 to %d, but are %d", MaxPartitions, c.Partitions)
	}
	conn := &Connection{topology: c.topology(), config: c, uri: uri, declares: true, received: newByteLimit()}
	conn.publishing = &link{conn: conn, purpose: "publish", changed: make(chan struct{})}
	conn.consuming = &link{conn: conn, purpose: "consume", received: conn.received, changed: make(chan struct{})}
	conn.life, conn.end = context.WithCancel(context.WithoutCancel(ctx))
	return conn, nil
}

// dial connects, or closes the Connection.
func (c *Connection) dial(ctx context.Context) error {
	for _, l := range []*link{c.publishing, c.consuming} {
		s, err := c.connect(ctx, l.purpose, l.received)
		if err == nil && l == c.consuming {
			if c.leftovers, err = c.findLeftovers(s); err != nil {
				s.close()
				err = fmt.Errorf("find partitions: %w", classify(err))
			}
		}
		if err != nil {
			return errors.Join(err, c.Close())
		}
		l.current = s
		c.spawn(l.run)
	}
	return nil
}

// Topics are what to subscribe to, once each, to get every event. With partitions, the contract's queue is among them:
// replays of older letters go there.
func (c *Connection) Topics() []string {
	topics := []string{c.consumerQueue}
	for i := range c.partitions {
		topics = append(topics, c.partition(i))
	}
	for _, queue := range c.leftovers {
		if queue != c.consumerQueue {
			topics = append(topics, queue)
		}
	}
	return topics
}

// Ready tells whether messages can be published and consumed right now. The error says why not; it wraps
// [ErrUnavailable], [ErrRefused], [ErrBlocked] or [ErrClosed], or is a *[TopologyError].
func (c *Connection) Ready() error {
	publishing, consuming := c.publishing.ready(), c.consuming.ready()
	if errors.Is(publishing, ErrUnavailable) && errors.Is(consuming, ErrUnavailable) { // one cause is told once
		return publishing
	}
	return errors.Join(publishing, consuming)
}

// Up tells whether the connections to "publish" and to "consume" are open and not blocked.
func (c *Connection) Up() map[string]bool {
	return map[string]bool{
		c.publishing.purpose: c.publishing.ready() == nil,
		c.consuming.purpose:  c.consuming.ready() == nil,
	}
}

// QueueDepth is how many messages of a queue are ready to be delivered, and how many consumers it has.
type QueueDepth struct {
	Queue               string
	Messages, Consumers int
}

// Depths are those of the queues of [Connection.Topics], of [Config.RetryLater], and last of the failed queue. It ends
// with ctx at the latest. A queue that does not exist is an error.
func (c *Connection) Depths(ctx context.Context) ([]QueueDepth, error) {
	queues := c.Topics()
	for _, wait := range c.retryLater {
		queues = append(queues, c.retryQueue(wait))
	}
	return c.inspect(ctx, append(queues, c.failedQueue)...)
}

// inspect is Depths of some queues.
func (c *Connection) inspect(ctx context.Context, queues ...string) (depths []QueueDepth, err error) {
	answered := make(chan struct{})
	var found []QueueDepth
	var problem error
	if !c.spawn(func() { // a request may hang until its timeout
		defer close(answered)
		found, problem = c.depths(ctx, queues)
	}) {
		return nil, fmt.Errorf("inspect the queues: %w", ErrClosed)
	}
	select {
	case <-answered:
		return found, problem
	case <-ctx.Done():
		return nil, fmt.Errorf("inspect the queues: %w", context.Cause(ctx))
	}
}

func (c *Connection) depths(ctx context.Context, queues []string) ([]QueueDepth, error) {
	link := c.publishing
	if link.ready() != nil && !c.received.full() { // a broker that blocks publishers still answers consumers
		link = c.consuming
	}
	session, err := link.session(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("inspect the queues: %w", err)
	}
	defer session.bound()()
	channel, err := session.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("inspect the queues: open channel: %w", classify(err))
	}
	defer channel.Close()
	depths := make([]QueueDepth, 0, len(queues))
	for _, name := range queues {
		q, err := channel.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			return nil, fmt.Errorf("inspect queue %q: %w", name, classify(err))
		}
		depths = append(depths, QueueDepth{Queue: name, Messages: q.Messages, Consumers: q.Consumers})
	}
	return depths, nil
}

// Close ends the connections. Publishers and subscribers are to be closed before. Unacked deliveries are requeued.
func (c *Connection) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.tasks.Wait()
	return nil
}

// whileOpen is a context that ends with the Connection, too.
func (c *Connection) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// spawn runs a task that Close waits for. It reports false, and does nothing, if the Connection is closed.
func (c *Connection) spawn(task func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.tasks.Go(task)
	}
	return !c.closed
}

// connect makes one connection and declares the topology on it. What is received counts towards the limit, if not nil.
func (c *Connection) connect(ctx context.Context, purpose string, received *byteLimit) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s := &session{responseTimeout: c.config.ResponseTimeout, received: received}
	defer context.AfterFunc(ctx, s.kill)()

	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName(c.config.Name + " " + purpose)
	heartbeat := c.config.Heartbeat
	if c.aloneOn(c.consumerQueue) && received != nil {
		heartbeat = min(heartbeat, aloneHeartbeat)
	}
	err := s.dial(ctx, c.config.URL, amqp091.Config{Heartbeat: heartbeat, Properties: properties})
	if err == nil && c.declares {
		var d *declarer
		if d, err = s.open(c.topology, c.consumerQueue); err == nil {
			err = d.channel.Close()
			c.warned.Do(func() { d.warn(ctx, c.config.Logger) })
		}
		if err != nil {
			s.close()
		}
	}
	switch {
	case err == nil:
		return s, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w: %w", ErrUnavailable, context.Cause(ctx), err)
	default:
		err = classify(err)
	}
	return nil, fmt.Errorf("connect to RabbitMQ at %s, vhost %q: %w",
		net.JoinHostPort(c.uri.Host, strconv.Itoa(c.uri.Port)), c.uri.Vhost, err)
}

// session is one connection while it lasts.
type session struct {
	responseTimeout time.Duration
	received        *byteLimit // may be nil

	conn    *amqp091.Connection
	socket  atomic.Pointer[net.Conn]
	blocked atomic.Pointer[string]    // the broker's reason
	read    atomic.Pointer[time.Time] // when something was read last
	limits  limits
}

func (s *session) dial(ctx context.Context, url string, config amqp091.Config) error {
	config.Dial = func(network, address string) (net.Conn, error) {
		socket, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		s.socket.Store(&socket)
		deadline, _ := ctx.Deadline() // the library removes it after the handshake
		err = socket.SetDeadline(deadline)
		if s.received != nil {
			return limitedConn{socket, s.received, &s.read}, err
		}
		return socket, err
	}
	var err error
	s.conn, err = amqp091.DialConfig(url, config)
	if err != nil {
		s.kill()
		return err
	}
	s.limits.frame = s.conn.Config.FrameSize
	return nil
}

// declare declares the topology.
func (s *session) declare(t topology) error {
	d, err := s.open(t, t.consumerQueue)
	if err != nil {
		return err
	}
	return d.channel.Close()
}

// open opens a channel and declares on it what a queue needs.
func (s *session) open(t topology, queue string) (*declarer, error) {
	d := &declarer{open: func() (*amqp091.Channel, error) {
		channel, err := s.conn.Channel()
		if err != nil {
			return nil, fmt.Errorf("open channel: %w", err)
		}
		return channel, nil
	}}
	var err error
	if d.channel, err = d.open(); err != nil {
		return nil, err
	}
	return d, t.declare(d, queue)
}

// kill cuts the connection, which ends whatever waits for the peer.
func (s *session) kill() {
	if socket := s.socket.Load(); socket != nil {
		_ = (*socket).Close() // it may be closed already
	}
}

// bound cuts the connection unless release is called in time, so that no request waits long for a dead peer. A broker
// that blocks is not dead; it answers when it unblocks.
func (s *session) bound() (release func()) {
	timer := time.AfterFunc(s.responseTimeout, func() {
		if s.blocked.Load() == nil {
			s.kill()
		}
	})
	if s.received == nil {
		return func() { timer.Stop() }
	}
	resume := s.received.suspend()
	return func() {
		timer.Stop()
		resume()
	}
}

func (s *session) close() {
	_ = s.conn.CloseDeadline(time.Now().Add(closeTimeout)) // it is gone either way
	s.kill()
}

// link keeps a session open.
type link struct {
	conn     *Connection
	purpose  string
	received *byteLimit // may be nil

	mu      sync.Mutex
	current *session
	err     error         // why there is no current session
	changed chan struct{} // closed when current changes
}

// run replaces the session when it is lost, until the Connection is closed.
func (l *link) run() {
	logger := l.conn.config.Logger.With("connection", l.purpose)
	ctx := l.conn.life
	for s := l.current; s != nil; {
		err := l.awaitEnd(ctx, s, logger)
		l.set(nil, err)
		if ctx.Err() != nil {
			s.close()
			return
		}
		s.kill()
		l.conn.config.Watcher.ConnectionLost(l.purpose)
		outage := &observe.Outage{}
		outage.Fails(ctx, logger, slog.LevelWarn, "connection to RabbitMQ lost", "error", err)
		if s = l.reconnect(ctx, logger, outage); s != nil {
			outage.Over(ctx, logger, "connection to RabbitMQ restored")
			l.set(s, nil)
		}
	}
}

// awaitEnd returns when the session is over, with the reason.
func (l *link) awaitEnd(ctx context.Context, s *session, logger *slog.Logger) error {
	closed := s.conn.NotifyClose(make(chan *amqp091.Error, 1))
	blocked := s.conn.NotifyBlocked(make(chan amqp091.Blocking, 1))
	var outage observe.Outage
	for {
		select {
		case <-ctx.Done():
			return ErrClosed
		case reason := <-closed:
			outage.Over(ctx, logger, "RabbitMQ no longer blocks its publishers: the connection is lost")
			if reason == nil {
				return fmt.Errorf("%w: connection closed", ErrUnavailable)
			}
			return fmt.Errorf("%w: %w", ErrUnavailable, reason)
		case b, ok := <-blocked:
			switch {
			case !ok:
				blocked = nil
			case b.Active:
				s.blocked.Store(&b.Reason)
				outage.Fails(ctx, logger, slog.LevelWarn, "RabbitMQ blocks its publishers", "reason", b.Reason)
			default:
				s.blocked.Store(nil)
				outage.Over(ctx, logger, "RabbitMQ no longer blocks its publishers")
			}
		}
	}
}

// reconnect makes a session in place of the one that was lost. Why it cannot is logged at the debug level, unless the broker
// refuses the connection, which does not pass by itself.
func (l *link) reconnect(ctx context.Context, logger *slog.Logger, outage *observe.Outage) *session {
	var refusal observe.Outage
	for waits := newWaits(); ; {
		if pause(ctx, waits.NextBackOff()); ctx.Err() != nil {
			return nil
		}
		s, err := l.conn.connect(ctx, l.purpose, l.received)
		if err == nil {
			return s
		}
		if ctx.Err() == nil {
			l.set(nil, err)
			in := outage
			if !errors.Is(err, ErrUnavailable) {
				in = &refusal
			}
			in.Fails(ctx, logger, slog.LevelError, "cannot reconnect to RabbitMQ, will try again", "error", err)
		}
	}
}

func (l *link) set(s *session, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.err = s, err
	close(l.changed)
	l.changed = make(chan struct{})
}

// session waits for an open session other than the one that the caller has found lost. The error wraps ctx's, and why
// there is none.
func (l *link) session(ctx context.Context, lost *session) (*session, error) {
	for {
		l.mu.Lock()
		s, err, changed := l.current, l.err, l.changed
		l.mu.Unlock()
		if s != nil && s != lost {
			return s, nil
		}
		if l.conn.life.Err() != nil {
			return nil, ErrClosed
		}
		select {
		case <-changed:
		case <-l.conn.life.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), cmp.Or(err, ErrUnavailable))
		}
	}
}

func (l *link) ready() error {
	l.mu.Lock()
	s, err := l.current, l.err
	l.mu.Unlock()
	if s == nil {
		return err
	}
	if reason := s.blocked.Load(); reason != nil {
		return fmt.Errorf("%w: %s", ErrBlocked, *reason)
	}
	return nil
}
