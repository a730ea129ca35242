package deadletter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/events"
)

// Headers that a replayed message carries besides [bus.ReplayHandlerKey]. They stay with it when it fails again.
const (
	// ReplayCountKey counts how often the message was replayed.
	ReplayCountKey = "replay_count"
	// ReplayIDKey names the replay that sent it last.
	ReplayIDKey = "replay_id"
	// ReplayOfKey is the id of the letter that it was then.
	ReplayOfKey = "replay_of"
	// HistoryKey holds its [History].
	HistoryKey = "dead_letter_history"
	// ReplayServiceKey names the service of that letter, by the routing key of its dead letters: only there the outcome counts.
	ReplayServiceKey = "replay_service"
)

// ReplayKeys are these headers.
func ReplayKeys() []string {
	return []string{ReplayCountKey, ReplayIDKey, ReplayOfKey, HistoryKey, ReplayServiceKey}
}

// Failure says why a message became a dead letter.
type Failure struct {
	// Reason is the text of the last error. It quotes nothing of event_data.
	Reason string
	// Handler is the name of the handler that failed; "" when the message reached none, as when it is no event.
	Handler string
	// Attempts is how often the handler was tried; 0 when the message was parked behind another.
	Attempts    int
	FirstFailed time.Time
	LastFailed  time.Time
	// MayPass tells that trying again later may help: what was tried is exhausted, and the error is not permanent. A
	// letter does not keep it.
	MayPass bool
}

// Letter is a message that failed, with the story of its failure. Only Body and Headers are certain: the message may
// come from a program that knows nothing of the worker, and its body need not be an event.
type Letter struct {
	// ID names the letter for life: it stays the same when the letter is replayed and fails again.
	ID string
	// State is the state of the letter, and Decided says who decided it, if a person or a replay did.
	State   State
	Decided Decision
	// Event is the body's event, as far as it could be read.
	Event events.Event
	// Type is the event's type, as the body or else the headers have it; "" if neither does.
	Type string
	// Group is the [Group.ID] of the group that the letter belongs to.
	Group string
	// Failure is the last one; History tells of those before.
	Failure
	// History is what befell the message before its last failure, oldest first.
	History History
	// Replays is how often it was replayed, ReplayID the last replay, and ReplayOf the letter's id then; 0 and "" if it
	// never was.
	Replays            int
	ReplayID, ReplayOf string
	// Source is where a replay puts the letter: the queue on a broker.
	Source string
	// Headers are the message's headers without those of the failure and of replays.
	Headers map[string]any
	// Body is the message's body. A letter of a list has none: Bytes tells how long it is.
	Body  []byte
	Bytes int
	// Raw is all of the message but its body, with properties and headers of every type, as the broker's package wrote
	// it: JSON, without loss. It is nil where Headers, being text, are all there is.
	Raw json.RawMessage
}

// State says what has become of a letter.
type State string

// States of letters.
const (
	// Waiting: an operator has to decide about it.
	Waiting State = "waiting"
	// Replaying: it was released by a replay. It becomes handled, or waiting again when it fails.
	Replaying State = "replaying"
	// Archived: it was put away, perhaps to be restored. What is parked behind it goes on waiting.
	Archived State = "archived"
	// Discarded: it is not to be handled. No event is parked behind it any longer.
	Discarded State = "discarded"
	// Superseded: it is the original of a letter that was edited.
	Superseded State = "edited"
	// Settled: a replay of it was handled.
	Settled State = "handled"
)

// Decision is who decided what becomes of a letter, why and when.
type Decision struct {
	By, Reason string
	At         time.Time
}

// Complete fills in what can be read from the other fields: event, type and group, and what the headers tell of earlier
// replays, which it takes out of them.
func Complete(l Letter) Letter {
	l.Event = events.ParsePartial(l.Body)
	l.Bytes = len(l.Body)
	text := func(key string) string {
		s, _ := l.Headers[key].(string)
		return s
	}
	if l.Type == "" {
		l.Type = l.Event.Type
	}
	if l.Type == "" {
		l.Type = text(bus.EventTypeKey)
	}
	l.Group, _ = Fingerprint(l.Handler, l.Type, l.Reason)
	l.Replays, _ = strconv.Atoi(text(ReplayCountKey)) // absent is none
	l.ReplayID, l.ReplayOf = text(ReplayIDKey), text(ReplayOfKey)
	l.History = parseHistory(text(HistoryKey))
	l.Headers = maps.Clone(l.Headers)
	for _, key := range ReplayKeys() {
		if _, ok := l.Headers[key].(string); ok {
			delete(l.Headers, key)
		}
	}
	return l
}

// past is the history with the last failure, which came before what was decided and edited since.
func (l Letter) past() History {
	at := len(l.History)
	for at > 0 && !slices.Contains([]IncidentKind{Failed, Replayed, Omitted}, l.History[at-1].Kind) {
		at--
	}
	return slices.Insert(slices.Clone(l.History), at, l.incident())
}

// Encode writes the message and the failures of a letter as one line of JSON, from which [Decode] reads them without
// loss. State and Decided are not in it. The body is in it, which may be about a patient: it is meant for archives and
// exports, not for logs.
func (l Letter) Encode() ([]byte, error) {
	c := encoded{
		ID: l.ID, Type: l.Type, Reason: l.Reason, Handler: l.Handler, Attempts: l.Attempts,
		FirstFailed: optional(l.FirstFailed), LastFailed: optional(l.LastFailed),
		History: l.History, Replays: l.Replays, ReplayID: l.ReplayID, ReplayOf: l.ReplayOf, Source: l.Source, Raw: l.Raw, Body: l.Body,
	}
	if l.Raw == nil {
		c.Headers = l.Headers
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode dead letter %s: %w", l.ID, err)
	}
	return b, nil
}

// Decode reads what [Letter.Encode] wrote. The error quotes nothing of it.
func Decode(line []byte) (Letter, error) {
	var c encoded
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber() // headers keep every digit
	if decoder.Decode(&c) != nil {
		return Letter{}, errEncoding
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Letter{}, errEncoding
	}
	l := Complete(Letter{
		ID: c.ID, Type: c.Type, Source: c.Source, Headers: c.Headers, Body: c.Body, Raw: c.Raw,
		Failure: Failure{
			Reason: c.Reason, Handler: c.Handler, Attempts: c.Attempts,
			FirstFailed: orZero(c.FirstFailed), LastFailed: orZero(c.LastFailed),
		},
	})
	l.History, l.Replays, l.ReplayID, l.ReplayOf = c.History, c.Replays, c.ReplayID, c.ReplayOf
	return l, nil
}

type encoded struct {
	ID          string          `json:"id"`
	Type        string          `json:"type,omitempty"`
	Reason      string          `json:"reason,omitempty"`
	Handler     string          `json:"handler,omitempty"`
	Attempts    int             `json:"attempts,omitempty"`
	FirstFailed *time.Time      `json:"first_failed_at,omitempty"`
	LastFailed  *time.Time      `json:"last_failed_at,omitempty"`
	History     History         `json:"history,omitempty"`
	Replays     int             `json:"replays,omitempty"`
	ReplayID    string          `json:"replay_id,omitempty"`
	ReplayOf    string          `json:"replay_of,omitempty"`
	Source      string          `json:"source,omitempty"`
	Headers     map[string]any  `json:"headers,omitempty"`
	Raw         json.RawMessage `json:"message,omitempty"`
	Body        []byte          `json:"body_base64"`
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
