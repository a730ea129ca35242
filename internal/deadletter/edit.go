package deadletter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/uuid"

	"github.com/healz/worker/internal/events"
)

// ErrUnchanged says that an edit has changed nothing, and so nothing was done.
var ErrUnchanged = errors.New("nothing was changed")

// EditedLetter tells what an edit has done.
type EditedLetter struct {
	// OriginalID names the original's row in the archive, LetterID the copy before it was replayed.
	OriginalID, LetterID string
	ReplayID             string
}

// Edit changes the body of a dead letter, and replays the copy to the handler that failed. The letter is named by its own
// id, or by that of its event if no other is of it. change returns the body as it is to be; it may ask check whether that
// is an event which the copy may be, and else the edit fails with what check says, an *[events.InvalidError].
//
// The copy is the same event: what the original says of its id, its type, its aggregate with the version and its tenant
// stays; what it lacks may be added. The original is archived as [Superseded] first, and the copy's history names it. The
// handlers that have handled the original pass the copy over, like a redelivery; see [events.EditedBody].
//
// An edit that is cut off may leave the letter in the archive, from which it can be restored.
func (a *Archive) Edit(
	ctx context.Context, id string, change func(body []byte, check func([]byte) error) ([]byte, error), d Decision,
) (EditedLetter, error) {
	l, err := a.one(ctx, id)
	if err != nil {
		return EditedLetter{}, err
	}
	body, err := change(bytes.Clone(l.Body), func(body []byte) error {
		_, err := editedBody(l, body)
		return err
	})
	if err != nil {
		return EditedLetter{}, err
	}
	if sameJSON(l.Body, body) {
		return EditedLetter{}, ErrUnchanged
	}
	if body, err = editedBody(l, body); err != nil {
		return EditedLetter{}, err
	}
	done, err := a.supersede(ctx, l, body, d)
	if err != nil {
		return done, err
	}
	// Whether the copy fails again is not waited for, and so is no error either when it does at once.
	for step, err := range a.queue.Replay(ctx, Filter{IDs: []string{done.LetterID}}, ReplayOptions{MaxFailures: -1}) {
		done.ReplayID = step.ReplayID
		if err == nil && step.Step == Kept {
			err = step.Problem
		}
		if err != nil {
			return done, fmt.Errorf("the edited copy is dead letter %s, but was not replayed: %w", done.LetterID, err)
		}
	}
	return done, nil
}

// supersede puts a letter with another body into the place of l.
func (a *Archive) supersede(ctx context.Context, l Letter, body []byte, d Decision) (EditedLetter, error) {
	var done EditedLetter
	taken, err := a.queue.Take(ctx, Filter{IDs: []string{l.ID}, Limit: 1}, func(ctx context.Context, letters []Letter) error {
		if len(letters) != 1 || letters[0].ID != l.ID || !bytes.Equal(letters[0].Body, l.Body) {
			return fmt.Errorf("dead letter %s is not the one that was edited any longer", l.ID)
		}
		ids, err := a.add(ctx, letters, Superseded, d)
		if err == nil {
			l, done.OriginalID = letters[0], ids[0]
		}
		return err
	})
	if err != nil {
		return done, fmt.Errorf("edit dead letter %s: %w", l.ID, err)
	}
	if taken == 0 {
		return done, fmt.Errorf("dead letter %s is gone meanwhile, and was not edited", l.ID)
	}
	l.Body = body
	l.History = l.History.With(Incident{
		Kind: Edited, At: time.Now().UTC().Truncate(time.Second), By: d.By,
		Reason: fmt.Sprintf("%s (original: archived letter %s)", d.Reason, done.OriginalID),
	})
	ids, err := a.queue.Return(ctx, []Letter{l})
	if err != nil {
		return done, fmt.Errorf("dead letter %s is in the archive and no longer in the queue, restore it: %w", l.ID, err)
	}
	done.LetterID = ids[0]
	return done, nil
}

// editedBody is the body of the copy of a letter, if it may be that.
func editedBody(l Letter, body []byte) ([]byte, error) {
	e, err := events.Parse(body)
	if err != nil {
		return nil, err
	}
	was := l.Event
	invalid := &events.InvalidError{}
	stays := func(field string, absent, same bool) {
		if !absent && !same {
			invalid.Fields = append(invalid.Fields, events.FieldError{Field: field, Problem: "must stay what it was"})
		}
	}
	stays("event_id", was.ID == uuid.Nil, was.ID == e.ID)
	stays("event_type", was.Type == "", was.Type == e.Type)
	stays("aggregate_type", was.AggregateType == "", was.AggregateType == e.AggregateType)
	stays("aggregate_id", was.AggregateID == uuid.Nil, was.AggregateID == e.AggregateID)
	stays("aggregate_version", was.AggregateVersion == 0, was.AggregateVersion == e.AggregateVersion)
	stays("tenant_id", was.TenantID == uuid.Nil, was.TenantID == e.TenantID)
	stays("correlation_id", was.CorrelationID == uuid.Nil, was.CorrelationID == e.CorrelationID)
	if len(invalid.Fields) > 0 {
		return nil, invalid
	}
	original, err := events.Parse(l.Body)
	if err != nil { // so nobody has handled it
		return body, nil //nolint:nilerr // that is why it is edited
	}
	return events.EditedBody(original, body)
}

// sameJSON tells whether two texts are the same but for white space.
func sameJSON(a, b []byte) bool {
	var compactA, compactB bytes.Buffer
	if json.Compact(&compactA, a) != nil || json.Compact(&compactB, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(compactA.Bytes(), compactB.Bytes())
}

// Patch applies a patch to a body: a list of operations (RFC 6902, JSON Patch), or an object that says what is other
// (RFC 7396, JSON Merge Patch). What it does not concern stays as it is written. The error quotes nothing of either.
func Patch(body, patch []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(patch, " \t\r\n"), []byte("[")) {
		patched, err := jsonpatch.MergePatch(body, patch)
		if err != nil {
			return nil, errors.New("the merge patch or the letter's body is not a JSON object")
		}
		return patched, nil
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, errors.New("the patch is not a list of JSON Patch operations")
	}
	patched, err := operations.Apply(body)
	switch {
	case errors.Is(err, jsonpatch.ErrTestFailed):
		return nil, errors.New("a test of the patch does not hold")
	case errors.Is(err, jsonpatch.ErrMissing):
		return nil, errors.New("a path of the patch is not there")
	case err != nil:
		return nil, errors.New("the patch does not fit the letter's body")
	}
	return patched, nil
}
