package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/intake"
	"github.com/healz/worker/internal/store"
)

// appendPage is the form of an event, and what would be appended.
type appendPage struct {
	Form url.Values
	// Problem says why the event cannot be appended.
	Problem string
	// Event is the preview, nil without one. Data is its event_data.
	Event *events.Event
	Data  string
	// Known is set if a handler of this worker is for its type, or an event in the store has it.
	Known bool
}

// appendForm shows the empty form, with the fields that the address has.
func (c *Console) appendForm(w http.ResponseWriter, r *http.Request) error {
	if !viewerOf(r.Context()).MayWrite() {
		return mayOnlyRead()
	}
	return c.render(w, r, http.StatusOK, "append", "Append an event", appendPage{Form: r.URL.Query()})
}

// append shows a preview of an event, or appends the event of a preview. A preview fixes the id, so that an event is not
// appended twice.
func (c *Console) append(w http.ResponseWriter, r *http.Request) error {
	p := appendPage{Form: r.PostForm}
	refuse := func(problem string) error {
		p.Problem = problem
		return c.render(w, r, http.StatusUnprocessableEntity, "append", "Append an event", p)
	}
	reason := strings.TrimSpace(p.Form.Get("reason"))
	if reason == "" || len(reason) > maxReason {
		return refuse("Enter a reason of at most 500 bytes: it becomes part of the event, in its metadata.")
	}
	v := viewerOf(r.Context())
	line, err := lineOf(p.Form, v.Who, reason)
	if err != nil {
		return refuse("The event_data is not valid JSON: " + err.Error() + ".")
	}
	id, confirmed := uuid.Parse(p.Form.Get("event_id"))
	into := intake.Audited(c.appender, v.actor(reason))
	if confirmed != nil {
		into = preview{c.appender, c.store}
	}
	e, err := appendLine(r.Context(), into, line)
	if duplicate, is := errors.AsType[*store.DuplicateError](err); is && duplicate.EventID == id {
		return redirect(w, r, "/events/"+id.String()) // the form was sent twice
	}
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) {
		if confirmed == nil { // the same event can be sent again, and is appended once
			if draft, err := events.ParseDraft(line); err == nil {
				p.Event, p.Data, p.Known = &draft, pretty(draft.Data), true
			}
		}
		p.Problem = "The store is unavailable: try again. " + err.Error()
		return c.render(w, r, http.StatusServiceUnavailable, "append", "Append an event", p)
	}
	if errors.Is(err, events.ErrConflict) {
		p.Form.Del("event_id")
		return refuse("Another event of this aggregate was appended since the preview. Look at it, then preview yours again.")
	}
	if cause, is := errors.AsType[*intake.LineError](err); is {
		return refuse("The event cannot be appended: " + cause.Err.Error() + ".")
	}
	if err != nil {
		return err
	}
	if confirmed == nil {
		c.logger.InfoContext(r.Context(), "console: an event was appended", "who", v.Who, "client", v.Client.String(), "event_id", e.ID.String())
		return redirect(w, r, "/events/"+e.ID.String())
	}
	p.Event, p.Data, p.Known = &e, pretty(e.Data), slices.Contains(c.types, e.Type)
	if !p.Known {
		others, err := c.store.Search(r.Context(), store.Search{Type: e.Type}, store.Query{Limit: 1, WithoutData: true})
		if err != nil {
			return err
		}
		p.Known = len(others.Events) > 0
	}
	return c.render(w, r, http.StatusOK, "append", "Append an event", p)
}

// appendFields are the fields of the form; the first four are fields of the event.
func appendFields() []string {
	return []string{"event_type", "aggregate_type", "aggregate_id", "tenant_id", "event_data", "reason"}
}

// preview is a store that appends nothing, and refuses what the store would refuse.
type preview struct {
	intake.Versions

	store Store
}

func (p preview) AppendMany(ctx context.Context, batch []events.Event) error {
	for _, e := range batch {
		if err := e.Validate(); err != nil {
			return &intake.LineError{Line: 1, Err: err}
		}
		of, err := p.store.Search(ctx, store.Search{AggregateID: e.AggregateID}, store.Query{Limit: 1, WithoutData: true})
		switch {
		case err != nil:
			return err
		case len(of.Events) == 0:
		case of.Events[0].TenantID != e.TenantID:
			return &intake.LineError{Line: 1, Err: errors.New("the aggregate belongs to another tenant")}
		case of.Events[0].AggregateType != e.AggregateType:
			return &intake.LineError{Line: 1, Err: fmt.Errorf("the aggregate is of the type %s", of.Events[0].AggregateType)}
		}
	}
	return nil
}

func appendLine(ctx context.Context, s intake.Store, line []byte) (events.Event, error) {
	for batch, err := range intake.Append(ctx, s, bytes.NewReader(line), 1) {
		if err != nil {
			return events.Event{}, err
		}
		return batch[0], nil
	}
	return events.Event{}, &intake.LineError{Line: 1, Err: errors.New("it is empty")}
}

// lineOf returns the event of a form as a JSON line. Its metadata says who appends it and why.
func lineOf(form url.Values, who, reason string) ([]byte, error) {
	event := map[string]any{"metadata": map[string]any{"appended_by": who, "reason": reason}}
	for _, name := range append([]string{"event_id", "correlation_id"}, appendFields()[:4]...) {
		if value := strings.TrimSpace(form.Get(name)); value != "" {
			event[name] = value
		}
	}
	if version, err := strconv.Atoi(form.Get("aggregate_version")); err == nil { // of the preview
		event["aggregate_version"] = version
	}
	var data bytes.Buffer // on one line, and with its keys as they are, so that a key that it has twice is refused
	if err := json.Compact(&data, []byte(form.Get("event_data"))); err != nil {
		return nil, err
	}
	line, err := json.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("encode the event: %w", err)
	}
	return fmt.Appendf(nil, `%s,"event_data":%s}`, bytes.TrimSuffix(line, []byte("}")), data.Bytes()), nil
}
