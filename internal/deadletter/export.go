package deadletter

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
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

// Export writes the letters that f chooses, as [Letter.Encode] does, a line each, and returns how many. It records that first,
// and writes nothing if it cannot.
func (t *Table) Export(ctx context.Context, f Filter, file File, by audit.Actor) (int, error) {
	if err := t.recordExport(ctx, f, by); err != nil {
		return 0, err
	}
	w := bufio.NewWriter(file)
	n := 0
	for l, err := range t.Read(ctx, f) {
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

func (t *Table) recordExport(ctx context.Context, f Filter, by audit.Actor) error {
	return audit.NewLog(t.db).Record(ctx, by.Did(audit.Export, f.Subject(), 0))
}

// ErrExporting says that another [Table.ExportAndRemove] of the store runs.
var ErrExporting = errors.New("another export --remove is running")

const (
	exportTask = "export"
	// exportTTL is less than the minute after which a lease counts as ended.
	exportTTL = 50 * time.Second
)

// ExportAndRemove is as [Table.Export], and deletes the letters: some at a time are read, written, synced and deleted. No
// transaction is open while the file is written. A lease excludes other calls, which fail with [ErrExporting]. A letter that
// was changed while the file was written is in the file and stays in the table. It returns how many it deleted; after an
// error the file may have more.
func (t *Table) ExportAndRemove(ctx context.Context, f Filter, file File, by audit.Actor) (n int, err error) {
	if err := t.recordExport(ctx, f, by); err != nil {
		return 0, err
	}
	purged := func(n int) audit.Entry { return by.Did(audit.Purge, f.Subject().With("after", "export"), n) }
	w := bufio.NewWriter(file)
	states, _ := t.conditions(Filter{States: f.States})
	holder := uuid.NewString()
	if err := t.takeExport(ctx, holder); err != nil {
		return 0, fmt.Errorf("export dead letters: %w", err)
	}
	defer func() { // if this fails, the lease ends by itself
		_ = t.write(context.WithoutCancel(ctx), "give back the lease of the export",
			"UPDATE leases SET holder = '' WHERE task = ? AND holder = ?", exportTask, holder)
	}()
	for page, err := range t.pages(ctx, f) {
		for err == nil && len(page) > 0 {
			some := page[:withinBytes(page)]
			page = page[len(some):]
			removed := 0
			removed, err = t.moveTo(ctx, holder, w, file, some, states, purged)
			n += removed
		}
		if err != nil {
			return n, fmt.Errorf("export dead letters: %w", err)
		}
	}
	return n, nil
}

// takeExport takes the lease of the export, or renews it.
func (t *Table) takeExport(ctx context.Context, holder string) error {
	return t.db.Write(ctx, "take the lease of the export", func(ctx context.Context, tx *sql.Tx) error {
		n, err := t.exec(ctx, tx, "INSERT INTO leases (task, holder, fence, expires_at) VALUES (?, ?, 1, "+t.dialect.later(exportTTL)+
			") ON CONFLICT (task) DO UPDATE SET holder = excluded.holder, "+
			"fence = leases.fence + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END, expires_at = excluded.expires_at "+
			"WHERE leases.holder IN (excluded.holder, '') OR leases.expires_at NOT BETWEEN "+t.dialect.now()+" AND "+
			t.dialect.later(time.Minute), exportTask, holder)
		if err == nil && n == 0 {
			err = ErrExporting
		}
		return err
	})
}

// moveTo writes those of the letters that are still there and meet a condition to a file, syncs it, and deletes those that
// are still as they were written.
func (t *Table) moveTo(
	ctx context.Context, holder string, w *bufio.Writer, file File, page []row, condition string, purged func(int) audit.Entry,
) (removed int, err error) {
	if err := t.takeExport(ctx, holder); err != nil {
		return 0, err
	}
	letters, err := t.whole(ctx, page)
	if err != nil {
		return 0, t.db.Fault(ctx, "read dead letters", err)
	}
	states := make(map[State]bool)
	for _, r := range page {
		states[r.State] = true
	}
	written := make(map[string]Letter, len(letters))
	for _, l := range letters {
		if !states[l.State] {
			continue
		}
		if err := writeLine(w, l); err != nil {
			return 0, err
		}
		written[l.ID] = withoutMessage(l)
	}
	if len(written) == 0 {
		return 0, nil
	}
	if err := errors.Join(w.Flush(), file.Sync()); err != nil {
		return 0, err
	}
	err = t.db.Write(ctx, "remove exported dead letters", func(ctx context.Context, tx *sql.Tx) error {
		held, err := t.exec(ctx, tx, "UPDATE leases SET expires_at = "+t.dialect.later(exportTTL)+" WHERE task = ? AND holder = ?",
			exportTask, holder)
		if err == nil && held == 0 {
			err = errExportLost
		}
		if err != nil {
			return err
		}
		now, err := t.locked(ctx, tx, seqsOf(page), condition)
		if err != nil {
			return err
		}
		now = slices.DeleteFunc(now, func(r row) bool { return !reflect.DeepEqual(withoutMessage(r.Letter), written[r.ID]) })
		removed, err = t.exec(ctx, tx, "DELETE FROM dead_letters WHERE "+t.dialect.in("seq"), list(t.dialect, seqsOf(now)))
		if err == nil && removed > 0 {
			err = t.record(ctx, tx, purged(removed))
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return removed, nil
}

var errExportLost = errors.New("writing the file took so long that another export --remove has begun; " +
	"this one has not deleted the letters of the last lines of its file")

// withoutMessage is a letter as [Table.List] has it, but for its event.
func withoutMessage(l Letter) Letter {
	l.Event, l.Headers, l.Body, l.Raw = events.Event{}, nil, nil, nil
	return l
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
	// Lines are all of the file, and Imported those that wait now because of it. The others are known to the table.
	Lines, Imported int
}

// Import adds letters that were exported, in their order. The file is read twice: a bad line is a *[LineError], and
// nothing is imported. A letter that the table has already, in whatever state, is passed over; with again those that were
// put aside or handled wait again, as the file has them. An import that was cut off is completed by importing the file
// again.
func (t *Table) Import(ctx context.Context, file io.ReadSeeker, again bool, by audit.Actor) (ImportCounts, error) {
	var counts ImportCounts
	for line, err := range lines(file) {
		if err == nil {
			_, err = parse(line)
		}
		if counts.Lines++; err != nil {
			return ImportCounts{}, fmt.Errorf("import dead letters: %w", &LineError{Line: counts.Lines, Err: err})
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return ImportCounts{}, fmt.Errorf("import dead letters: %w", err)
	}
	var batch []*known
	size := 0
	flush := func() error {
		n, err := t.importBatch(ctx, batch, again, by)
		counts.Imported += n
		batch, size = nil, 0
		return err
	}
	alike := make(map[string]int)
	number := 0
	for line, err := range lines(file) {
		number++
		var l Letter
		if err == nil {
			l, err = parse(line)
		}
		if err != nil {
			return counts, fmt.Errorf("import dead letters: the file was changed meanwhile: %w", &LineError{Line: number, Err: err})
		}
		k := &known{Letter: l, arrival: l.ID, identity: importIdentity(l), added: true}
		if _, err := ulid.ParseStrict(l.ID); err != nil { // a message without an id of its own may have twins in the file
			digest := digest(string(line))
			alike[digest]++
			k.ID = fmt.Sprintf("%s-%d", digest, alike[digest])
			if l.Event.ID == uuid.Nil {
				k.identity = "import " + k.ID
			}
		}
		k.State = Waiting
		batch = append(batch, k)
		if size += len(l.Body); len(batch) == pageRows || size > store.PageBytes {
			if err := flush(); err != nil {
				return counts, err
			}
		}
	}
	return counts, flush()
}

// importIdentity is that which the letter had when its message arrived; see [Arrival].
func importIdentity(l Letter) string {
	var message struct {
		ID any `json:"message_id"`
	}
	_ = json.Unmarshal(l.Raw, &message) // a letter without one has its own id
	id, _ := message.ID.(string)
	return Arrival{Letter: l, MessageID: id}.identity()
}

// importBatch adds letters, and returns how many wait now that did not.
func (t *Table) importBatch(ctx context.Context, batch []*known, again bool, by audit.Actor) (n int, err error) {
	err = t.db.Write(ctx, "import dead letters", func(ctx context.Context, tx *sql.Tx) error {
		n = 0
		if err := t.lockBatches(ctx, tx); err != nil {
			return err
		}
		for _, k := range batch {
			added, err := t.importOne(ctx, tx, k, again)
			if err != nil {
				return err
			}
			n += added
		}
		if n == 0 {
			return nil
		}
		return t.record(ctx, tx, by.Did(audit.Import, audit.Subject{"again": again}, n))
	})
	return n, err
}

// importOne adds a letter, unless the table has the same message or, of another, the same id. It returns 1 if the letter
// waits now and did not.
func (t *Table) importOne(ctx context.Context, tx *sql.Tx, k *known, again bool) (int, error) {
	var id string
	var state State
	err := t.query(ctx, tx, "SELECT id, state FROM dead_letters WHERE identity = ? OR id = ? OR id = ? AND body = ? "+
		"ORDER BY identity = ? DESC LIMIT 1"+t.dialect.forUpdate(), []any{k.identity, k.ID, k.arrival, k.Body, k.identity},
		func(rows *sql.Rows) error { return rows.Scan(&id, &state) })
	switch {
	case err != nil:
		return 0, err
	case id == "":
		values, err := t.values(k.Letter, k.identity, k.arrival, "")
		if err != nil {
			return 0, err
		}
		return t.insert(ctx, tx, [][]any{values})
	case !again || state == Waiting || state == Replaying:
		return 0, nil
	}
	k.ID, k.added, k.Decided = id, false, Decision{Reason: "imported again", At: time.Now()}
	return 1, t.store(ctx, tx, []*known{k})
}

func parse(line []byte) (Letter, error) {
	l, err := Decode(line)
	if err == nil && l.ID == "" {
		err = errEncoding
	}
	return storable(l, time.Now()), err
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
