package amqp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

const (
	// limitsTimeout bounds all requests to the management API together: the first answers after a start lack the policies.
	limitsTimeout  = time.Minute
	limitsInterval = time.Second
	// maxAnswer is more than the management API says of a queue.
	maxAnswer = 1 << 20
	// frequentReturns is a delivery limit that is not reached: a message would have to be returned that often.
	frequentReturns = 100_000
)

// AdviceOnLimits says what to do about [QueueLimits].
const AdviceOnLimits = "change the policy, or its pattern, so that it does not limit this queue; the default delivery-limit of " +
	"RabbitMQ 4 is lifted by a policy with delivery-limit -1; an argument of the queue only by deleting the empty queue, which the " +
	"worker then declares"

// ErrNoPolicies is wrapped by the error of [QueueLimits] if the broker does not tell.
var ErrNoPolicies = errors.New("the policies and limits of the queues are not known")

// errNoStatistics says that the broker has not collected yet what a queue's policy is: it does so every five seconds.
var errNoStatistics = errors.New("the broker has no statistics of the queues yet")

// QueueLimits returns, in one line each, the limits by which the broker drops or dead-letters messages of the worker's queues
// by itself, refuses them, or deletes a queue. They are mostly set by policies. AMQP does not tell of these, so the
// management API is asked.
func QueueLimits(ctx context.Context, c Config) (limits []string, err error) {
	c = c.withDefaults()
	m, err := newManagement(c)
	if err != nil {
		return nil, err
	}
	defer m.client.CloseIdleConnections()
	t := c.topology()
	ask := func(queue string, r role) {
		found, problem := m.limitsOf(ctx, queue, r)
		limits = append(limits, found...)
		if problem != nil && err == nil {
			err = fmt.Errorf("%w: %w", ErrNoPolicies, problem)
		}
	}
	for _, p := range t.parts() {
		if p.exchangeType == "" {
			ask(p.name, t.roleOf(p.name))
		}
	}
	ask(t.consumerQueue+lockSuffix, lockQueue)
	ask(t.failedQueue+lockSuffix, lockQueue)
	return limits, err
}

// WarnOfLimits logs [QueueLimits], and [Bindings.Unneeded], soon.
func (c *Connection) WarnOfLimits(ctx context.Context) {
	c.spawn(func() {
		ctx, cancel := c.whileOpen(context.WithoutCancel(ctx))
		defer cancel()
		ctx, stop := context.WithTimeout(ctx, limitsTimeout)
		defer stop()
		limits, err := QueueLimits(ctx, c.config)
		for _, limit := range limits {
			c.config.Logger.WarnContext(ctx, "the broker may drop or dead-letter messages by itself", "limit", limit,
				"advice", AdviceOnLimits)
		}
		if err != nil && c.life.Err() == nil {
			c.config.Logger.InfoContext(ctx, "cannot see whether the broker may drop or dead-letter messages by itself", "reason", err)
		}
		if b, err := InspectBindings(ctx, c.config); err == nil && len(b.Unneeded) > 0 {
			c.config.Logger.WarnContext(ctx, "the queue is bound to event types that this worker does not need", "queue", c.consumerQueue,
				"types", b.Unneeded, "advice", AdviceOnUnneeded)
		}
	})
}

// role is what a queue is for.
type role int

const (
	eventsQueue role = iota
	lettersQueue
	retryQueue
	lockQueue
)

func (t topology) roleOf(queue string) role {
	_, isPartition := t.partitionOf(queue)
	switch {
	case queue == t.failedQueue:
		return lettersQueue
	case queue == t.consumerQueue || isPartition:
		return eventsQueue
	default:
		return retryQueue
	}
}

// management is the broker's HTTP API.
type management struct {
	client         http.Client
	base           *url.URL
	user, password string
	vhost          string
}

var errManagementURL = errors.New("the URL of RabbitMQ's management API is not http[s]://host:port")

func newManagement(c Config) (*management, error) {
	uri, err := amqp091.ParseURI(c.URL)
	if err != nil {
		return nil, errURL
	}
	m := &management{
		client: http.Client{
			Transport:     &http.Transport{},                                                             // without a proxy, which would see the password
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // nor another server
		},
		base: &url.URL{Scheme: "http", Host: net.JoinHostPort(uri.Host, "15672")},
		user: uri.Username, password: uri.Password, vhost: uri.Vhost,
	}
	if uri.Scheme == "amqps" {
		m.base = &url.URL{Scheme: "https", Host: net.JoinHostPort(uri.Host, "15671")}
	}
	if c.ManagementURL == "" {
		return m, nil
	}
	if m.base, err = ParseManagementURL(c.ManagementURL); err != nil {
		return nil, err
	}
	if m.base.User != nil {
		m.user = m.base.User.Username()
		m.password, _ = m.base.User.Password()
		m.base.User = nil
	}
	return m, nil
}

// ParseManagementURL parses [Config.ManagementURL]. The error does not quote it.
func ParseManagementURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errManagementURL
	}
	return u, nil
}

// queueState is what the management API says of a queue.
type queueState struct {
	Type           string         `json:"type"`
	Arguments      map[string]any `json:"arguments"`
	Policy         string         `json:"policy"`
	OperatorPolicy string         `json:"operator_policy"`
	// Effective are both policies. It is absent for some seconds after the queue is declared.
	Effective map[string]any `json:"effective_policy_definition"`
	// DeliveryLimit includes the default of RabbitMQ 4; earlier versions have neither.
	DeliveryLimit any `json:"delivery_limit"`
	Messages      int `json:"messages"`
	// Unacked is absent until the broker has counted.
	Unacked *int `json:"messages_unacknowledged"`
}

// limitsOf are the limits of a queue. A lock need not exist.
func (m *management) limitsOf(ctx context.Context, queue string, r role) ([]string, error) {
	for {
		state, err := m.state(ctx, queue)
		switch {
		case errors.Is(err, errNoStatistics):
			if pause(ctx, limitsInterval); ctx.Err() != nil {
				return nil, err
			}
		case err == nil && state == nil && r != lockQueue:
			return nil, fmt.Errorf("RabbitMQ's management API at %s does not know queue %s", m.base.Host, queue)
		case err != nil || state == nil:
			return nil, err
		default:
			return state.limits(queue, r), nil
		}
	}
}

// state asks for a queue; nil if it does not exist.
func (m *management) state(ctx context.Context, queue string) (*queueState, error) {
	var state queueState
	if found, err := m.get(ctx, &state, "queues", m.vhost, queue); err != nil || !found {
		return nil, err
	}
	if state.Effective == nil {
		return nil, errNoStatistics
	}
	return &state, nil
}

// get asks for something by its path, and tells whether it exists.
func (m *management) get(ctx context.Context, answer any, path ...string) (found bool, err error) {
	at := m.base.JoinPath("api")
	for _, element := range path {
		at = at.JoinPath(url.PathEscape(element))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return false, err
	}
	request.SetBasicAuth(m.user, m.password)
	response, err := m.client.Do(request)
	if err != nil {
		return false, fmt.Errorf("ask RabbitMQ's management API: %w", err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return false, nil
	default:
		return false, fmt.Errorf("RabbitMQ's management API at %s answers %s", m.base.Host, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(answer); err != nil {
		return false, fmt.Errorf("RabbitMQ's management API at %s: %w", m.base.Host, err)
	}
	return true, nil
}

// limits says what each limit does.
func (s *queueState) limits(queue string, r role) (limits []string) {
	effects := map[string]string{"expires": "the broker deletes the queue, with all that it holds, when nothing has consumed it for that long"}
	drops := "drops"
	if s.text("dead-letter-exchange") != "" {
		drops = "dead-letters"
	}
	switch r {
	case lockQueue:
		effects["expires"] = "the broker deletes the lock while a worker has it, and a second one then works at the same time"
	case retryQueue: // that its messages expire is what it is for
	case eventsQueue, lettersQueue:
		effects["message-ttl"] = "the broker " + drops + " what has waited for that long"
		effects["max-length"] = s.overflow(drops, r)
		effects["max-length-bytes"] = effects["max-length"]
		effects["delivery-limit"] = "the broker " + drops + " a message that was returned more often, and each stop and each lost " +
			"connection of a worker returns what it has prefetched"
	}
	for _, key := range []string{"message-ttl", "max-length", "max-length-bytes", "expires", "delivery-limit"} {
		value, source := s.number(key)
		effect := effects[key]
		if effect == "" || source == "" || key == "delivery-limit" && value >= frequentReturns {
			continue
		}
		unit := ""
		if key == "message-ttl" || key == "expires" {
			unit = " ms"
		}
		limits = append(limits, fmt.Sprintf("queue %s has %s %d%s (%s): %s", queue, key, value, unit, source, effect))
	}
	return limits
}

// overflow says what the broker does when the queue is full.
func (s *queueState) overflow(drops string, r role) string {
	switch {
	case !strings.HasPrefix(s.text("overflow"), "reject-publish"):
		return fmt.Sprintf("the broker %s the oldest messages when there are more (messages now: %d)", drops, s.Messages)
	case r == lettersQueue:
		return fmt.Sprintf("the broker refuses dead letters when it is full (messages now: %d). Those of a worker are then "+
			"written to the table; those of the broker and of other programs are lost", s.Messages)
	default:
		return fmt.Sprintf("the broker refuses events when it is full (messages now: %d). The relay then waits; programs that "+
			"publish without confirms lose events", s.Messages)
	}
}

// text is a setting of which the queue's argument has precedence over a policy.
func (s *queueState) text(key string) string {
	argument, _ := s.Arguments["x-"+key].(string)
	policy, _ := s.Effective[key].(string)
	return cmp.Or(argument, policy)
}

// number is the lower one of the queue's argument and the policies, with its source; that is "" if there is no limit.
func (s *queueState) number(key string) (value int64, source string) {
	value = math.MaxInt64
	lower := func(v any, from string) {
		if n, ok := v.(float64); ok && n >= 0 && int64(n) < value {
			value, source = int64(n), from
		}
	}
	lower(s.Arguments["x-"+key], "argument of the queue")
	var policies []string
	if s.Policy != "" {
		policies = append(policies, "policy "+s.Policy)
	}
	if s.OperatorPolicy != "" {
		policies = append(policies, "operator policy "+s.OperatorPolicy)
	}
	lower(s.Effective[key], strings.Join(policies, ", "))
	if limit, ok := s.DeliveryLimit.(float64); key == "delivery-limit" && (s.Type != QuorumQueues || s.DeliveryLimit != nil && !ok) {
		return 0, ""
	} else if key == "delivery-limit" && ok && source == "" {
		return int64(limit), "the broker's default"
	}
	return value, source
}
