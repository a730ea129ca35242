package console_test

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
)

// Names come from other programs: they are isolated, and what is invisible or reverses text shows.
func TestNamesAreShownAsText(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	s.ingest(deadletter.Letter{ID: "odd", Body: []byte("no JSON"), Failure: deadletter.Failure{Handler: "send\u202email", Reason: "it\u200bfails"}},
		deadletter.Letter{ID: "blank", Body: bodyOf(t, events.Event{
			ID: uuid.New(), Type: " ", AggregateType: "Patient", AggregateID: uuid.New(), AggregateVersion: 1, TenantID: uuid.New(), CreatedAt: time.Now(), Data: []byte("{}"),
		}), Failure: deadletter.Failure{Handler: "welcome-patient", Reason: "no type"}})
	_, body := s.visitor().get("/dead-letters")
	require.NotContains(t, body, "\u202e")
	require.Contains(t, body, "send·mail")
	require.Contains(t, body, "it·fails")
	require.Contains(t, body, `<a class="strong" href="/dead-letters/letter/blank">(blank)</a>`)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/dead-letters", nil)
	require.NoError(t, err)
	_, body = s.visitor().asItIs(request)
	require.Contains(t, body, "<bdi>send·mail</bdi>")
	require.Contains(t, body, "<bdi>(blank)</bdi>")
}

// The links of a list that is filtered keep its filter.
func TestLinksOfFilteredListsKeepTheFilter(t *testing.T) {
	t.Parallel()
	s := newSite(t, console.Access{})
	v := s.visitor()
	query := url.Values{"handler": {"send-message"}, "after": {s.Letter}}
	_, body := v.get("/dead-letters?" + query.Encode())
	require.Contains(t, body, `href="/dead-letters?handler=send-message">Newest</a>`)
	after := nextCursor(t, v, "/events?type=AppointmentScheduled&from=2020-01-01T00:00")
	_, body = v.get("/events?type=AppointmentScheduled&from=2020-01-01T00:00&after=" + after)
	require.Contains(t, html.UnescapeString(body), `href="/events?from=2020-01-01T00%3A00&type=AppointmentScheduled">Newest</a>`)
}

// nextCursor appends events until a list has two pages, and returns the cursor of the second.
func nextCursor(t *testing.T, v visitor, list string) string {
	t.Helper()
	for range 51 {
		e := v.s.Scheduled
		e.ID, e.AggregateID, e.AggregateVersion = uuid.New(), uuid.New(), 1
		require.NoError(t, v.s.store.Append(t.Context(), e))
	}
	_, body := v.get(list)
	found := regexp.MustCompile(`rel="next" href="/events\?after=([^"&]+)&amp;`).FindStringSubmatch(body)
	require.Len(t, found, 2)
	return found[1]
}
