package deadletter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
)

// Disposition says for what a letter was taken out of its queue.
type Disposition string

// Dispositions of archived letters.
const (
	// Archived: it is put away, perhaps to be restored. What is parked behind it goes on waiting.
	Archived Disposition = "archived"
	// Discarded: nobody wants it handled. Nothing waits behind it any longer.
	Discarded Disposition = "discarded"
	// Superseded: it is the original of a letter that was edited.
	Superseded Disposition = "edited"
	// Imported: it came from a file, and is on its way into the queue.
	Imported Disposition = "imported"
)

// Decision is who takes letters out of their queue, and why.
type Decision struct{ By, Reason string }

// ArchivedLetter is a letter in an archive. Its row stays when the letter is restored.
type ArchivedLetter struct {
	// ID names the row, in the order in which they were added.
	ID          string
	Letter      Letter
	Disposition Disposition
	Decision
	At time.Time
	// RestoreBegun is when the letter's restoration began, which was cut off if RestoredAt is zero: it may be in the queue.
	RestoreBegun, RestoredAt time.Time
	RestoredBy               string
	// Once is the same for a letter that is archived twice, as the first time was cut off.
	Once string
}

// ArchiveTable is where a store keeps archived letters. All methods are safe for concurrent use.
type ArchiveTable interface {
	// AddArchived adds letters, all or none, and returns the ids of their rows. One whose Once the table has already, of a
	// row that is not restored or that is Imported, is not added; the id is then that row's. Nothing is parked behind
	// Discarded ones any longer.
	AddArchived(ctx context.Context, letters []ArchivedLetter) (ids []string, err error)
	// ArchivedLetters returns up to limit letters behind the row with the given id ("" is the beginning), in order.
	ArchivedLetters(ctx context.Context, afterID string, limit int) ([]ArchivedLetter, error)
	// BeginRestore notes that letters are about to be put back, and by whom.
	BeginRestore(ctx context.Context, ids []string, by string) error
	// EndRestore notes that they are back.
	EndRestore(ctx context.Context, ids []string) error
}

// Archive takes letters out of their queue, and keeps them. Whatever it does, a letter is first written to where it goes,
// and only then leaves where it was: cut off at any moment, nothing is lost.
type Archive struct {
	queue Queue
	table ArchiveTable
	// keeps tells whether the queue is of the kind that a letter belongs to.
	keeps func(Letter) bool
}

// NewBrokerArchive returns the archive, in a table, of a broker's queue.
func NewBrokerArchive(q Queue, table ArchiveTable) *Archive {
	return &Archive{queue: q, table: table, keeps: func(l Letter) bool { return l.Raw != nil }}
}

// NewShelfArchive returns the archive, in a table, of the letters on a shelf.
func NewShelfArchive(q *ShelfQueue, table ArchiveTable) *Archive {
	return &Archive{queue: q, table: table, keeps: func(l Letter) bool { return l.Raw == nil }}
}

// Put takes the letters that f chooses out of the queue, as d says, and returns how many.
func (a *Archive) Put(ctx context.Context, f Filter, disposition Disposition, d Decision) (int, error) {
	return a.queue.Take(ctx, f, func(ctx context.Context, letters []Letter) error {
		_, err := a.add(ctx, letters, disposition, d)
		return err
	})
}

func (a *Archive) add(ctx context.Context, letters []Letter, disposition Disposition, d Decision) ([]string, error) {
	now := time.Now().UTC()
	rows := make([]ArchivedLetter, len(letters))
	for i, l := range letters {
		once, err := onceOf(l)
		if err != nil {
			return nil, err
		}
		rows[i] = ArchivedLetter{Letter: l, Disposition: disposition, Decision: d, At: now, Once: once}
	}
	ids, err := a.table.AddArchived(ctx, rows)
	if err != nil {
		return nil, fmt.Errorf("archive dead letters: %w", err)
	}
	return ids, nil
}

// onceOf tells letters apart that have an id of their own for good. Others, which are foreign messages, may be alike and
// yet two: better one is archived twice than not at all.
func onceOf(l Letter) (string, error) {
	_, foreign := ulid.ParseStrict(l.ID)
	if l.Raw != nil && foreign != nil {
		return ulid.Make().String(), nil //nolint:nilerr // another's id is no error
	}
	return digest(l)
}

func digest(l Letter) (string, error) {
	encoded, err := l.Encode()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(encoded)
	return l.ID + " " + hex.EncodeToString(sum[:]), nil
}

// ArchiveFilter chooses archived letters.
type ArchiveFilter struct {
	Filter
	// All chooses also those that are restored, discarded or edited. Without it they are chosen by their id only, and
	// those that are restored not at all.
	All bool
}

func (f ArchiveFilter) match(l ArchivedLetter) bool {
	if !f.All {
		named := len(f.IDs) > 0
		hidden := l.Disposition == Discarded || l.Disposition == Superseded
		if !l.RestoredAt.IsZero() || hidden && !named {
			return false
		}
	}
	return f.Match(l.Letter)
}

// List yields archived letters in the order in which they were archived.
func (a *Archive) List(ctx context.Context, f ArchiveFilter) iter.Seq2[ArchivedLetter, error] {
	return func(yield func(ArchivedLetter, error) bool) {
		n := 0
		for after := ""; ; {
			rows, err := a.table.ArchivedLetters(ctx, after, page)
			if err != nil {
				yield(ArchivedLetter{}, fmt.Errorf("list archived letters: %w", err))
				return
			}
			for _, row := range rows {
				if !f.match(row) {
					continue
				}
				n++
				if !yield(row, nil) || n == f.Limit {
					return
				}
			}
			if len(rows) < page {
				return
			}
			after = rows[len(rows)-1].ID
		}
	}
}

// Restore puts the letters that f chooses, of those not restored yet, back into the queue, behind what is there, in the
// order in which they were archived, and returns how many. They are as they were, but that those on a shelf have new ids.
// Discarded and edited ones are chosen by their ids only. One of the other kind of queue is [ErrForeign].
func (a *Archive) Restore(ctx context.Context, f Filter, by string) (int, error) {
	return a.restore(ctx, a.List(ctx, ArchiveFilter{Filter: f}), by)
}

func (a *Archive) restore(ctx context.Context, rows iter.Seq2[ArchivedLetter, error], by string) (restored int, err error) {
	r := restoration{Archive: a, by: by}
	for row, err := range rows {
		if err != nil {
			return restored, err
		}
		if !a.keeps(row.Letter) {
			return restored, fmt.Errorf("restore dead letter %s: %w", row.Letter.ID, ErrForeign)
		}
		if r.batch = append(r.batch, row); len(r.batch) == page {
			if err := r.flush(ctx, &restored); err != nil {
				return restored, err
			}
		}
	}
	err = r.flush(ctx, &restored)
	return restored, err
}

// restoration puts letters back in batches.
type restoration struct {
	*Archive

	by    string
	batch []ArchivedLetter
	// there counts the letters in the queue that are alike; nil until it is asked for.
	there map[[sha256.Size]byte]int
}

func (r *restoration) flush(ctx context.Context, restored *int) error {
	if len(r.batch) == 0 {
		return nil
	}
	batch := r.batch
	r.batch = nil
	var ids []string
	var letters []Letter
	for _, row := range batch {
		back, err := r.isBack(ctx, row)
		if err != nil {
			return err
		}
		ids = append(ids, row.ID)
		if !back {
			letters = append(letters, row.Letter)
		}
	}
	if err := r.table.BeginRestore(ctx, ids, r.by); err != nil {
		return fmt.Errorf("restore dead letters: %w", err)
	}
	if _, err := r.queue.Return(ctx, letters); err != nil {
		return fmt.Errorf("restore dead letters: %w", err)
	}
	if err := r.table.EndRestore(ctx, ids); err != nil {
		return fmt.Errorf("dead letters are restored, but not marked as such: %w", err)
	}
	*restored += len(batch)
	return nil
}

// isBack tells whether a letter is in the queue, as an earlier restoration was cut off.
func (r *restoration) isBack(ctx context.Context, row ArchivedLetter) (bool, error) {
	if row.RestoreBegun.IsZero() {
		return false, nil
	}
	if r.there == nil {
		there := make(map[[sha256.Size]byte]int)
		for l, err := range r.queue.List(ctx, Filter{}) {
			if err != nil {
				return false, err
			}
			there[likeness(l)]++
		}
		r.there = there
	}
	key := likeness(row.Letter)
	if r.there[key] == 0 {
		return false, nil
	}
	r.there[key]--
	return true, nil
}

// likeness is the same for a letter before and after it is restored, whatever id it has.
func likeness(l Letter) [sha256.Size]byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %q %d %d %d %d ",
		l.Handler, l.Reason, l.Attempts, l.Replays, l.FirstFailed.UnixMilli(), l.LastFailed.UnixMilli())
	_, _ = h.Write(l.Body) // a hash never fails
	return [sha256.Size]byte(h.Sum(nil))
}

// one returns the letter with an id, of itself or its event.
func (a *Archive) one(ctx context.Context, id string) (Letter, error) {
	var found []Letter
	for l, err := range a.queue.List(ctx, Filter{IDs: []string{id}}) {
		if err != nil {
			return Letter{}, err
		}
		found = append(found, l)
	}
	if i := slices.IndexFunc(found, func(l Letter) bool { return l.ID == id }); i >= 0 {
		return found[i], nil
	}
	switch len(found) {
	case 0:
		return Letter{}, fmt.Errorf("no dead letter has the id %q", id)
	case 1:
		return found[0], nil
	default:
		return Letter{}, fmt.Errorf("%d dead letters are of the event %s: name one by its own id, as %s", len(found), id, found[0].ID)
	}
}
