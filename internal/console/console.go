// Package console is a web console on the HTTP address of the worker. It shows the state of the worker, the events of the
// store, their traces, and the dead letters, which can be replayed. It shows event_data only on request, and logs that.
//
// Pages are rendered on the server and work without JavaScript; a short script updates them. All resources are embedded.
package console

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
)

// readTimeout bounds the queries of a page.
const readTimeout = 20 * time.Second

// Store is the part of a store that the console reads.
type Store interface {
	causation.Store
	End(ctx context.Context) (store.Position, error)
	Search(ctx context.Context, s store.Search, q store.Query) (store.Page, error)
	ByAggregate(ctx context.Context, aggregateType string, aggregateID uuid.UUID, q store.Query) (store.Page, error)
	Stream(ctx context.Context, aggregateType string, aggregateID uuid.UUID, afterVersion int) iter.Seq2[events.Event, error]
}

// Config contains the dependencies of a console.
type Config struct {
	Store   Store
	Letters *deadletter.Table
	// Queued counts the dead letters in the failed queue that are not ingested yet. It may be nil.
	Queued func(ctx context.Context) (int, error)
	// Try is a dry run of a replay.
	Try func(ctx context.Context, f deadletter.Filter, by audit.Actor) iter.Seq2[handlers.Outcome, error]
	// Status returns the state of the worker.
	Status func(ctx context.Context) Status
	// Aggregates create the aggregates whose state is shown after each event.
	Aggregates []func() events.Stateful
	// Appender appends the events of writers.
	Appender intake.Recorder
	// Audit records what viewers do.
	Audit *audit.Log
	// Types and Handlers are the names of the registered event types and handlers, for the search.
	Types, Handlers []string
	Access          Access
	Logger          *slog.Logger
}

// Console is the handler of all pages. It is safe for concurrent use.
type Console struct {
	store      Store
	letters    *deadletter.Table
	waiting    counter
	queued     counter
	audit      *audit.Log
	try        func(ctx context.Context, f deadletter.Filter, by audit.Actor) iter.Seq2[handlers.Outcome, error]
	status     func(ctx context.Context) Status
	aggregates map[string]func() events.Stateful
	appender   intake.Recorder
	types      []string
	handlers   []string
	access     Access
	logger     *slog.Logger

	pages     map[string]*template.Template
	assets    map[string]asset
	handler   http.Handler
	sessions  *sessions
	formToken string // of viewers without a session
	throttle  throttle
	flow      recorder
	overviews chan overviewPage // contains the last one, except while a request renews it
	live      streams
	jobs      jobs
}

var (
	//go:embed templates
	templateFiles embed.FS
	//go:embed assets
	assetFiles embed.FS
)

// New returns a console. [Console.Close] ends its background work.
func New(ctx context.Context, config Config) (*Console, error) {
	c := &Console{
		store: config.Store, letters: config.Letters,
		waiting: counter{count: config.Letters.Count, interval: sampleInterval, last: unknownCount}, queued: counter{count: config.Queued, interval: queueInterval, last: unknownCount},
		audit: config.Audit, try: config.Try, status: config.Status,
		aggregates: map[string]func() events.Stateful{}, appender: config.Appender, types: config.Types, handlers: config.Handlers, access: config.Access, logger: config.Logger, formToken: rand.Text(),
		overviews: make(chan overviewPage, 1),
	}
	c.overviews <- overviewPage{}
	for _, empty := range config.Aggregates {
		c.aggregates[empty().AggregateType()] = empty
	}
	c.jobs.open(ctx)
	var err error
	if c.sessions, err = newSessions(config.Access); err != nil {
		return nil, err
	}
	files, err := fs.Sub(assetFiles, "assets")
	if err != nil {
		return nil, fmt.Errorf("open the assets of the console: %w", err)
	}
	if c.assets, err = readAssets(files); err != nil {
		return nil, err
	}
	if c.pages, err = parsePages(c.assets); err != nil {
		return nil, fmt.Errorf("parse the pages of the console: %w", err)
	}
	c.handler = c.guard(c.routes())
	return c, nil
}

// Close ends the replays of the console, and waits for them.
func (c *Console) Close() { c.jobs.close() }

// ServeHTTP implements [http.Handler].
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

func (c *Console) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]handler{
		"GET /{$}":  c.overview,
		"GET /find": c.find,

		"GET /append":                           c.appendForm,
		"POST /append":                          c.append,
		"GET /events":                           c.events,
		"GET /events/{id}":                      c.event,
		"POST /events/{id}/reveal":              c.event,
		"GET /aggregates/{type}/{id}":           c.aggregate,
		"POST /aggregates/{type}/{id}/reveal":   c.aggregate,
		"GET /traces/{id}":                      c.trace,
		"GET /audit":                            c.auditLog,
		"GET /dead-letters":                     c.deadLetters,
		"GET /dead-letters/letter/{id}":         c.deadLetter,
		"POST /dead-letters/letter/{id}/reveal": c.deadLetter,
		"GET /dead-letters/replay":              c.confirm,
		"POST /dead-letters/replay":             c.replay,
		"GET /dead-letters/archive":             c.confirm,
		"GET /dead-letters/discard":             c.confirm,
		"GET /dead-letters/restore":             c.confirm,
		"POST /dead-letters/try":                c.tryLetters,
		"POST /dead-letters/archive":            c.putAside,
		"POST /dead-letters/discard":            c.putAside,
		"POST /dead-letters/restore":            c.putAside,
		"GET /replays/{id}":                     c.job,
		"POST /replays/{id}/stop":               c.stopJob,

		// Addresses that a form was sent to can be shared and opened.
		"GET /events/{id}/reveal":              withoutReveal,
		"GET /aggregates/{type}/{id}/reveal":   withoutReveal,
		"GET /dead-letters/letter/{id}/reveal": withoutReveal,
		"GET /dead-letters/try":                toLetters,

		"GET /login":   c.login,
		"POST /login":  c.logIn,
		"POST /logout": c.logOut,
		"POST /theme":  c.theme,
	} {
		mux.HandleFunc(pattern, c.page(bounded(handle)))
	}
	mux.HandleFunc("GET /live/overview", c.page(c.liveOverview))
	mux.HandleFunc("GET /live/replays/{id}", c.page(c.liveJob))
	mux.HandleFunc("GET /assets/{name}", c.page(c.asset))
	mux.HandleFunc("/", c.page(func(http.ResponseWriter, *http.Request) error {
		return refusal{http.StatusNotFound, "This page does not exist."}
	}))
	return mux
}

func withoutReveal(w http.ResponseWriter, r *http.Request) error {
	return redirect(w, r, strings.TrimSuffix(r.URL.EscapedPath(), "/reveal"))
}

func toLetters(w http.ResponseWriter, r *http.Request) error {
	return redirect(w, r, link("/dead-letters", r.URL.RawQuery))
}

// handler is a page or an action. Its error is the response.
type handler func(http.ResponseWriter, *http.Request) error

func (c *Console) page(handle handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			c.fail(w, r, err)
		}
	}
}

// bounded bounds the time of a request.
func bounded(handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		timeout := readTimeout
		if r.Method == http.MethodPost {
			timeout = actTimeout
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		return handle(w, r.WithContext(ctx))
	}
}

// refusal is the error of a request that is at fault itself.
type refusal struct {
	status  int
	problem string
}

func (r refusal) Error() string { return r.problem }

// retrySeconds is the time after which a page is loaded again that failed as the store is unavailable, and slowRetrySeconds that
// after another failure, which may have cost the store a long query.
const retrySeconds, slowRetrySeconds = 3, 30

// problemPage says why a request failed.
type problemPage struct {
	Problem, Cause string
	At             time.Time
	// Retries is the number of seconds after which the page is loaded again, 0 if it is not.
	Retries int
}

type page struct {
	Name, Title string
	Viewer      viewer
	// At is when the page was read.
	At time.Time
	// Path is the address of the page, to return to it.
	Path string
	// Letters is the number of waiting dead letters, or [unknownCount].
	Letters int
	// Types and Handlers are suggested in forms.
	Types, Handlers []string
	Body            any
}

// render writes a page. If its template fails, it writes an error instead, and returns nil, too.
func (c *Console) render(w http.ResponseWriter, r *http.Request, status int, name, title string, body any) error {
	p := page{Name: name, Title: title, Viewer: viewerOf(r.Context()), At: time.Now(), Path: "/", Types: c.types, Handlers: c.handlers, Body: body}
	if p.Viewer.Role != nobody {
		p.Letters = c.waiting.latest(r.Context())
	}
	if r.Method == http.MethodGet {
		p.Path = r.URL.RequestURI()
	}
	var out bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&out, "page", p); err != nil {
		c.logger.ErrorContext(r.Context(), "console: cannot render a page", "page", name, "error", err)
		http.Error(w, "the page cannot be rendered: see the log", http.StatusInternalServerError)
		return nil
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	respond(w, r, status, out.Bytes())
	return nil
}

func (c *Console) fragment(ctx context.Context, name, part string, body any) ([]byte, error) {
	var out bytes.Buffer
	err := c.pages[name].ExecuteTemplate(&out, part, page{Viewer: viewerOf(ctx), Letters: c.waiting.latest(ctx), Body: body})
	return out.Bytes(), err
}

// fail responds with a refusal, or with an error of the store or of the dead letters.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemPage{Problem: "The query failed.", Cause: err.Error(), At: time.Now()}
	status := http.StatusInternalServerError
	query, badQuery := errors.AsType[*store.QueryError](err)
	refused, isRefused := errors.AsType[refusal](err)
	switch {
	case isRefused:
		status, p.Problem, p.Cause = refused.status, refused.problem, ""
	case errors.Is(err, store.ErrNoEvent), errors.Is(err, causation.ErrNotFound):
		status, p.Problem, p.Cause = http.StatusNotFound, "There is no event with this id.", ""
	case badQuery:
		status, p.Problem, p.Cause = http.StatusBadRequest, "The address of this page is invalid: "+query.Error()+".", ""
	case errors.Is(err, context.DeadlineExceeded):
		status, p.Problem = http.StatusGatewayTimeout, "The query timed out."
	case errors.Is(err, store.ErrUnavailable):
		status, p.Problem = http.StatusServiceUnavailable, "The store is unavailable: nothing can be read or changed now."
	}
	if !isRefused && status >= http.StatusInternalServerError && r.Context().Err() == nil {
		c.logger.WarnContext(r.Context(), "console: a request failed", "path", r.URL.Path, "error", err)
	}
	if status >= http.StatusInternalServerError && r.Method == http.MethodGet {
		p.Retries = slowRetrySeconds
		if status == http.StatusServiceUnavailable {
			p.Retries = retrySeconds
		}
		w.Header().Set("Refresh", strconv.Itoa(p.Retries))
	}
	if viewerOf(r.Context()).Role == nobody { // a cause may name servers and users
		p.Cause = ""
	}
	_ = c.render(w, r, status, "problem", http.StatusText(status), p)
}

// uuidIn returns the UUID in the path of a request.
func uuidIn(r *http.Request, name string) (uuid.UUID, error) {
	id, err := uuid.Parse(r.PathValue(name))
	if err != nil || id == uuid.Nil {
		return uuid.Nil, refusal{http.StatusNotFound, "The id in the address is not a UUID."}
	}
	return id, nil
}
