package console_test

import (
	"context"
	"database/sql"
	"net/http"
	"net/url"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/deadletter"
)

func TestAuditPage(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, console.Config{Access: console.Access{Token: readToken, WriteToken: writeToken}, Try: passAll})
	v, reader := s.logIn(writeToken), s.logIn(readToken)
	_, body := reader.get("/audit")
	require.Contains(t, body, "No entries match.")

	// One of each.
	for _, path := range s.writes()[:3] {
		response, body := v.post(path, url.Values{"form_token": {v.formToken("/")}})
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		require.Contains(t, body, secret)
	}
	s.ingest(deadletter.Letter{ID: "named", Body: []byte("no JSON"), Failure: deadletter.Failure{Handler: "charge", Reason: secret + " is unknown"}})
	form := v.confirmation("discard", "handler=charge&contains="+url.QueryEscape(secret)+"&contains="+url.QueryEscape(secret))
	form.Set("reason", "CLINIC-9")
	response, _ := v.post("/dead-letters/discard", form)
	require.Equal(t, http.StatusSeeOther, response.StatusCode)
	letter, err := s.table.Find(t.Context(), "named")
	require.NoError(t, err)
	require.Equal(t, deadletter.Discarded, letter.State)

	found, err := audit.NewLog(s.store.SQL()).List(t.Context(), audit.Filter{By: "Kim"}, 10)
	require.NoError(t, err)
	actions := []audit.Action{}
	for _, e := range found {
		actions = append(actions, e.Action)
		require.NotContains(t, e.Subject.String()+e.Reason, secret)
		require.Equal(t, "console, 127.0.0.1", e.Source)
	}
	require.Equal(t, []audit.Action{audit.Discard, audit.Reveal, audit.Reveal, audit.Reveal}, actions)
	require.Contains(t, s.log.String(), "handler charge")
	require.NotContains(t, s.log.String(), secret)

	_, body = reader.get("/audit?action=discard&by=Kim")
	require.Contains(t, body, "CLINIC-9")
	require.NotContains(t, body, "<td>reveal</td>")
	_, body = reader.get("/audit?before=" + strconv.FormatInt(found[2].ID, 10))
	require.Contains(t, body, s.Failing.ID.String())
	require.NotContains(t, body, "<td>discard</td>")
	for path, problem := range map[string]string{
		"/audit?action=look": "Action must be one of the list.", "/audit?before=x": "before must be a number", "/audit?from=now": "From must be a time",
	} {
		response, body := reader.get(path)
		require.Equal(t, http.StatusBadRequest, response.StatusCode, path)
		require.Contains(t, body, problem)
	}

	require.NoError(t, s.store.SQL().Write(t.Context(), "test", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "ALTER TABLE worker_audit RENAME TO elsewhere")
		return err
	}))
	_, body = reader.get("/dead-letters")
	require.Contains(t, body, "The latest actions cannot be read")
	require.Contains(t, body, "send-message", "the letters are shown all the same")
	for _, path := range s.writes()[:3] {
		response, body := v.post(path, url.Values{"form_token": {v.formToken("/")}})
		require.GreaterOrEqual(t, response.StatusCode, 500, path)
		require.NotContains(t, body, secret, "it cannot be recorded")
	}
}
