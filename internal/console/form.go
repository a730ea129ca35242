package console

import (
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// inputTime is the format of times in browser forms.
const inputTime = "2006-01-02T15:04"

// formReader parses a form and collects problems. With problems, the form must not be used.
type formReader struct {
	url.Values

	problems []string
}

// id returns the UUID in a field, nil if the field is empty. A nil UUID in the field is a problem, as it would match all.
func (f *formReader) id(name, label string) uuid.UUID {
	text := strings.TrimSpace(f.Get(name))
	if text == "" {
		return uuid.Nil
	}
	id, err := events.ParseCorrelationID(text)
	if err != nil || id == uuid.Nil {
		f.problems = append(f.problems, label+" must be a UUID.")
	}
	return id
}

// at returns the time in a field, zero if the field is empty.
func (f *formReader) at(name, label string) time.Time {
	text := strings.TrimSpace(f.Get(name))
	if text == "" {
		return time.Time{}
	}
	for _, layout := range []string{inputTime, "2006-01-02T15:04:05", time.RFC3339Nano, time.DateOnly} {
		if parsed, err := time.Parse(layout, text); err == nil {
			return parsed.UTC()
		}
	}
	f.problems = append(f.problems, label+" must be a time in UTC like 2026-03-31T14:05.")
	return time.Time{}
}
