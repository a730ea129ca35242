package console

import (
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// inputTime is how a browser's form writes a time.
const inputTime = "2006-01-02T15:04"

// formReader reads what a form asks for, and collects what in it is wrong: then it is not to be acted on.
type formReader struct {
	url.Values

	problems []string
}

// id is the UUID in a field, the nil one if the field is empty; a nil one that is given is wrong, as it would choose all.
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

// at is the time in a field, the zero one if the field is empty.
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
	f.problems = append(f.problems, label+" must be a time in UTC, as 2026-03-31T14:05.")
	return time.Time{}
}
