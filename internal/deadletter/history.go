package deadletter

import (
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a history, which travels in a header.
const (
	// MaxIncidents is how many incidents a history has. Of a longer one the middle is left out.
	MaxIncidents = 16
	// maxIncidentReason bounds the reason of an incident in bytes; that of the last failure is longer.
	maxIncidentReason = 256
)

// IncidentKind is what befell a message.
type IncidentKind string

// Kinds of [Incident]. A letter that was restored has besides the [State] that it was in.
const (
	Failed   IncidentKind = "failed"
	Replayed IncidentKind = "replayed"
	Edited   IncidentKind = "edited"
	Omitted  IncidentKind = "omitted" // stands for Attempts incidents that are left out
)

// Incident is what befell a message that is, or was, a dead letter.
type Incident struct {
	Kind IncidentKind `json:"kind"`
	At   time.Time    `json:"at"`
	// Handler, Attempts and Reason are of a failure; the reason also of an edit.
	Handler  string `json:"handler,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// ReplayID is of a replay.
	ReplayID string `json:"replay_id,omitempty"`
	// By is who did it, where that is known.
	By string `json:"by,omitempty"`
}

// History is what befell a message, oldest first.
type History []Incident

// With returns the history with more incidents. It keeps the first and the latest, up to [MaxIncidents], and says how
// many it left out between them. h is not changed.
func (h History) With(incidents ...Incident) History {
	all := append(append(History{}, h...), incidents...)
	for i := range all {
		all[i].Reason = cutText(all[i].Reason, maxIncidentReason)
	}
	if len(all) <= MaxIncidents {
		return all
	}
	// The first stays, then comes what is left out, then the latest.
	latest := all[len(all)-(MaxIncidents-2):]
	gap := Incident{Kind: Omitted}
	for _, i := range all[1 : len(all)-len(latest)] {
		gap.At = i.At
		if i.Kind == Omitted {
			gap.Attempts += i.Attempts
		} else {
			gap.Attempts++
		}
	}
	return append(History{all[0], gap}, latest...)
}

// incident is the failure as an incident of the past.
func (f Failure) incident() Incident {
	return Incident{Kind: Failed, At: f.LastFailed, Handler: f.Handler, Attempts: f.Attempts, Reason: f.Reason}
}

// Header is the history as the text of [HistoryKey]; "" if it is empty.
func (h History) Header() string {
	if len(h) == 0 {
		return ""
	}
	b, err := json.Marshal(h)
	if err != nil { // a time of a year that JSON has not
		return ""
	}
	return string(b)
}

// parseHistory reads what [History.Header] wrote. What is no history is none.
func parseHistory(header string) History {
	var h History
	if header == "" || json.Unmarshal([]byte(header), &h) != nil {
		return nil
	}
	return h
}

// CutReason cuts a reason to [MaxReasonBytes], at a character's edge, and makes it valid UTF-8.
func CutReason(reason string) string { return cutText(reason, MaxReasonBytes) }

func cutText(s string, most int) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= most {
		return s
	}
	cut := most - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
