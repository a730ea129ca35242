package console_test

import (
	"html"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/console"
)

// hidden returns the hidden fields of the form that appends the event of a preview.
func hidden(t *testing.T, body string) url.Values {
	t.Helper()
	_, form, found := strings.Cut(body, `class="panel confirm"`)
	require.True(t, found, body)
	form, _, _ = strings.Cut(form, "</form>")
	values := url.Values{}
	for _, field := range regexp.MustCompile(`name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(form, -1) {
		values.Set(field[1], html.UnescapeString(field[2]))
	}
	return values
}

func TestAppend(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{Access: console.Access{Token: readToken, WriteToken: writeToken}, Types: []string{"AppointmentMoved"}})
	v := s.logIn(writeToken)
	e := s.Scheduled
	form := url.Values{
		"form_token": {v.formToken("/append")}, "event_type": {"AppointmentMoved"}, "aggregate_type": {e.AggregateType},
		"aggregate_id": {e.AggregateID.String()}, "tenant_id": {e.TenantID.String()}, "event_data": {"{\n \"to\": 1.50\n}"}, "reason": {secret},
	}
	count := func() int {
		t.Helper()
		version, err := s.store.Version(t.Context(), e.AggregateType, e.AggregateID)
		require.NoError(t, err)
		return version
	}
	before := count()
	for name, change := range map[string]url.Values{
		"Enter a reason": {"reason": {" "}}, "not valid JSON": {"event_data": {`{"a":}`}}, "twice": {"event_data": {`{"a":1,"a":2}`}},
		"UUID": {"aggregate_id": {"x"}}, "event_type": {"event_type": {""}}, "not valid JSON: ": {"event_data": {`{}} {"event_type":"Other"}`}},
		"tenant_id": {"tenant_id": {""}}, "belongs to another tenant": {"tenant_id": {uuid.NewString()}},
		"is of the type Appointment": {"aggregate_type": {"Apointment"}},
	} {
		wrong := maps.Clone(form)
		maps.Copy(wrong, change)
		response, body := v.post("/append", wrong)
		require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode, name)
		require.Contains(t, body, name)
		require.Contains(t, body, `name="tenant_id" value="`+wrong.Get("tenant_id")+`"`, "the form keeps what was entered")
	}
	response, body := v.post("/append", form)
	require.Equal(t, http.StatusOK, response.StatusCode, body)
	require.Contains(t, body, "not appended yet")
	require.NotContains(t, body, "No handler of this worker")
	require.Equal(t, before, count())

	confirmed := hidden(t, body)
	response, _ = v.post("/append", confirmed)
	require.Equal(t, http.StatusSeeOther, response.StatusCode)
	require.Equal(t, "/events/"+confirmed.Get("event_id"), response.Header.Get("Location"))
	response, _ = v.post("/append", confirmed)
	require.Equal(t, "/events/"+confirmed.Get("event_id"), response.Header.Get("Location"), "sent twice, appended once")
	require.Equal(t, before+1, count())
	found, err := s.store.ByID(t.Context(), uuid.MustParse(confirmed.Get("event_id")))
	require.NoError(t, err)
	require.JSONEq(t, `{"to": 1.50}`, string(found.Data))
	require.JSONEq(t, `{"appended_by": "Kim", "reason": "`+secret+`"}`, string(found.Metadata))
	require.NotContains(t, s.log.String(), secret, "a reason may be about a patient")
	require.Contains(t, s.log.String(), confirmed.Get("event_id"))

	form.Set("event_type", "AppointmentMovd")
	_, body = v.post("/append", form)
	require.Contains(t, body, "No event in the store has the type AppointmentMovd yet, and no handler of this worker is for it.")
	late := hidden(t, body)
	form.Set("event_type", "AppointmentMoved")
	_, body = v.post("/append", form)
	_, _ = v.post("/append", hidden(t, body))
	response, body = v.post("/append", late)
	require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)
	require.Contains(t, body, "Another event of this aggregate was appended since the preview")
	require.Equal(t, before+2, count())

	r := s.logIn(readToken)
	response, _ = r.get("/append")
	require.Equal(t, http.StatusForbidden, response.StatusCode)
}
