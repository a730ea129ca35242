package deadletter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/oklog/ulid/v2"
)

// LineError says which line of an import is bad. Its text quotes nothing of the line.
type LineError struct {
	// Line counts from 1.
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// File is where an export goes.
type File interface {
	io.Writer
	// Sync returns once what was written is safe.
	Sync() error
}

// Export writes the letters that f chooses, as [Letter.Encode] does, a line each, and returns how many. It leaves the
// queue as it is.
func Export(ctx context.Context, q Queue, f Filter, file File) (int, error) {
	w := bufio.NewWriter(file)
	n := 0
	for l, err := range q.List(ctx, f) {
		if err == nil {
			err = writeLine(w, l)
		}
		if err != nil {
			return n, fmt.Errorf("export dead letters: %w", err)
		}
		n++
	}
	if err := errors.Join(w.Flush(), file.Sync()); err != nil {
		return n, fmt.Errorf("export dead letters: %w", err)
	}
	return n, nil
}

// ExportAndRemove is as [Export], and takes the letters out of the queue, each once its line is safe. It returns how many
// it took; after an error the file may have more.
func ExportAndRemove(ctx context.Context, q Queue, f Filter, file File) (int, error) {
	w := bufio.NewWriter(file)
	n, err := q.Take(ctx, f, func(_ context.Context, letters []Letter) error {
		for _, l := range letters {
			if err := writeLine(w, l); err != nil {
				return err
			}
		}
		return errors.Join(w.Flush(), file.Sync())
	})
	if err != nil {
		return n, fmt.Errorf("export dead letters: %w", err)
	}
	return n, nil
}

func writeLine(w io.Writer, l Letter) error {
	line, err := l.Encode()
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// ImportCounts are the letters of an import.
type ImportCounts struct {
	// Lines are all of the file, and Imported those put into the queue. The others were imported before.
	Lines, Imported int
}

// Import puts letters that were exported into the queue, in their order, behind what is there. The file is read twice: a
// bad line is a *[LineError], and nothing is imported. A letter that was imported before, from whatever file, is passed
// over, wherever it is now; with again it is not. An import that was cut off is completed by importing the file again.
func (a *Archive) Import(ctx context.Context, file io.ReadSeeker, d Decision, again ImportAgain) (ImportCounts, error) {
	var counts ImportCounts
	for line, err := range lines(file) {
		if err == nil {
			_, err = a.parse(line)
		}
		if counts.Lines++; err != nil {
			return ImportCounts{}, fmt.Errorf("import dead letters: %w", &LineError{Line: counts.Lines, Err: err})
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return ImportCounts{}, fmt.Errorf("import dead letters: %w", err)
	}
	var batch []ArchivedLetter
	wanted := make(map[string]bool)
	alike := make(map[string]int)
	add := func() error {
		ids, err := a.table.AddArchived(ctx, batch)
		if err != nil {
			return fmt.Errorf("import dead letters: %w", err)
		}
		for _, id := range ids {
			wanted[id] = true
		}
		batch = nil
		return nil
	}
	number := 0
	for line, err := range lines(file) {
		number++
		var l Letter
		if err == nil {
			l, err = a.parse(line)
		}
		var once string
		if err == nil {
			once, err = digest(l)
		}
		if err != nil {
			return ImportCounts{}, fmt.Errorf("import dead letters: the file was changed meanwhile: %w", &LineError{Line: number, Err: err})
		}
		alike[once]++ // twins are two letters, of one file
		once = fmt.Sprintf("import %s %d", once, alike[once])
		if again == ImportAnew {
			once = "import " + ulid.Make().String()
		}
		batch = append(batch, ArchivedLetter{Letter: l, Disposition: Imported, Decision: d, At: time.Now().UTC(), Once: once})
		if len(batch) == page {
			if err := add(); err != nil {
				return ImportCounts{}, err
			}
		}
	}
	if err := add(); err != nil {
		return ImportCounts{}, err
	}
	var err error
	counts.Imported, err = a.restore(ctx, func(yield func(ArchivedLetter, error) bool) {
		for row, err := range a.List(ctx, ArchiveFilter{}) {
			if (err != nil || wanted[row.ID]) && !yield(row, err) {
				return
			}
		}
	}, d.By)
	return counts, err
}

// ImportAgain says what becomes of letters that were imported before.
type ImportAgain string

// What becomes of letters that were imported before.
const (
	// ImportOnce passes them over.
	ImportOnce ImportAgain = "once"
	// ImportAnew imports them once more.
	ImportAnew ImportAgain = "anew"
)

func (a *Archive) parse(line []byte) (Letter, error) {
	l, err := Decode(line)
	if err == nil && l.ID == "" {
		err = errEncoding
	}
	if err == nil && !a.keeps(l) {
		err = ErrForeign
	}
	return l, err
}

// lines yields lines, of any length, without their ends. The last need not have one.
func lines(r io.Reader) func(yield func([]byte, error) bool) {
	return func(yield func([]byte, error) bool) {
		for b := bufio.NewReader(r); ; {
			line, err := b.ReadBytes('\n')
			end := errors.Is(err, io.EOF)
			if end && len(line) == 0 {
				return
			}
			if end {
				err = nil
			}
			if !yield(bytes.TrimRight(line, "\r\n"), err) || err != nil || end {
				return
			}
		}
	}
}
