package cli

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/test/testservers"
)

type named struct {
	Name string `json:"name"`
}

type accountOpened struct{}

func (accountOpened) EventType() string     { return "AccountOpened" }
func (accountOpened) AggregateType() string { return "Account" }

type accountAnnounced struct{}

func (accountAnnounced) EventType() string     { return "AccountAnnounced" }
func (accountAnnounced) AggregateType() string { return "Announcement" }

// registerService registers the handlers of a service that is none of the clinic's.
func registerService(name string, reg *handlers.Registry) {
	follow := func(data events.Opening) func(context.Context, events.Event, named) ([]events.Event, error) {
		return func(_ context.Context, e events.Event, d named) ([]events.Event, error) {
			if d.Name == "" && e.Type == "PatientRegistered" && os.Getenv(asMended) == "" {
				return nil, handlers.Permanent(errors.New("who pays?"))
			}
			return events.Follow(e, data)
		}
	}
	switch name {
	case "billing":
		handlers.On(reg, "PatientRegistered", "open-account", follow(accountOpened{}))
	case "billing of old":
		handlers.OnEach(reg, []string{"PatientRegistered", "Visit"}, "open-account", follow(accountOpened{}))
	case "messaging":
		handlers.On(reg, "AccountOpened", "announce", follow(accountAnnounced{}))
	}
}

// as is the program of another service on the same servers.
func (p *program) as(service, which string, env ...string) *program {
	other := *p
	other.env = slices.Concat(p.env, env, []string{asWorker + "=" + which, "WORKER_SERVICE=" + service})
	return &other
}

// Three services on one database and one exchange: each handles each event of its types, has its own dead letters, and replays
// those of others.
func TestServices(t *testing.T) {
	t.Parallel()
	clinic := onServers(t)
	clinic.env = append(clinic.env, "WORKER_RABBITMQ_MANAGEMENT_URL="+testservers.RabbitMQManagement(t))
	billing, messaging := clinic.as("billing", "billing"), clinic.as("messaging", "messaging")
	messages := messaging.start()
	accounts, patients := billing.start(), clinic.start()
	e := clinic.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	clinic.awaitFollowUp(e, "WelcomeMessageRequested")
	clinic.awaitFollowUp(clinic.awaitFollowUp(e, "AccountOpened"), "AccountAnnounced")
	require.Len(t, clinic.chain(e.CorrelationID), 4)
	require.Contains(t, accounts.log.String(), "handler=billing/open-account")

	e = clinic.append(registration(uuid.NewString(), `{"name":""}`, ""))[0]
	letters := clinic.awaitLetters(2)
	var of []string
	for _, l := range letters {
		of = append(of, l.Handler)
	}
	require.ElementsMatch(t, []string{"welcome-patient", "billing/open-account"}, of)

	tried := billing.run("", "dlq", "try")
	require.Contains(t, tried.out, "who pays?")
	require.Contains(t, tried.out, "it is of a worker that has no service name")
	tried = messaging.run("", "dlq", "try", "--handler", "billing/open-account")
	require.Equal(t, exitUnknown, tried.code)
	require.Contains(t, tried.out, "it is of service billing")

	// The leader, which sends the letter, is another service.
	accounts.stop()
	patients.stop()
	mended := clinic.as("billing", "billing", asMended+"=1")
	require.Contains(t, mended.must("", "dlq", "try", "--handler", "billing/open-account"), "would pass")
	accounts = mended.start()
	messaging.must("", "dlq", "replay", "--handler", "billing/open-account")
	clinic.awaitFollowUp(e, "AccountOpened")
	require.Equal(t, "welcome-patient", clinic.awaitLetters(1)[0].Handler)
	accounts.stop()
	messages.stop()
}

// Without a broker, the worker that relays would handle the events of all services on a database. Commands need none.
func TestAServiceOnPostgresNeedsABroker(t *testing.T) {
	t.Parallel()
	p := newProgram(t, "DATABASE_URL="+testservers.Postgres(t), "WORKER_SERVICE=billing")
	p.must("", "migrate", "up")
	p.must("", "dlq", "list")
	for _, command := range []string{"run", "doctor"} {
		r := p.run("", command, "--http-addr", "127.0.0.1:0")
		require.NotZero(t, r.code)
		require.Contains(t, r.out+r.err, `service "billing" on Postgres: this needs RabbitMQ`)
	}
	alone := embedded(t).as("billing", "billing")
	e := alone.append(registration(uuid.NewString(), `{"name":"Ana"}`, ""))[0]
	alone.start()
	alone.awaitFollowUp(e, "AccountOpened")
}

// Another version's types stay bound until an operator removes them.
func TestTypesOfAnOlderVersionAreUnbound(t *testing.T) {
	t.Parallel()
	clinic := onServers(t)
	clinic.env = append(clinic.env, "WORKER_RABBITMQ_MANAGEMENT_URL="+testservers.RabbitMQManagement(t))
	clinic.as("billing", "billing of old").start().stop()
	billing := clinic.as("billing", "billing")
	running := billing.start()
	require.Eventually(t, func() bool {
		return strings.Contains(running.log.String(), "bound to event types that this worker does not need") && strings.Contains(running.log.String(), "Visit")
	}, patience, tick)
	require.Contains(t, billing.run("", "doctor").out, "healz.events.billing is bound to event types that this program does not need: Visit")
	for _, wrong := range [][]string{{"unbind", "PatientRegistered"}, {"unbind"}, {"unbind", "Visit", "--service="}, {"unbind", "Visit", "--service=Billing"}} {
		require.NotZero(t, billing.run("", wrong...).code, wrong)
	}
	r := billing.run("", "unbind", "Visit")
	require.Zero(t, r.code, r.err)
	require.Contains(t, billing.run("", "doctor").out, "healz.events.billing gets the events that handlers are for")
	running.stop()
}
