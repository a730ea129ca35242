package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/observe"
)

const (
	// minPoll and maxPoll bound the time between two polls for letters that are released, which grows while there are none.
	minPoll = 5 * time.Millisecond
	maxPoll = 100 * time.Millisecond
	// outcomeTimeout is how long a letter may have no outcome after it was sent. Then it waits again.
	outcomeTimeout = 15 * time.Minute
	// sweepInterval is how often such letters are searched.
	sweepInterval = time.Minute
)

// Release is a letter with its message, which a replay has released.
type Release struct {
	Letter
	ReplayID string
	To       Destination
}

// ReplayHeaders are the headers that the letter's message gets for the replay; see [Letter.ReplayHeaders].
func (r Release) ReplayHeaders() map[string]string {
	return r.Letter.ReplayHeaders(r.ReplayID, r.To, time.Now())
}

// Sending is what became of a released letter.
type Sending struct {
	// Problem says why it could not be sent, and never will be as it is; nil if the bus has it.
	Problem error
	// Elsewhere is the queue to which it was sent, if that is another service's, of which no outcome will be known.
	Elsewhere string
}

// Publisher puts the messages of released letters on a bus.
type Publisher interface {
	// PublishLetters publishes messages in order, and returns what became of each once the bus has them. After an error
	// it is not known which were published, and all are published again.
	PublishLetters(ctx context.Context, letters []Release) ([]Sending, error)
}

// Replayer sends the letters that replays release, while a worker runs.
type Replayer struct {
	table     *Table
	publisher Publisher
	logger    *slog.Logger
	outage    observe.Outage
}

// NewReplayer returns a replayer from a table to a bus.
func NewReplayer(table *Table, publisher Publisher, logger *slog.Logger) *Replayer {
	return &Replayer{table: table, publisher: publisher, logger: logger, outage: observe.Outage{After: observe.Moment}}
}

// Run sends released letters until stopping is closed, and then finishes the batch in flight, or until ctx is done. When
// sending fails it tries again later. It is for one worker at a time: two would both send a letter.
func (r *Replayer) Run(ctx context.Context, stopping <-chan struct{}) {
	timer := time.NewTimer(maxPoll)
	defer timer.Stop()
	var swept time.Time
	for wait := maxPoll; ; {
		var err error
		if time.Since(swept) > sweepInterval {
			swept = time.Now()
			err = r.table.giveUp(ctx, time.Now())
		}
		sent, sendErr := r.sendAll(ctx, stopping)
		err = errors.Join(err, sendErr)
		if err == nil {
			r.outage.Over(ctx, r.logger, "dead letters can be replayed again")
		} else if ctx.Err() == nil {
			r.outage.Fails(ctx, r.logger, slog.LevelWarn, "cannot replay dead letters, will try again", "error", err)
		}
		if wait = min(2*wait, maxPoll); sent > 0 {
			wait = minPoll
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-stopping:
			return
		case <-timer.C:
		}
	}
}

// sendAll sends the letters that are released now, and returns how many.
func (r *Replayer) sendAll(ctx context.Context, stopping <-chan struct{}) (sent int, err error) {
	for ctx.Err() == nil {
		select {
		case <-stopping:
			return sent, nil
		default:
		}
		letters, seqs, err := r.table.releases(ctx)
		if err != nil || len(letters) == 0 {
			return sent, err
		}
		sendings, err := r.publisher.PublishLetters(ctx, letters)
		if err != nil {
			return sent, fmt.Errorf("replay dead letters: %w", err)
		}
		if err := r.table.sent(context.WithoutCancel(ctx), letters, seqs, sendings); err != nil {
			return sent, err
		}
		sent += len(letters)
	}
	return sent, nil
}

const selectReleases = "SELECT " + lightColumns + ", release, release_to FROM dead_letters WHERE state = 'replaying' AND sent_at IS NULL " +
	"ORDER BY released_at, turn LIMIT ?"

// releases reads the letters that are to be sent next, in their order.
func (t *Table) releases(ctx context.Context) ([]Release, []int64, error) {
	const doing = "read the released dead letters"
	var page []row
	released := map[string]releasedRow{}
	err := t.query(ctx, t.db.DB, selectReleases, []any{pageRows},
		func(rows *sql.Rows) error {
			var r releasedRow
			err := r.scan(rows, &r.release, &r.to)
			page, released[r.ID] = append(page, r.row), r
			return err
		})
	if err != nil || len(page) == 0 {
		return nil, nil, t.db.Fault(ctx, doing, err)
	}
	whole, err := t.whole(ctx, page[:withinBytes(page)])
	if err != nil {
		return nil, nil, t.db.Fault(ctx, doing, err)
	}
	var letters []Release
	var seqs []int64
	for _, l := range whole {
		r := released[l.ID]
		letters = append(letters, Release{Letter: l, ReplayID: r.release, To: r.to})
		seqs = append(seqs, r.seq)
	}
	return letters, seqs, nil
}

// sent notes what became of letters that were sent. One that has been released anew meanwhile, as it has failed again, is yet
// to be sent for that.
func (t *Table) sent(ctx context.Context, letters []Release, seqs []int64, sendings []Sending) error {
	return t.db.Write(ctx, "note the sent dead letters", func(ctx context.Context, tx *sql.Tx) error {
		if err := t.lock(ctx, tx, seqs, "state IN ('replaying', 'waiting') AND sent_at IS NULL"); err != nil {
			return err
		}
		for first := 0; first < len(letters); {
			end := first + 1
			for end < len(letters) && letters[end].ReplayID == letters[first].ReplayID {
				end++
			}
			if err := t.sentBy(ctx, tx, letters[first].ReplayID, seqs[first:end], sendings[first:end]); err != nil {
				return err
			}
			first = end
		}
		return nil
	})
}

// sentBy is [Table.sent] for the letters of one replay.
func (t *Table) sentBy(ctx context.Context, tx *sql.Tx, replayID string, seqs []int64, sendings []Sending) error {
	now := t.dialect.at(time.Now())
	// A replay that has ended meanwhile has set its letters back to waiting, though they are published.
	_, err := t.exec(ctx, tx, "UPDATE dead_letters SET state = 'replaying', released_at = ? WHERE state = 'waiting' AND "+
		"release = ? AND released_at IS NULL AND sent_at IS NULL AND "+t.dialect.in("seq"), now, replayID, list(t.dialect, seqs))
	if err != nil {
		return err
	}
	const mine = " WHERE state = 'replaying' AND sent_at IS NULL AND release = ? AND "
	var safe []int64
	for i, s := range sendings {
		var err error
		switch {
		case s.Problem != nil:
			_, err = t.exec(ctx, tx, "UPDATE dead_letters SET state = 'waiting', problem = ?"+mine+"seq = ?",
				text(CutReason(s.Problem.Error())), replayID, seqs[i])
		case s.Elsewhere != "":
			_, err = t.exec(ctx, tx, "UPDATE dead_letters SET state = 'handled', sent_at = ?, decided_at = ?, decided_by = ?, "+
				"decided_reason = ?"+mine+"seq = ?", now, now, "replay "+replayID,
				text("sent to queue "+s.Elsewhere+", which this worker does not consume"), replayID, seqs[i])
		default:
			safe = append(safe, seqs[i])
		}
		if err != nil {
			return err
		}
	}
	_, err = t.exec(ctx, tx, "UPDATE dead_letters SET sent_at = ?"+mine+t.dialect.in("seq"), now, replayID, list(t.dialect, safe))
	return err
}

const selectSilent = "SELECT seq FROM dead_letters WHERE state = 'replaying' AND released_at < ? AND sent_at < ?"

// giveUp returns letters to waiting that had no outcome for long after they were sent. If one is handled after all,
// it is marked then.
func (t *Table) giveUp(ctx context.Context, now time.Time) error {
	before := t.dialect.at(now.Add(-outcomeTimeout))
	inOrder := ""
	if lock := t.dialect.forUpdate(); lock != "" {
		inOrder = " ORDER BY seq" + lock
	}
	err := t.write(ctx, "give up on replayed dead letters",
		"UPDATE dead_letters SET state = 'waiting', problem = ? WHERE seq IN ("+selectSilent+inOrder+")",
		"no outcome for "+outcomeTimeout.String(), before, before)
	return err
}

// BusPublisher is the [Publisher] over a bus that carries nothing but texts as headers.
type BusPublisher struct{ bus.BatchPublisher }

// PublishLetters implements [Publisher].
func (p BusPublisher) PublishLetters(ctx context.Context, letters []Release) ([]Sending, error) {
	messages := make([]*message.Message, len(letters))
	for i, l := range letters {
		messages[i] = l.Message()
	}
	return make([]Sending, len(letters)), bus.Deliver(ctx, p, messages)
}

// Message is the message that the letter was, with the headers of the replay.
func (r Release) Message() *message.Message {
	m := bus.NewMessage(r.Body)
	for key, value := range r.Headers {
		if text, ok := value.(string); ok {
			m.Metadata.Set(key, text)
		}
	}
	if r.To == ToBus {
		delete(m.Metadata, bus.ReplayHandlerKey)
	}
	for key, value := range r.ReplayHeaders() {
		m.Metadata.Set(key, value)
	}
	return m
}
