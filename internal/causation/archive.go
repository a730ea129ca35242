package causation

import (
	"context"
	"iter"

	"github.com/healz/worker/internal/deadletter"
)

// archivePage is how many archived letters are read at once.
const archivePage = 100

// Archive is where archived letters are; a [deadletter.ArchiveTable] is one.
type Archive interface {
	ArchivedLetters(ctx context.Context, afterID string, limit int) ([]deadletter.ArchivedLetter, error)
}

// InArchive are the letters of an archive that are not restored. A tree tells for what each was put there.
func InArchive(a Archive) Letters { return archive{a} }

type archive struct{ table Archive }

// disposed is a letter, and for what it was archived, if it is.
type disposed struct {
	deadletter.Letter

	disposition deadletter.Disposition
}

// List yields the letters that f chooses, in the order in which they were archived.
func (a archive) List(ctx context.Context, f deadletter.Filter) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		for l, err := range a.list(ctx, f) {
			if !yield(l.Letter, err) {
				return
			}
		}
	}
}

func (a archive) list(ctx context.Context, f deadletter.Filter) iter.Seq2[disposed, error] {
	return func(yield func(disposed, error) bool) {
		for after := ""; ; {
			rows, err := a.table.ArchivedLetters(ctx, after, archivePage)
			if err != nil {
				yield(disposed{}, err)
				return
			}
			for _, row := range rows {
				after = row.ID
				if row.RestoredAt.IsZero() && f.Match(row.Letter) && !yield(disposed{row.Letter, row.Disposition}, nil) {
					return
				}
			}
			if len(rows) < archivePage {
				return
			}
		}
	}
}

// inQueue are letters that are in no archive.
func inQueue(letters iter.Seq2[deadletter.Letter, error]) iter.Seq2[disposed, error] {
	return func(yield func(disposed, error) bool) {
		for l, err := range letters {
			if !yield(disposed{Letter: l}, err) {
				return
			}
		}
	}
}
