package amqp_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/test/testservers"
)

// setPolicy sets a policy, or an operator policy, for the queues that match a pattern.
func setPolicy(t *testing.T, broker, kind, pattern, definition string) {
	t.Helper()
	manage(t, http.MethodPut, "/api/"+kind+"/"+url.PathEscape(vhostOf(t, broker))+"/"+uniqueName(pattern),
		fmt.Sprintf(`{"pattern":%q,"apply-to":"queues","definition":%s}`, pattern, definition))
}

func uniqueName(pattern string) string { return strings.Trim(pattern, "^$") + "-test" }

// quorumByDefault is a vhost in which queues are quorum queues if their declaration does not say what they are.
func quorumByDefault(t *testing.T) string {
	t.Helper()
	broker := testservers.RabbitMQ(t)
	manage(t, http.MethodPut, "/api/vhosts/"+url.PathEscape(vhostOf(t, broker)), `{"default_queue_type":"quorum"}`)
	return broker
}

// hasDefaultLimit tells whether quorum queues of the broker have a delivery limit by default, as they have since RabbitMQ 4.
func hasDefaultLimit(t *testing.T, broker string) bool {
	t.Helper()
	survey, err := amqp.Inspect(t.Context(), amqp.Config{URL: broker})
	require.NoError(t, err)
	return !strings.HasPrefix(survey.Version, "3.")
}

// Each limit by which the broker drops or dead-letters by itself is named, with its source and what it does.
func TestPoliciesAndLimitsOfTheQueuesAreNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		queue, kind, definition string
		want                    []string
	}{
		"ttl of events":  {"consumer", "policies", `{"message-ttl":60000}`, []string{"message-ttl 60000 ms (policy ", "dead-letters what has waited"}},
		"ttl of letters": {"failed", "operator-policies", `{"message-ttl":60000}`, []string{"message-ttl 60000 ms (operator policy ", "drops what has waited"}},
		"expires":        {"failed", "policies", `{"expires":600000}`, []string{"expires 600000 ms (policy ", "deletes the queue"}},
		"drop-head":      {"failed", "policies", `{"max-length":7}`, []string{"max-length 7 (policy ", "drops the oldest"}},
		"drop-head of events": {
			"consumer", "policies", `{"max-length-bytes":70000,"overflow":"drop-head"}`,
			[]string{"max-length-bytes 70000 (", "dead-letters the oldest"},
		},
		"reject-publish":    {"failed", "policies", `{"max-length":7,"overflow":"reject-publish"}`, []string{"max-length 7 (", "refuses dead letters", "messages now: 0"}},
		"reject of events":  {"consumer", "policies", `{"max-length":7,"overflow":"reject-publish"}`, []string{"refuses events", "The relay then waits"}},
		"a partition":       {"consumer.1", "policies", `{"max-length":7}`, []string{"dead-letters the oldest"}},
		"a retry queue":     {"retry.1m", "policies", `{"expires":600000,"message-ttl":70000}`, []string{"expires 600000 ms ("}},
		"delivery-limit":    {"failed", "policies", `{"delivery-limit":5}`, []string{"delivery-limit 5 (policy ", "drops a message that was returned"}},
		"none that matters": {"failed", "policies", `{"delivery-limit":1000000}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := partitionable(t)
			c := amqp.Config{URL: broker, ManagementURL: testservers.RabbitMQManagement(t), RetryLater: []time.Duration{time.Minute}}
			if strings.HasPrefix(name, "delivery") || test.want == nil {
				c.QueueType = amqp.QuorumQueues
			}
			if test.queue == "consumer.1" {
				c.Partitions = 2
			}
			setPolicy(t, broker, test.kind, "^healz.events."+test.queue+"$", test.definition)
			dial(t, c)
			limits, err := amqp.QueueLimits(t.Context(), c)
			require.NoError(t, err)
			if test.want == nil {
				require.Empty(t, limits)
				return
			}
			require.Len(t, limits, 1)
			for _, want := range append(test.want, "queue healz.events."+test.queue+" has ") {
				require.Contains(t, limits[0], want)
			}
		})
	}
}

// A policy for all queues would delete the locks, too.
func TestPolicyThatDeletesTheLock(t *testing.T) {
	t.Parallel()
	broker := testservers.RabbitMQ(t)
	c := amqp.Config{URL: broker, ManagementURL: testservers.RabbitMQManagement(t)}
	setPolicy(t, broker, "policies", "reader$", `{"expires":600000,"max-length":1}`)
	conn := dial(t, c)
	subscribe(t, conn)
	limits, err := amqp.QueueLimits(t.Context(), c)
	require.NoError(t, err)
	require.Len(t, limits, 1)
	require.Contains(t, limits[0], "queue healz.events.consumer.reader has expires 600000 ms")
	require.Contains(t, limits[0], "the lock")
}

// The default queue type of a vhost brings RabbitMQ 4's delivery limit with it, which a policy lifts.
func TestPolicyLiftsTheDefaultDeliveryLimitOfQuorumQueues(t *testing.T) {
	t.Parallel()
	broker := quorumByDefault(t)
	c := amqp.Config{URL: broker, ManagementURL: testservers.RabbitMQManagement(t)}
	dial(t, c)
	limits, err := amqp.QueueLimits(t.Context(), c)
	require.NoError(t, err)
	if !hasDefaultLimit(t, broker) {
		require.Empty(t, limits)
		return
	}
	require.Len(t, limits, 2)
	require.Contains(t, limits[0], "queue healz.events.failed has delivery-limit 20 (the broker's default): the broker drops")
	require.Contains(t, limits[1], "queue healz.events.consumer has delivery-limit 20 (the broker's default): the broker dead-letters")
	setPolicy(t, broker, "policies", "^healz", `{"delivery-limit":-1}`)
	require.Eventually(t, func() bool {
		limits, err = amqp.QueueLimits(t.Context(), c)
		return err == nil && len(limits) == 0
	}, patience, 100*time.Millisecond)
}

// Whatever prevents the look is said, and no error contains the password.
func TestPoliciesThatCannotBeSeen(t *testing.T) {
	t.Parallel()
	answer := func(status int, body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, body)
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	for name, test := range map[string]struct{ url, want string }{
		"no API":         {"http://127.0.0.1:1", "ask RabbitMQ's management API: "},
		"no tag":         {answer(http.StatusUnauthorized, `{"error":"not_authorised","reason":"Not management user"}`), "401"},
		"something else": {answer(http.StatusOK, "<html>"), "invalid character"},
		"no URL":         {"amqp://s3cret@x", "not http[s]://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := amqp.QueueLimits(t.Context(), amqp.Config{URL: "amqp://guest:s3cret@127.0.0.1/", ManagementURL: test.url})
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
}

// What the broker dead-letters by itself says so as its reason.
func TestPolicyIsTheReasonOfWhatTheBrokerDeadLetters(t *testing.T) {
	t.Parallel()
	for reason, definition := range map[string]string{
		"expired": `{"message-ttl":1}`, "maxlen": `{"max-length":1}`, "delivery_limit": `{"delivery-limit":2}`,
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			broker := testservers.RabbitMQ(t)
			c := dial(t, amqp.Config{URL: broker, QueueType: amqp.QuorumQueues})
			setPolicy(t, broker, "policies", "^healz.events.consumer$", definition)
			ch := raw(t, broker)
			for range 2 {
				require.NoError(t, ch.PublishWithContext(t.Context(), "", consumerQueue, true, false, amqp091.Publishing{Body: []byte("x")}))
			}
			require.Eventually(t, func() bool {
				if d, ok, err := ch.Get(consumerQueue, false); reason == "delivery_limit" && ok {
					require.NoError(t, err)
					require.NoError(t, d.Nack(false, true))
				}
				return count(t, ch, failedQueue) > 0
			}, patience, time.Millisecond)
			letters := lettersOf(t, c)
			require.Equal(t, "dead-lettered by the broker: "+reason, letters[0].Reason)
			require.Equal(t, consumerQueue, letters[0].Source)
		})
	}
}

// Recorded answers of RabbitMQ 3.10.8 and 4.0.5.
func TestPolicyOfRecordedAnswers(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		`{"type":"classic","arguments":{"x-max-length":7},"policy":null,"operator_policy":"op1","effective_policy_definition":{"max-length":3},"messages":0}`:                                                  "max-length 3 (operator policy op1)",
		`{"type":"classic","arguments":{"x-max-length":2,"x-queue-type":"classic"},"policy":"p","operator_policy":"op1","effective_policy_definition":{"max-length":3},"messages":0}`:                          "max-length 2 (argument of the queue)",
		`{"type":"quorum","arguments":{"x-delivery-limit":1000000000,"x-queue-type":"quorum"},"policy":null,"operator_policy":null,"effective_policy_definition":{},"delivery_limit":1000000000,"messages":0}`: "",
		`{"type":"quorum","arguments":{"x-queue-type":"quorum"},"policy":null,"operator_policy":null,"effective_policy_definition":{},"delivery_limit":20,"messages":0}`:                                       "delivery-limit 20 (the broker's default)",
		`{"type":"quorum","arguments":{"x-queue-type":"quorum"},"policy":null,"operator_policy":null,"effective_policy_definition":{},"delivery_limit":"unlimited","messages":0}`:                              "",
		`{"type":"quorum","arguments":{"x-queue-type":"quorum"},"policy":null,"operator_policy":null,"effective_policy_definition":{}}`:                                                                        "",
		`{"type":"classic","arguments":{},"policy":"p","operator_policy":null,"effective_policy_definition":{"delivery-limit":5}}`:                                                                             "",
	} {
		var state amqp.QueueState
		require.NoError(t, json.Unmarshal([]byte(answer), &state))
		limits := state.Limits("q", amqp.LettersQueue)
		if want == "" {
			require.Empty(t, limits, answer)
			continue
		}
		require.Len(t, limits, 1, answer)
		require.Contains(t, limits[0], want)
	}
}
