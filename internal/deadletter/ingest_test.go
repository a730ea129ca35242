package deadletter_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/audit"
	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/store/storetest"
)

func ingest(t *testing.T, table *deadletter.Table, arrivals ...deadletter.Arrival) {
	t.Helper()
	require.NoError(t, table.Ingest(t.Context(), arrivals))
}

// everything is all letters, whatever their state, the one that failed first before the others.
func everything(t *testing.T, table *deadletter.Table) []deadletter.Letter {
	t.Helper()
	return all(t, table, deadletter.Filter{States: deadletter.AllStates()})
}

func find(t *testing.T, table *deadletter.Table, id string) deadletter.Letter {
	t.Helper()
	l, err := table.Find(t.Context(), id)
	require.NoError(t, err)
	return l
}

// only is the one letter of the table with its message.
func only(t *testing.T, table *deadletter.Table) deadletter.Letter {
	t.Helper()
	letters := everything(t, table)
	require.Len(t, letters, 1)
	return find(t, table, letters[0].ID)
}

// plain is the letter of a message that is no event, without any id.
func plain(body string) deadletter.Arrival {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return deadletter.Arrival{Letter: deadletter.Complete(deadletter.Letter{
		Body: []byte(body), Raw: json.RawMessage(`{"headers":["a","b"]}`), Failure: deadletter.Failure{Reason: "it is no event", LastFailed: at},
	})}
}

// failedAgain is the letter of the message that a replay has sent, as another failure of some handler.
func failedAgain(l deadletter.Letter, replayID string, to deadletter.Destination, handler, reason string) deadletter.Arrival {
	at := time.Now().UTC().Truncate(time.Microsecond)
	headers := map[string]any{"a": "b"}
	for key, value := range l.ReplayHeaders(replayID, to, at) {
		headers[key] = value
	}
	if headers[bus.ReplayHandlerKey] == handler { // as sinks do
		delete(headers, bus.ReplayHandlerKey)
	}
	return deadletter.Arrival{MessageID: uuid.NewString(), Letter: deadletter.Complete(deadletter.Letter{
		ID: ulid.Make().String(), Body: l.Body, Source: l.Source, Headers: headers,
		Failure: deadletter.Failure{Handler: handler, Reason: reason, Attempts: 4, FirstFailed: at, LastFailed: at},
	})}
}

func TestIngestKnowsAMessageThatArrivesAgain(t *testing.T) {
	t.Parallel()
	event := func(t *testing.T) deadletter.Arrival {
		t.Helper()
		return letterOf(t, storetest.NewStream(), "send-invoice", "no address")
	}
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		for name, test := range map[string]struct {
			first  func(t *testing.T) deadletter.Arrival
			change func(a *deadletter.Arrival)
			want   int
		}{
			"the same event": {event, func(*deadletter.Arrival) {}, 1},
			"of another message": {event, func(a *deadletter.Arrival) {
				a.MessageID, a.ID = "another", ulid.Make().String()
			}, 1},
			"of another body": {event, func(a *deadletter.Arrival) {
				a.Body = bytes.Replace(a.Body, []byte("Ana"), []byte("Ben"), 1)
			}, 2},
			"of another handler": {event, func(a *deadletter.Arrival) { a.Handler = "other" }, 2},
			"no event, the same message": {func(*testing.T) deadletter.Arrival {
				a := plain("x")
				a.MessageID = "m"
				return a
			}, func(a *deadletter.Arrival) { a.ID = ulid.Make().String() }, 1},
			"no event, another message": {func(*testing.T) deadletter.Arrival {
				a := plain("x")
				a.MessageID = "m"
				return a
			}, func(a *deadletter.Arrival) { a.MessageID = "n" }, 2},
			"no message id, the same letter id": {func(*testing.T) deadletter.Arrival {
				a := plain("x")
				a.ID = "one"
				return a
			}, func(*deadletter.Arrival) {}, 1},
			"no message id, another letter id": {func(*testing.T) deadletter.Arrival {
				a := plain("x")
				a.ID = "one"
				return a
			}, func(a *deadletter.Arrival) { a.ID = "two" }, 2},
			"ids that differ in bytes that are no text": {func(*testing.T) deadletter.Arrival {
				a := plain("x")
				a.ID = "\xff"
				return a
			}, func(a *deadletter.Arrival) { a.ID, a.MessageID = "\xfe", "m" }, 2},
		} {
			write(t, b, "DELETE FROM dead_letters")
			t.Log(name)
			first := test.first(t)
			second := first
			second.Body = bytes.Clone(first.Body)
			test.change(&second)

			ingest(t, table, first)
			ingest(t, table, second)

			require.Len(t, everything(t, table), test.want)
			ingest(t, table, first, second)
			require.Len(t, everything(t, table), test.want, "both in one batch")
		}
	})
}

// What has no id at all can be told apart only by whether the broker has delivered it before.
func TestIngestOfMessagesWithoutAnID(t *testing.T) {
	t.Parallel()
	fresh, again := plain("x"), plain("x")
	again.Redelivered = true
	other := plain("y")
	other.Redelivered = true
	type step struct {
		arrivals []deadletter.Arrival
		acked    bool
		want     int
	}
	one := func(a ...deadletter.Arrival) []deadletter.Arrival { return a }
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		for name, steps := range map[string][]step{
			"two equal ones stay two":                    {{one(fresh, fresh), true, 2}, {one(fresh), true, 3}},
			"killed between commit and ack":              {{one(fresh, fresh), false, 2}, {one(again, again), true, 2}},
			"killed twice":                               {{one(fresh), false, 1}, {one(again), false, 1}, {one(again), true, 1}},
			"killed before commit":                       {{one(again, again), true, 2}},
			"killed, and a new equal one":                {{one(fresh), false, 1}, {one(again, fresh), true, 2}},
			"killed, and a new equal one ahead":          {{one(fresh), false, 1}, {one(fresh, again), true, 2}},
			"one more is redelivered than is known":      {{one(fresh), false, 1}, {one(again, again), true, 2}},
			"an equal one, redelivered, after the ack":   {{one(fresh), true, 1}, {one(again), true, 2}},
			"another is redelivered":                     {{one(fresh), false, 1}, {one(other), true, 2}, {one(again), true, 2}},
			"ack of one leaves another's hash unsettled": {{one(plain("y")), false, 1}, {one(fresh), true, 2}, {one(other), true, 2}},
		} {
			write(t, b, "DELETE FROM dead_letters")
			t.Log(name)
			for _, s := range steps {
				ingest(t, table, s.arrivals...)
				if s.acked {
					require.NoError(t, table.Acked(t.Context(), s.arrivals))
				}
				require.Len(t, everything(t, table), s.want)
			}
		}
	})
}

// The note that a message was not acked yet may be left behind when a worker dies. It must not swallow an equal message
// for ever.
func TestIngestForgetsAfterAnHourThatAMessageWasNotAcked(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, plain("x"))
		change := "UPDATE dead_letters SET added_at = now() - interval '61 minutes'"
		if b.SQL().Dialect == "sqlite" {
			change = "UPDATE dead_letters SET added_at = added_at - 3660000000"
		}
		write(t, b, change)
		again := plain("x")
		again.Redelivered = true

		ingest(t, table, again)

		require.Len(t, everything(t, table), 2)
	})
}

func TestALetterThatFailsAgainIsTheSame(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		first := letterOf(t, storetest.NewStream(), "send-invoice", "no address")
		ingest(t, table, first)
		was := only(t, table)
		_, err := table.PutAside(t.Context(), deadletter.Filter{}, deadletter.Archived, audit.Actor{By: "ana"})
		require.NoError(t, err)

		again := failedAgain(was, "01JZ0000000000000000000000", deadletter.ToHandler, "send-invoice", "no street")
		ingest(t, table, again)

		l := only(t, table)
		require.Equal(t, was.ID, l.ID)
		require.Equal(t, deadletter.Waiting, l.State)
		require.Zero(t, l.Decided)
		require.Equal(t, again.Failure, l.Failure)
		require.NotEqual(t, was.Group, l.Group)
		require.Equal(t, again.Group, l.Group)
		require.Equal(t, 1, l.Replays)
		require.Equal(t, "01JZ0000000000000000000000", l.ReplayID)
		require.Equal(t, map[string]any{"a": "b"}, l.Headers)
		require.Equal(t, was.Body, l.Body)
		require.Len(t, l.History, 2)
		require.Equal(t, "no address", l.History[0].Reason)
		require.Equal(t, deadletter.Replayed, l.History[1].Kind)

		ingest(t, table, again)
		ingest(t, table, first)
		require.Equal(t, l, only(t, table), "neither delivery is new")

		third := failedAgain(l, "01JZ0000000000000000000001", deadletter.ToHandler, "send-invoice", "no town")
		ingest(t, table, third)
		require.Len(t, only(t, table).History, 4)
		require.Equal(t, 2, only(t, table).Replays)
	})
}

// The failed message of a replay says what its letter was, whatever has become of its body and its ids.
func TestAReplayedMessageBelongsToItsLetter(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, plain("no event"))
		was := only(t, table)
		again := failedAgain(was, "01JZ0000000000000000000000", deadletter.ToHandler, "", "no")
		again.MessageID = ""
		ingest(t, table, again)
		require.Equal(t, was.ID, only(t, table).ID)

		gone := failedAgain(deadletter.Letter{ID: "purged", Body: []byte("z"), Failure: was.Failure}, "r", deadletter.ToHandler, "", "no")
		ingest(t, table, gone)
		require.Len(t, everything(t, table), 2, "its letter was purged")
	})
}

func TestAReplayOnWhichAnotherHandlerFailsMakesAnotherLetter(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table, letterOf(t, storetest.NewStream(), "send-invoice", "no address"))
		was := only(t, table)

		other := failedAgain(was, "r", deadletter.ToBus, "remind", "no phone")
		ingest(t, table, other)
		ingest(t, table, other)

		letters := everything(t, table)
		require.Len(t, letters, 2)
		require.Equal(t, was.ID, letters[0].ID)
		require.Equal(t, was.Failure, letters[0].Failure)
		require.Equal(t, "remind", letters[1].Handler)
		require.Len(t, letters[1].History, 2, "what befell the message before")
	})
}

func TestALetterThatWasDecidedOnWaitsWhenItFailsAnew(t *testing.T) {
	t.Parallel()
	for _, state := range []deadletter.State{deadletter.Archived, deadletter.Discarded, deadletter.Settled} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
				t.Helper()
				a := letterOf(t, storetest.NewStream(), "send-invoice", "no address")
				ingest(t, table, a)
				was := only(t, table)
				if state == deadletter.Settled {
					require.NoError(t, table.Settled(t.Context(), was.ID, "r", []string{"send-invoice"}, true))
				} else {
					_, err := table.PutAside(t.Context(), deadletter.Filter{}, state, audit.Actor{By: "ana", Reason: "why"})
					require.NoError(t, err)
				}
				require.Equal(t, state, only(t, table).State)

				duplicate := a
				duplicate.ID, duplicate.MessageID = ulid.Make().String(), "duplicate"
				ingest(t, table, duplicate)
				require.Equal(t, state, only(t, table).State, "the failure is known")

				a.ID, a.LastFailed, a.Reason = ulid.Make().String(), a.LastFailed.Add(time.Hour), "no street"
				ingest(t, table, a)
				l := only(t, table)
				require.Equal(t, was.ID, l.ID)
				require.Equal(t, deadletter.Waiting, l.State)
				require.Equal(t, "no street", l.Reason)
				require.Len(t, l.History, 1)
				require.Equal(t, "no address", l.History[0].Reason)
			})
		})
	}
}

func TestTwoArrivalsOfALetterInOneBatch(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		a := letterOf(t, storetest.NewStream(), "h", "first")
		b := a
		b.ID, b.Reason, b.LastFailed = ulid.Make().String(), "second", a.LastFailed.Add(time.Second)
		ingest(t, table, a, a, b, b)
		l := only(t, table)
		require.Equal(t, "second", l.Reason)
		require.Len(t, l.History, 1)
		require.Equal(t, "first", l.History[0].Reason)

		c := b
		c.ID, c.Reason, c.LastFailed = ulid.Make().String(), "third", b.LastFailed.Add(time.Second)
		d := c
		d.ID, d.Reason, d.LastFailed = ulid.Make().String(), "fourth", c.LastFailed.Add(time.Second)
		ingest(t, table, c, d)
		require.Equal(t, "fourth", only(t, table).Reason)
		require.Len(t, only(t, table).History, 3)
	})
}

func TestIngestOfManyAndOfNone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		ingest(t, table)
		require.NoError(t, table.Acked(t.Context(), nil))
		var arrivals []deadletter.Arrival
		stream := storetest.NewStream()
		for range 237 {
			arrivals = append(arrivals, letterOf(t, stream, "h", "r"))
		}
		ingest(t, table, arrivals...)
		ingest(t, table, append(arrivals[100:], letterOf(t, stream, "h", "r"))...)
		letters := all(t, table, deadletter.Filter{})
		require.Len(t, letters, 238)
		for i, l := range letters {
			require.Equal(t, i+1, l.Event.AggregateVersion, "in the order of their arrival")
		}
	})
}

func TestConcurrentIngestOfTheSameLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		const letters, rounds = 60, 5
		for round := range rounds {
			var arrivals []deadletter.Arrival
			for range letters {
				arrivals = append(arrivals, letterOf(t, storetest.NewStream(), "h", "r"))
			}
			var done sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				mine := append([]deadletter.Arrival{}, arrivals...)
				rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
				done.Go(func() { errs[i] = table.Ingest(t.Context(), mine) })
			}
			done.Wait()
			require.NoError(t, errors.Join(errs...))
			require.Len(t, everything(t, table), (round+1)*letters)
		}
	})
}

func TestIngestTakesWhateverAMessageSays(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b backend, table *deadletter.Table) {
		t.Helper()
		for name, change := range map[string]func(a *deadletter.Arrival){
			"no body":           func(a *deadletter.Arrival) { a.Body = nil },
			"an empty body":     func(a *deadletter.Arrival) { a.Body = []byte{} },
			"a body of bytes":   func(a *deadletter.Arrival) { a.Body = []byte("\xff\x00\xfe") },
			"a body of 17 MB":   func(a *deadletter.Arrival) { a.Body = bytes.Repeat([]byte("\x00x"), 17<<19) },
			"NUL in texts":      texts("a\x00b"),
			"no UTF-8 in texts": texts("a\xffb"),
			"long texts":        texts(strings.Repeat("ü", 20_000)),
			"long random texts": texts(strings.Join(randomWords(4000), " ")),
			"large numbers": func(a *deadletter.Arrival) {
				a.Headers = map[string]any{deadletter.ReplayCountKey: "99999999999", "n": json.Number("9007199254740993"), "f": json.Number("0.1000000000000000055")}
				a.Attempts = math.MaxInt
			},
			"small numbers": func(a *deadletter.Arrival) {
				a.Headers = map[string]any{deadletter.ReplayCountKey: "-99999999999"}
				a.Attempts = math.MinInt
			},
			"a version beyond int32": func(a *deadletter.Arrival) {
				a.Body = []byte(`{"event_id":"` + uuid.NewString() + `","aggregate_version":99999999999}`)
			},
			"an event type as long as the body": func(a *deadletter.Arrival) {
				a.Body = []byte(`{"event_type":"` + strings.Repeat("x", 100_000) + `","aggregate_type":"` + strings.Repeat("y", 100_000) + `"}`)
			},
			"no times":         func(a *deadletter.Arrival) { a.FirstFailed, a.LastFailed = time.Time{}, time.Time{} },
			"no first failure": func(a *deadletter.Arrival) { a.FirstFailed = time.Time{} },
			"no last failure":  func(a *deadletter.Arrival) { a.LastFailed = time.Time{} },
			"year 1":           func(a *deadletter.Arrival) { a.FirstFailed = time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC) },
			"year 9999":        func(a *deadletter.Arrival) { a.LastFailed = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC) },
			"year 10000": func(a *deadletter.Arrival) {
				a.LastFailed = time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600))
			},
			"the far future": func(a *deadletter.Arrival) { a.LastFailed = time.Unix(1<<60, 0) },
			"the far past":   func(a *deadletter.Arrival) { a.FirstFailed = time.Unix(-1<<60, 0) },
			"raw with an escaped NUL": func(a *deadletter.Arrival) {
				a.Raw = json.RawMessage(`{"message_id":"a\u0000b","headers":["k","\u0000","u","\ud800","n",{"long":9007199254740993}]}`)
			},
			"raw that is no UTF-8": func(a *deadletter.Arrival) { a.Raw = json.RawMessage("{\"message_id\":\"\xff\"}") },
			"a history that is none": func(a *deadletter.Arrival) {
				a.Headers = map[string]any{deadletter.HistoryKey: `[{"kind":7}]`}
			},
			"a history with NUL": func(a *deadletter.Arrival) {
				a.Headers = map[string]any{deadletter.HistoryKey: `[{"kind":"failed","at":"2026-01-02T03:04:05Z","reason":"\u0000"}]`}
			},
		} {
			write(t, b, "DELETE FROM dead_letters")
			t.Log(name)
			a := plain("x")
			a.ID, a.Raw = "", nil
			change(&a)
			a.Letter = deadletter.Complete(a.Letter)

			ingest(t, table, a)
			l := only(t, table)
			require.Equal(t, append([]byte{}, a.Body...), l.Body)
			require.Equal(t, len(a.Body), l.Bytes)
			require.Equal(t, l.Event.AggregateVersion, a.Event.AggregateVersion)
			if a.Raw == nil && name[:2] != "NU" && name[:2] != "no" {
				require.Equal(t, len(a.Headers), len(l.Headers))
				for key, value := range a.Headers {
					require.Equal(t, value, l.Headers[key])
				}
			}
			require.False(t, l.FirstFailed.IsZero())
			require.False(t, l.LastFailed.IsZero())
			group, _ := deadletter.Fingerprint(l.Handler, l.Type, l.Reason)
			require.Equal(t, group, l.Group, "it can be computed anew")
			require.Len(t, all(t, table, deadletter.Filter{Handler: a.Handler, Type: a.Type, Group: l.Group, IDs: []string{l.ID, "\x00"}}), 1)
			groups, err := table.Groups(t.Context(), deadletter.Filter{})
			require.NoError(t, err)
			require.Len(t, groups, 1)
			line, err := l.Encode()
			require.NoError(t, err)
			_, err = deadletter.Decode(line)
			require.NoError(t, err)

			again := failedAgain(l, "r", deadletter.ToHandler, l.Handler, "again")
			ingest(t, table, again)
			require.Equal(t, l.ID, only(t, table).ID)
			require.Len(t, only(t, table).History, len(l.History)+2)
		}
	})
}

func randomWords(n int) []string {
	words := make([]string, n)
	for i := range words {
		words[i] = uuid.NewString()
	}
	return words
}

// texts puts s wherever a message has a text.
func texts(s string) func(a *deadletter.Arrival) {
	return func(a *deadletter.Arrival) {
		a.ID, a.MessageID, a.Handler, a.Reason, a.Type, a.Source = s, s, s, s, s, s
		a.Headers = map[string]any{s: s, deadletter.ReplayOfKey: s, deadletter.ReplayIDKey: s, deadletter.HistoryKey: s}
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		body, err := storetest.NewStream().Next().MarshalJSON()
		require.NoError(t, err)
		m := bus.NewMessage(body)
		m.Metadata = message.Metadata{"k": "v", bus.ReplayHandlerKey: "h"}
		f := deadletter.Failure{Reason: "why", Handler: "h", Attempts: 2, FirstFailed: time.Unix(1, 0).UTC(), LastFailed: time.Unix(2, 0).UTC()}

		require.NoError(t, table.Put(t.Context(), m, f))
		require.NoError(t, table.Put(t.Context(), m, f), "its ack was lost")

		l := only(t, table)
		_, err = ulid.ParseStrict(l.ID)
		require.NoError(t, err)
		require.Equal(t, f, l.Failure)
		require.Equal(t, map[string]any{"k": "v"}, l.Headers, "a replay names the handler again")
		require.Equal(t, body, l.Body)

		f.Handler = "other"
		require.NoError(t, table.Put(t.Context(), m, f))
		letters := everything(t, table)
		require.Len(t, letters, 2)
		require.Equal(t, map[string]any{"k": "v", bus.ReplayHandlerKey: "h"}, find(t, table, letters[1].ID).Headers)
	})
}

func TestConcurrentPuts(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ backend, table *deadletter.Table) {
		t.Helper()
		var done sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			done.Go(func() {
				for n := range 10 {
					m := bus.NewMessage(fmt.Appendf(nil, "%d %d", i, n))
					errs[i] = errors.Join(errs[i], table.Put(t.Context(), m, deadletter.Failure{Reason: "r"}))
				}
			})
		}
		done.Wait()
		require.NoError(t, errors.Join(errs...))
		require.Len(t, everything(t, table), 80)
	})
}
