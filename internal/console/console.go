// Package console is a web console on the worker's HTTP address: the state of the worker, what is in the store, what caused
// what, and what failed, to be replayed. It shows event_data only on request, and logs that it did.
//
// Pages are made on the server and need no JavaScript to be read; a script of a few lines keeps them up to date. All that
// they use is served from here.
package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/causation"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
)

// readTimeout bounds what a page reads from the store and of the dead letters.
const readTimeout = 20 * time.Second

// Store is what the console reads.
type Store interface {
	causation.Store
	End(ctx context.Context) (store.Position, error)
	Search(ctx context.Context, s store.Search, q store.Query) (store.Page, error)
	ByAggregate(ctx context.Context, aggregateType string, aggregateID uuid.UUID, q store.Query) (store.Page, error)
}

// Config is what a console is made of.
type Config struct {
	Store   Store
	Letters *deadletter.Table
	// Queued counts the dead letters that are in the broker's queue and not in the table yet. It may be nil: there are none.
	Queued func(ctx context.Context) (int, error)
	// Try finds out what would become of letters if they were replayed now. It may be nil.
	Try func(ctx context.Context, f deadletter.Filter) iter.Seq2[handlers.Outcome, error]
	// Status looks at the worker.
	Status func(ctx context.Context) Status
	// Aggregates make the aggregates whose state is shown after each event.
	Aggregates []func() events.Stateful
	Access     Access
	Logger     *slog.Logger
}

// Console is the handler of all the console's pages. It is safe for concurrent use.
type Console struct {
	store      Store
	letters    *deadletter.Table
	waiting    counter
	queued     counter
	try        func(ctx context.Context, f deadletter.Filter) iter.Seq2[handlers.Outcome, error]
	status     func(ctx context.Context) Status
	aggregates map[string]func() events.Stateful
	access     Access
	logger     *slog.Logger

	pages    map[string]*template.Template
	assets   fs.FS
	handler  http.Handler
	seal     seal
	throttle throttle
	flow     recorder
	lastLook chan overviewPage // holds the last one while nobody looks
	live     atomic.Int64      // streams
	left     leavers
	jobs     jobs
}

var (
	//go:embed templates
	templateFiles embed.FS
	//go:embed assets
	assetFiles embed.FS
)

// New makes a console. [Console.Close] ends what it has begun.
func New(ctx context.Context, config Config) (*Console, error) {
	c := &Console{
		store: config.Store, letters: config.Letters,
		waiting: counter{count: config.Letters.Count, gap: sampleGap}, queued: counter{count: config.Queued, gap: queueGap},
		try: config.Try, status: config.Status,
		aggregates: map[string]func() events.Stateful{}, access: config.Access, logger: config.Logger, seal: newSeal(), lastLook: make(chan overviewPage, 1),
	}
	c.lastLook <- overviewPage{}
	for _, empty := range config.Aggregates {
		c.aggregates[empty().AggregateType()] = empty
	}
	c.jobs.begin(ctx)
	var err error
	if c.pages, err = parsePages(); err != nil {
		return nil, fmt.Errorf("read the console's pages: %w", err)
	}
	if c.assets, err = fs.Sub(assetFiles, "assets"); err != nil {
		return nil, fmt.Errorf("read the console's assets: %w", err)
	}
	c.handler = c.guard(c.routes())
	return c, nil
}

// Close ends what runs in the background, and returns when it has.
func (c *Console) Close() { c.jobs.end() }

// ServeHTTP implements [http.Handler].
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

func (c *Console) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]http.HandlerFunc{
		"GET /{$}":           c.overview,
		"GET /live/overview": c.liveOverview,
		"GET /find":          c.find,

		"GET /events":                           c.events,
		"GET /events/{id}":                      c.event,
		"POST /events/{id}/reveal":              c.event,
		"GET /aggregates/{type}/{id}":           c.aggregate,
		"POST /aggregates/{type}/{id}/reveal":   c.aggregate,
		"GET /traces/{id}":                      c.trace,
		"GET /dead-letters":                     c.deadLetters,
		"GET /dead-letters/letter/{id}":         c.deadLetter,
		"POST /dead-letters/letter/{id}/reveal": c.deadLetter,
		"POST /dead-letters/replay":             c.replay,
		"POST /dead-letters/try":                c.tryLetters,
		"POST /dead-letters/archive":            c.archiveLetters,
		"GET /replays/{id}":                     c.job,
		"GET /live/replays/{id}":                c.liveJob,
		"POST /replays/{id}/stop":               c.stopJob,

		"GET /login":   c.login,
		"POST /login":  c.logIn,
		"POST /logout": c.logOut,
		"POST /theme":  c.theme,
	} {
		mux.HandleFunc(pattern, handle)
	}
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", http.FileServerFS(c.assets)))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.refuse(w, r, http.StatusNotFound, "There is no such page.")
	})
	return mux
}

// page is what every page shows.
type page struct {
	Name, Title string
	Viewer      viewer
	// Path is where the page is, to come back to.
	Path string
	// Letters is how many dead letters wait, 0 if that is not known.
	Letters int
	Body    any
}

// render writes a page, whole or not at all.
func (c *Console) render(w http.ResponseWriter, r *http.Request, status int, name, title string, body any) {
	p := page{Name: name, Title: title, Viewer: viewerOf(r.Context()), Path: "/", Body: body}
	if p.Viewer.Role != nobody {
		p.Letters = c.waiting.latest(r.Context())
	}
	if r.Method == http.MethodGet {
		p.Path = r.URL.RequestURI()
	}
	var out bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&out, "page", p); err != nil {
		c.logger.ErrorContext(r.Context(), "console: cannot make a page", "page", name, "error", err)
		http.Error(w, "the page cannot be made: see the log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // the client has gone: nobody is left to tell
}

// fragment makes a part of a page.
func (c *Console) fragment(ctx context.Context, name, part string, body any) ([]byte, error) {
	var out bytes.Buffer
	err := c.pages[name].ExecuteTemplate(&out, part, page{Viewer: viewerOf(ctx), Letters: c.waiting.latest(ctx), Body: body})
	return out.Bytes(), err
}

// fail answers with an error of the store or of the dead letters.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, problem := http.StatusInternalServerError, "This could not be read: "+err.Error()
	query, badQuery := errors.AsType[*store.QueryError](err)
	switch {
	case errors.Is(err, store.ErrNoEvent), errors.Is(err, causation.ErrNotFound):
		status, problem = http.StatusNotFound, "There is no event with this id."
	case badQuery:
		status, problem = http.StatusBadRequest, "The address of this page is wrong: "+query.Error()+"."
	case errors.Is(err, context.DeadlineExceeded):
		status, problem = http.StatusGatewayTimeout, "The answer did not come in time."
	case errors.Is(err, store.ErrUnavailable):
		status, problem = http.StatusServiceUnavailable, "The store cannot be reached at the moment."
	}
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		c.logger.WarnContext(r.Context(), "console: cannot answer", "path", r.URL.Path, "error", err)
	}
	c.refuse(w, r, status, problem)
}

// uuidIn is the UUID in a request's path; if there is none it has answered.
func (c *Console) uuidIn(w http.ResponseWriter, r *http.Request, name string) (uuid.UUID, bool) {
	id, err := uuid.Parse(r.PathValue(name))
	if err != nil || id == uuid.Nil {
		c.refuse(w, r, http.StatusNotFound, "The id in the address is not a UUID.")
		return uuid.Nil, false
	}
	return id, true
}
