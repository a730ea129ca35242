package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/cenkalti/backoff/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// Defaults of [Config].
const (
	DefaultName            = "worker"
	DefaultHeartbeat       = time.Minute
	DefaultConcurrency     = 32
	DefaultPrefetch        = 256
	DefaultMaxMessage      = 16 << 20 // as much as RabbitMQ 4 takes by default
	DefaultResponseTimeout = 30 * time.Second
	DefaultDrainTimeout    = 30 * time.Second
)

const (
	// connectTimeout bounds a connection attempt, from the first packet to the declared topology.
	connectTimeout = 15 * time.Second
	// closeTimeout bounds the farewell.
	closeTimeout = 2 * time.Second
	// maxReconnectWait bounds the wait between two attempts to reconnect.
	maxReconnectWait = 5 * time.Second
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
	// Prefix is the name of the exchange, of which the other names are made; [DefaultPrefix] if empty.
	Prefix string
	// Name is what the broker shows for the connections; [DefaultName] if empty.
	Name string
	// Prefetch is how many deliveries the broker sends ahead to a subscription; [DefaultPrefetch] if 0. Once the
	// bodies of all subscriptions have 64 MiB, no more are read until some are handled.
	Prefetch int
	// MaxMessage is the most bytes of a body that is looked into; [DefaultMaxMessage] if 0. What is larger is handed
	// out with its headers alone.
	MaxMessage int
	// Concurrency is how many deliveries of a subscription, or of all that [Connection.Topics] are for, are handled at
	// once; [DefaultConcurrency] if 0. Those of one aggregate are always handled one after another; with 1, all are.
	Concurrency int
	// Heartbeat is after how much silence either side takes the other for dead; [DefaultHeartbeat] if 0. The URL may
	// set another.
	Heartbeat time.Duration
	// ResponseTimeout is how long an answer to a request, or the next confirm of what is published, may take until the
	// peer is taken for dead and connected to again, unless the broker says that it blocks; [DefaultResponseTimeout] if 0.
	ResponseTimeout time.Duration
	// DrainTimeout is how long a subscription that ends waits for the messages in hand; [DefaultDrainTimeout] if 0.
	DrainTimeout time.Duration
	// Partitions is over how many queues the events are spread by their aggregates, so that several workers share them
	// and still handle each aggregate in order; 0: the contract's one queue. All that use the prefix must agree on it.
	Partitions int
	// LeavePartitions lets a Connection without partitions do away with those that the broker has, instead of failing.
	// What lies in their queues is consumed before all else; it stays set until they are empty.
	LeavePartitions bool
	// QueueType is [ClassicQueues] or [QuorumQueues], of all queues; [ClassicQueues], the contract's, if empty.
	QueueType string
	// RetryLater are the waits after which a message whose handler has failed is handled again, one after another,
	// before it becomes a dead letter; none if empty. Meanwhile the later events of its aggregate go on.
	RetryLater []time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Watcher may be nil.
	Watcher Watcher
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Prefetch == 0 {
		c.Prefetch = DefaultPrefetch
	}
	if c.MaxMessage == 0 {
		c.MaxMessage = DefaultMaxMessage
	}
	if c.Concurrency == 0 {
		c.Concurrency = DefaultConcurrency
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.ResponseTimeout == 0 {
		c.ResponseTimeout = DefaultResponseTimeout
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrainTimeout
	}
	if c.QueueType == "" {
		c.QueueType = ClassicQueues
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Watcher == nil {
		c.Watcher = nobody{}
	}
	return c
}

// Connection is a standing connection to a broker: two in truth, so that a broker that holds publishers back does not
// hold back the acks. When one is lost it is made again, for as long as it takes, and so is the topology. All methods
// are safe for concurrent use.
type Connection struct {
	config  Config
	uri     amqp091.URI
	routing wamqp.Config
	names   names
	// leftovers are the queues to be emptied before the others are consumed: what lies in them is older.
	leftovers []string

	publishing, consuming *link
	window                *window
	life                  context.Context // ends with Close
	end                   context.CancelFunc

	mu     sync.Mutex // guards closed against a task that is just about to start
	closed bool
	tasks  sync.WaitGroup
}

// Dial connects to the broker and declares the contract's topology. It tries once. The error wraps [ErrUnavailable]
// when the broker is not up (yet); else trying again is of no use: it wraps [ErrRefused], or is a *[TopologyError], or
// says that the URL is no good. It never contains the password.
//
// ctx bounds the connecting, not the connection, which lives until Close.
func Dial(ctx context.Context, c Config) (*Connection, error) {
	c = c.withDefaults()
	routing := ContractConfig(c.URL, c.Prefix)
	routing.Marshaler = Marshaler{MaxBytes: c.MaxMessage}
	routing.TopologyBuilder = Topology{
		Prefix: c.Prefix, Partitions: c.Partitions, LeavePartitions: c.LeavePartitions,
		QueueType: c.QueueType, RetryLater: c.RetryLater,
	}
	return dial(ctx, c, routing)
}

var errURL = errors.New("the RabbitMQ URL is not amqp[s]://user:password@host:port/vhost with reserved characters " +
	"percent-encoded")

func dial(ctx context.Context, c Config, routing wamqp.Config) (*Connection, error) {
	uri, err := amqp091.ParseURI(c.URL)
	if err != nil { // its text may quote the password
		return nil, errURL
	}
	if c.Prefetch < 1 || c.Prefetch > math.MaxUint16 || c.Concurrency < 1 {
		return nil, fmt.Errorf("prefetch %d and concurrency %d must be at least 1, and prefetch at most %d",
			c.Prefetch, c.Concurrency, math.MaxUint16)
	}
	if c.Partitions < 0 || c.Partitions > MaxPartitions {
		return nil, fmt.Errorf("partitions must be from 0 to %d, but are %d", MaxPartitions, c.Partitions)
	}
	conn := &Connection{config: c, uri: uri, routing: routing, names: namesOf(c.Prefix), window: newWindow()}
	conn.life, conn.end = context.WithCancel(context.WithoutCancel(ctx))
	for _, l := range []struct {
		link    **link
		purpose string
		window  *window
	}{{&conn.publishing, "publish", nil}, {&conn.consuming, "consume", conn.window}} {
		session, err := conn.connect(ctx, l.purpose, l.window)
		if err != nil {
			_ = conn.Close() // never fails
			return nil, err
		}
		*l.link = newLink(conn, l.purpose, l.window, session)
		if l.link == &conn.consuming { // before the link is run, which may find the session lost and drop it
			conn.leftovers, err = session.leftovers(c, conn.names)
		}
		conn.spawn((*l.link).run)
		if err != nil {
			_ = conn.Close() // never fails
			return nil, fmt.Errorf("look for partitions: %w", classify(err))
		}
	}
	return conn, nil
}

// Topics are what to subscribe to, once each, to get every event. With partitions, the contract's queue is among them:
// replays of older letters go there.
func (c *Connection) Topics() []string {
	topics := []string{c.names.consumerQueue}
	for i := range c.config.Partitions {
		topics = append(topics, c.names.partition(i))
	}
	for _, queue := range c.leftovers {
		if queue != c.names.consumerQueue {
			topics = append(topics, queue)
		}
	}
	return topics
}

// Ready tells whether messages can be published and consumed right now. The error says why not; it wraps
// [ErrUnavailable], [ErrRefused], [ErrBlocked] or [ErrClosed], or is a *[TopologyError].
func (c *Connection) Ready() error {
	return errors.Join(c.publishing.ready(), c.consuming.ready())
}

// Close ends the connections. Publishers and subscribers are closed before. Deliveries still in hand go back to their
// queue.
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

// spawn runs a task that Close waits for, unless it is too late for that.
func (c *Connection) spawn(task func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.tasks.Go(task)
	}
	return !c.closed
}

// connect makes one connection and declares the topology on it. It is read through the window, if there is one.
func (c *Connection) connect(ctx context.Context, purpose string, w *window) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s := &session{responseTimeout: c.config.ResponseTimeout, window: w}
	release := context.AfterFunc(ctx, func() { s.kill() })
	defer release()

	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName(c.config.Name + " " + purpose)
	err := s.dial(ctx, c.config.URL, amqp091.Config{Heartbeat: c.config.Heartbeat, Properties: properties})
	if err == nil {
		if err = s.declare(c.routing); err != nil {
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
	return nil, fmt.Errorf("connect to RabbitMQ at %s, vhost %q: %w", net.JoinHostPort(c.uri.Host, fmt.Sprint(c.uri.Port)),
		c.uri.Vhost, err)
}

// session is one connection while it lasts.
type session struct {
	responseTimeout time.Duration
	window          *window // may be nil

	conn    *amqp091.Connection
	socket  atomic.Pointer[net.Conn]
	blocked atomic.Pointer[string] // the broker's reason
}

func (s *session) dial(ctx context.Context, url string, config amqp091.Config) error {
	config.Dial = func(network, address string) (net.Conn, error) {
		socket, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		s.socket.Store(&socket)
		deadline, _ := ctx.Deadline() // the library lifts it after the handshake
		err = socket.SetDeadline(deadline)
		if s.window != nil {
			return windowedConn{socket, s.window}, err
		}
		return socket, err
	}
	var err error
	s.conn, err = amqp091.DialConfig(url, config)
	if err != nil {
		s.kill()
	}
	return err
}

// declare declares the topology that is there for all topics, if there is such.
func (s *session) declare(routing wamqp.Config) error {
	if routing.Queue.GenerateName("") == "" {
		return nil
	}
	channel, err := s.open(routing, "")
	if err != nil {
		return err
	}
	return channel.Close()
}

// open opens a channel and declares on it what a topic needs.
func (s *session) open(routing wamqp.Config, topic string) (*amqp091.Channel, error) {
	channel, err := s.conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	return channel, build(channel, routing, topic)
}

// kill cuts the connection, which ends whatever waits for the peer.
func (s *session) kill() {
	if socket := s.socket.Load(); socket != nil {
		_ = (*socket).Close() // it may be closed already, which is what is wanted
	}
}

// bound cuts the connection unless release is called in time: no request waits for a dead peer for long. A broker that
// blocks is not dead; it answers when it unblocks.
func (s *session) bound() (release func()) {
	timer := time.AfterFunc(s.responseTimeout, func() {
		if s.blocked.Load() == nil {
			s.kill()
		}
	})
	if s.window == nil {
		return func() { timer.Stop() }
	}
	lowered := s.window.lift()
	return func() {
		timer.Stop()
		lowered()
	}
}

func (s *session) close() {
	_ = s.conn.CloseDeadline(time.Now().Add(closeTimeout)) // gone either way
	s.kill()
}

// link keeps a session standing.
type link struct {
	conn    *Connection
	purpose string
	window  *window // may be nil

	mu      sync.Mutex
	current *session
	err     error         // why there is no current session
	changed chan struct{} // closed when current changes
}

func newLink(c *Connection, purpose string, w *window, s *session) *link {
	return &link{conn: c, purpose: purpose, window: w, current: s, changed: make(chan struct{})}
}

// run watches the session and replaces it when it is lost, until the Connection is closed.
func (l *link) run() {
	logger := l.conn.config.Logger.With("connection", l.purpose)
	ctx := l.conn.life
	for s := l.current; s != nil; {
		err := l.watch(ctx, s, logger)
		l.set(nil, err)
		if ctx.Err() != nil {
			s.close()
			return
		}
		s.kill()
		l.conn.config.Watcher.ConnectionLost(l.purpose)
		logger.WarnContext(ctx, "connection to RabbitMQ lost", "error", err)
		if s = l.reconnect(ctx, logger); s != nil {
			logger.InfoContext(ctx, "connection to RabbitMQ restored")
			l.set(s, nil)
		}
	}
}

// watch returns when the session is over, with the reason.
func (l *link) watch(ctx context.Context, s *session, logger *slog.Logger) error {
	closed := s.conn.NotifyClose(make(chan *amqp091.Error, 1))
	blocked := s.conn.NotifyBlocked(make(chan amqp091.Blocking, 1))
	for {
		select {
		case <-ctx.Done():
			return ErrClosed
		case reason := <-closed:
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
				logger.WarnContext(ctx, "RabbitMQ blocks its publishers", "reason", b.Reason)
			default:
				s.blocked.Store(nil)
				logger.InfoContext(ctx, "RabbitMQ takes messages again")
			}
		}
	}
}

func (l *link) reconnect(ctx context.Context, logger *slog.Logger) *session {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval, waits.Multiplier = 100*time.Millisecond, maxReconnectWait, 2
	for {
		timer := time.NewTimer(waits.NextBackOff())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		s, err := l.conn.connect(ctx, l.purpose, l.window)
		if err == nil {
			return s
		}
		if ctx.Err() == nil {
			l.set(nil, err)
			logger.WarnContext(ctx, "cannot reconnect to RabbitMQ, will try again", "error", err)
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

// session waits for a session that stands, and is not the one that the caller has found lost. The error wraps ctx's, and
// why there is none.
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
