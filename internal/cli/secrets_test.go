package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/test/testservers"
)

// Secrets: planted is in each text of an event's data and metadata, in headers, in invalid messages and in passwords. The
// number is in the data. The accent tests whether quoting hides a text from redaction.
const (
	planted       = "pLaNtEd"
	plantedName   = planted + ` Kovačević "Ana"`
	plantedNumber = "4711471147.25"
)

// told are the forms in which a text could contain them.
var told = []string{planted, "Kova", "4711471147", "4.71147", `evi\u0107`} //nolint:gochecknoglobals // a constant

type fragileData struct {
	Mode   string  `json:"mode"`
	Name   string  `json:"name"`
	Number float64 `json:"number"`
}

// fragile is a handler that fails as its event asks for, with the data in its error.
func fragile(_ context.Context, e events.Event, d fragileData) ([]events.Event, error) {
	switch d.Mode {
	case "error":
		return nil, fmt.Errorf("no place for %s, %q, %+q, %v, %d: %s %s", d.Name, d.Name, d.Name, d.Number, int(d.Number), e.Data, e.Metadata)
	case "permanent":
		return nil, handlers.Permanent(fmt.Errorf("never a place for %+v", d))
	case "panic":
		panic(fmt.Sprintf("no idea what to do with %+v", d))
	case "panic with an error":
		panic(errors.New(d.Name))
	default:
		return events.Follow(e, followed{Mode: d.Name})
	}
}

type followed struct {
	Mode string `json:"mode"`
}

func (followed) EventType() string     { return strings.Repeat("Followed", 20) } // longer than a type may be
func (followed) AggregateType() string { return "Follower" }

// No data, metadata, header or password is in the log, in the output of commands, in the headers of a dead letter, in the
// metrics, or in the traces: after failures of events, invalid messages and connection errors of both servers.
func TestNothingIsToldOfPatientsAndPasswords(t *testing.T) {
	t.Parallel()
	database := withPassword(t, testservers.Postgres(t), planted)
	p := newProgram(t, "DATABASE_URL="+database, "RABBITMQ_URL="+withUser(t, testservers.RabbitMQ(t)))
	traces := newTraceReceiver(t)
	p.env = append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+traces.URL)
	var outputs strings.Builder
	run := func(in string, args ...string) {
		r := p.run(in, args...)
		fmt.Fprintf(&outputs, "%v:\n%s%s\n", args, r.out, r.err)
	}
	w := p.start("--chaos", "--retry-attempts", "2", "--retry-initial", "1ms")

	// Appended events: success, a retry, failures of all kinds.
	data, err := json.Marshal(map[string]any{"name": plantedName, "number": json.Number(plantedNumber), "list": []string{planted + " 2"}})
	require.NoError(t, err)
	metadata := fmt.Sprintf(`,"metadata":{"user_agent":%q,"fail_times":%%d}`, planted+" 3")
	tenant := uuid.NewString()
	lines := registration(tenant, string(data), fmt.Sprintf(metadata, 0)) +
		registration(tenant, string(data), fmt.Sprintf(metadata, 1)) +
		registration(tenant, string(data), fmt.Sprintf(metadata, 9)) +
		registration(tenant, fmt.Sprintf(`{"name":{"first":%q}}`, planted), "") +
		registration(tenant, fmt.Sprintf("%q", planted), "")
	letters := 3
	for _, mode := range []string{"error", "permanent", "panic", "panic with an error", "follow-up"} {
		body := strings.Replace(string(data), "{", fmt.Sprintf(`{"mode":%q,`, mode), 1)
		lines += strings.Replace(registration(tenant, body, fmt.Sprintf(metadata, 0)), "PatientRegistered", "Fragile", 1)
		letters++
	}
	appended := p.append(lines)
	p.awaitFollowUp(appended[0], "WelcomeMessageRequested")
	p.awaitFollowUp(appended[1], "WelcomeMessageRequested")

	// Messages of other programs: no JSON, no event, another event of the same id, planted properties.
	channel := openChannel(t, p.env[1])
	good := `{"event_id":%q,"event_type":"PatientRegistered","aggregate_type":"Patient","aggregate_id":%q,"aggregate_version":1,` +
		`"tenant_id":%q,"correlation_id":%q,"created_at":"2026-11-24T12:00:00.000Z","event_data":{"name":%q}}`
	id := uuid.NewString()
	for i, body := range []string{
		planted, `{"event_id":"` + planted, `{"event_id":"` + planted + `","aggregate_version":"` + planted + `","created_at":"` + planted + `"}`,
		`["` + planted + `"]`, fmt.Sprintf(good, id, id, tenant, id, planted), fmt.Sprintf(good, id, id, tenant, id, planted+" 4"),
		fmt.Sprintf(good, planted, id, planted, planted, planted),
	} {
		confirm, err := channel.PublishWithDeferredConfirmWithContext(t.Context(), "healz.events", "PatientRegistered", true, false,
			amqp091.Publishing{
				Body: []byte(body), MessageId: planted, CorrelationId: planted, AppId: planted, ReplyTo: planted,
				Headers: amqp091.Table{"patient": planted, "correlation_id": planted, "table": amqp091.Table{"name": planted}},
			})
		require.NoError(t, err)
		_, err = confirm.WaitContext(t.Context())
		require.NoError(t, err)
		if i != 4 { // the good one
			letters++
		}
	}
	found := p.awaitLetters(letters)

	// Outages of the servers.
	breakConnections(t, database)
	p.awaitFollowUp(p.append(registration(tenant, string(data), ""))[0], "WelcomeMessageRequested")

	run("", "dlq", "list")
	run("", "dlq", "list", "--format", "json")
	for _, l := range found {
		run("", "dlq", "show", l.ID)
		run("", "dlq", "show", l.ID, "--format", "json")
	}
	run("", "dlq", "try")
	run("", "dlq", "try", "--all-handlers", "--format", "json")
	for _, patch := range []string{planted, fmt.Sprintf("[%q]", planted), fmt.Sprintf("%q", planted), fmt.Sprintf(`{"tenant_id":%q}`, planted)} {
		run(patch, "dlq", "edit", found[0].ID, "--patch", "-", "--reason", "none")
	}
	run("", "dlq", "archive", "--all", "--reason", "none")
	run("", "dlq", "archived", "list")
	run("", "dlq", "archived", "list", "--format", "json")
	run("", "dlq", "archived", "show", found[0].ID)
	run("", "dlq", "restore", "--all")
	require.Equal(t, found, p.letters())
	run("", "events", "--tenant", tenant)
	run(planted+"\n", "append")
	run(strings.Replace(lines, tenant, planted, 1), "append")
	run(strings.Replace(lines, `"event_data"`, `"aggregate_version":7,"event_data"`, 1), "append")
	run(planted+"\n", "publish")
	run(fmt.Sprintf(`{"event_type":%q}`, planted+"#"), "publish")
	require.Empty(t, p.toldHeaders())
	run("", "dlq", "replay", "--all")
	p.awaitLetters(letters)
	_, health := w.get("/readyz")
	_, metrics := w.get("/metrics")
	w.stop()

	// Servers that refuse connections or are down.
	for _, env := range []string{
		"DATABASE_URL=" + withUserInfo(t, database, url.UserPassword("nobody_at_all", planted)),
		"DATABASE_URL=" + strings.Replace(database, "postgres://", "postgres:/"+planted+"/", 1),
		"DATABASE_URL=postgres://u:" + planted + "@127.0.0.1:1/db",
		"RABBITMQ_URL=" + withUserInfo(t, strings.TrimPrefix(p.env[1], "RABBITMQ_URL="), url.UserPassword("nobody", planted)),
		"RABBITMQ_URL=amqp://u:" + planted + "@127.0.0.1:1/",
		"RABBITMQ_URL=amqp://u:" + planted + "@127.0.0.1:x/",
	} {
		q := *p
		q.env = append(q.env[:len(q.env):len(q.env)], env)
		r := q.run("", "run", "--http-addr", "127.0.0.1:0", "--wait", "1s")
		require.NotZero(t, r.code, "%s%s", r.out, r.err)
		outputs.WriteString(r.out + r.err)
	}

	require.NotEmpty(t, traces.Bodies())
	outputs.WriteString(health + metrics + traces.Bodies())
	for _, text := range told {
		requireNowhere(t, w.log.String(), text)
		requireNowhere(t, outputs.String(), text)
	}
}

// requireNowhere fails with the lines that contain the text.
func requireNowhere(t *testing.T, output, text string) {
	t.Helper()
	for line := range strings.Lines(output) {
		require.NotContains(t, line, text)
	}
}

func withPassword(t *testing.T, address, password string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	return withUserInfo(t, address, url.UserPassword(u.User.Username(), password))
}

func withUserInfo(t *testing.T, address string, user *url.Userinfo) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.User = user
	return u.String()
}

// withUser adds a user with a planted password to the vhost.
func withUser(t *testing.T, broker string) string {
	t.Helper()
	return withUserWhoMay(t, broker, ".*")
}

// withUserWhoMay adds a user with permissions for matching names to the vhost.
func withUserWhoMay(t *testing.T, broker, names string) string {
	t.Helper()
	u, err := url.Parse(broker)
	require.NoError(t, err)
	user := "user-" + uuid.NewString()
	manage(t, http.MethodPut, "/api/users/"+user, `{"password":"`+planted+`","tags":""}`)
	t.Cleanup(func() { manage(t, http.MethodDelete, "/api/users/"+user, "") })
	vhost := url.PathEscape(strings.TrimPrefix(u.Path, "/"))
	manage(t, http.MethodPut, "/api/permissions/"+vhost+"/"+user, fmt.Sprintf(`{"configure":%[1]q,"write":%[1]q,"read":%[1]q}`, names))
	return withUserInfo(t, broker, url.UserPassword(user, planted))
}

func manage(t *testing.T, method, path, body string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	require.NoError(t, testservers.Manage(ctx, testservers.RabbitMQManagement(t), method, path, body))
}

// openChannel opens a channel with publisher confirms.
func openChannel(t *testing.T, setting string) *amqp091.Channel {
	t.Helper()
	conn, err := amqp091.Dial(strings.TrimPrefix(setting, "RABBITMQ_URL="))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, channel.Confirm(false))
	return channel
}

// toldHeaders are the headers that the worker has added to dead letters and that contain a secret.
func (p *program) toldHeaders() []string {
	p.t.Helper()
	var found []string
	for _, l := range decodeLines[struct {
		Message struct {
			Headers []any `json:"headers"` // keys and values in turn
		} `json:"message"`
	}](p.t, p.must("", "dlq", "export", "-")) {
		require.Contains(p.t, l.Message.Headers, deadletter.ReasonKey)
		for pair := range slices.Chunk(l.Message.Headers, 2) {
			switch pair[0] {
			case "patient", "correlation_id", "table": // the producer's own
				continue
			}
			for _, text := range told {
				if strings.Contains(fmt.Sprint(pair[1]), text) {
					found = append(found, fmt.Sprintf("%s: %v", pair...))
				}
			}
		}
	}
	return found
}

// breakConnections terminates all sessions of a database.
func breakConnections(t *testing.T, database string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(),
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}
