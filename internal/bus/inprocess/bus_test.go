package inprocess_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/bus/inprocess"
)

// The tests run in bubbles of testing/synctest: time stands still until everybody waits, and a goroutine that
// outlives Close fails the test.

func newBus(t *testing.T, concurrency int) *inprocess.Bus {
	t.Helper()
	b := inprocess.New(concurrency)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func subscribe(ctx context.Context, t *testing.T, b *inprocess.Bus) <-chan *message.Message {
	t.Helper()
	messages, err := b.Subscribe(ctx, inprocess.Topic)
	require.NoError(t, err)
	return messages
}

// publish publishes in the background, and returns where the outcome arrives once all is acked.
func publish(ctx context.Context, b *inprocess.Bus, batch ...*message.Message) <-chan error {
	done := make(chan error, 1)
	go func() { done <- bus.Deliver(ctx, b, batch) }()
	return done
}

// of returns the message called name, of an aggregate.
func of(aggregate, name string) *message.Message {
	m := message.NewMessage(name, []byte(name))
	m.Metadata.Set(bus.AggregateIDKey, aggregate)
	return m
}

func requirePending[T any](t *testing.T, c <-chan T, what string) {
	t.Helper()
	synctest.Wait()
	select {
	case v := <-c:
		t.Fatalf("%s: unexpected %v", what, v)
	default:
	}
}

func TestEveryAggregateInOrderAndAggregatesInParallel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const concurrency, aggregates, versions = 4, 40, 10
		b := newBus(t, concurrency)
		var mu sync.Mutex
		seen := map[string][]string{}
		var busy, most int
		var handlers sync.WaitGroup
		messages := subscribe(t.Context(), t, b)
		handle := func(m *message.Message) {
			mu.Lock()
			busy++
			most = max(most, busy)
			id := m.Metadata.Get(bus.AggregateIDKey)
			seen[id] = append(seen[id], string(m.Payload))
			mu.Unlock()
			<-time.After(time.Millisecond)
			mu.Lock()
			busy--
			mu.Unlock()
			m.Ack()
		}
		handlers.Go(func() {
			for m := range messages {
				handlers.Go(func() { handle(m) })
			}
		})
		var batch []*message.Message
		want := map[string][]string{}
		for version := range versions {
			for aggregate := range aggregates {
				id, name := fmt.Sprint("aggregate ", aggregate), fmt.Sprint("version ", version)
				batch = append(batch, of(id, name))
				want[id] = append(want[id], name)
			}
		}

		require.NoError(t, bus.Deliver(t.Context(), b, batch))

		require.Equal(t, want, seen)
		require.Equal(t, concurrency, most, "handlers at work at once")
		require.NoError(t, b.Close())
		handlers.Wait()
	})
}

// A slow handler holds up its aggregate only, however many others follow it, in its batch or a later one.
func TestASlowHandlerHoldsUpItsAggregateOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 2)
		messages := subscribe(t.Context(), t, b)
		slow := publish(t.Context(), b, of("a", "slow"), of("a", "behind it"))
		inHand := <-messages
		require.Equal(t, "slow", inHand.UUID)

		var others []*message.Message
		for i := range 100 {
			others = append(others, of(fmt.Sprint("other ", i%7), fmt.Sprint(i)))
		}
		done := publish(t.Context(), b, others...)
		for range others {
			m := <-messages
			require.NotEqual(t, "behind it", m.UUID)
			m.Ack()
		}
		require.NoError(t, <-done)
		requirePending(t, messages, "overtaken")
		inHand.Ack()
		(<-messages).Ack()
		require.NoError(t, <-slow)
	})
}

func TestMessageArrivesAsItWasAndThePublishersIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		messages := subscribe(t.Context(), t, b)
		published := of("a", "one")
		done := publish(t.Context(), b, published)

		arrived := <-messages
		require.True(t, arrived.Equals(published))
		arrived.Metadata.Set("handler", "was here")
		arrived.Ack()

		require.NoError(t, <-done)
		require.Empty(t, published.Metadata.Get("handler"))
		<-arrived.Context().Done() // what the handler began with it ends
	})
}

func TestOneAggregateIsOneKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, same := range [][]*message.Message{
			{of("0198C9AB-0000-7000-8000-00000000000F", "upper"), of("0198c9ab-0000-7000-8000-00000000000f", "lower")},
			{message.NewMessage("a uuid", nil), message.NewMessage("a uuid", nil)}, // no aggregate_id
			{message.NewMessage("", nil), message.NewMessage("", nil)},             // nothing at all
		} {
			b := newBus(t, 1000)
			messages := subscribe(t.Context(), t, b)
			done := publish(t.Context(), b, same...)
			first := <-messages
			requirePending(t, messages, "overtaken")
			first.Ack()
			(<-messages).Ack()
			require.NoError(t, <-done)
			require.NoError(t, b.Close())
		}
	})
}

func TestWhatCannotBeDeliveredIsGivenBack(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		// disturb does what keeps the first of two messages of an aggregate from being acked.
		disturb func(t *testing.T, b *inprocess.Bus, stopPublisher, stopSubscriber func(), inHand *message.Message)
		want    error
	}{
		"the bus closes": {
			disturb: func(t *testing.T, b *inprocess.Bus, _, _ func(), _ *message.Message) {
				t.Helper()
				require.NoError(t, b.Close())
			},
			want: bus.ErrGivenBack,
		},
		"the subscriber stops and gives back what it has in hand": {
			disturb: func(_ *testing.T, _ *inprocess.Bus, _, stopSubscriber func(), m *message.Message) {
				stopSubscriber()
				m.Nack()
			},
			want: bus.ErrGivenBack,
		},
		"the subscriber stops between two attempts": {
			disturb: func(_ *testing.T, _ *inprocess.Bus, _, stopSubscriber func(), m *message.Message) {
				m.Nack()
				synctest.Wait()
				stopSubscriber()
			},
			want: bus.ErrGivenBack,
		},
		"the publisher's context ends while a handler works": {
			disturb: func(_ *testing.T, _ *inprocess.Bus, stopPublisher, _ func(), _ *message.Message) { stopPublisher() },
			want:    context.Canceled,
		},
		"the publisher's context ends between two attempts": {
			disturb: func(_ *testing.T, _ *inprocess.Bus, stopPublisher, _ func(), m *message.Message) {
				m.Nack()
				synctest.Wait()
				stopPublisher()
			},
			want: context.Canceled,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, 1)
				publisherContext, stopPublisher := context.WithCancel(t.Context())
				subscriberContext, stopSubscriber := context.WithCancel(t.Context())
				defer stopPublisher()
				defer stopSubscriber()
				messages := subscribe(subscriberContext, t, b)
				done := publish(publisherContext, b, of("a", "one"), of("a", "two"))
				inHand := <-messages
				require.Equal(t, "one", inHand.UUID)
				requirePending(t, done, "published before the ack")

				test.disturb(t, b, stopPublisher, stopSubscriber, inHand)

				require.ErrorIs(t, <-done, test.want)
				inHand.Ack() // too late for the publisher, and "two" must not follow
				<-time.After(time.Minute)
				select {
				case m, open := <-messages:
					require.False(t, open, "delivered %v", m)
				default:
				}
			})
		})
	}
}

func TestPublishBatchWithoutSubscriber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		require.ErrorIs(t, b.PublishBatch(t.Context(), []*message.Message{of("a", "one")}), inprocess.ErrNoSubscriber)

		ctx, cancel := context.WithCancel(t.Context())
		messages := subscribe(ctx, t, b)
		cancel()
		_, open := <-messages
		require.False(t, open)
		require.ErrorIs(t, b.PublishBatch(t.Context(), []*message.Message{of("a", "one")}), inprocess.ErrNoSubscriber)
		require.NoError(t, b.PublishBatch(t.Context(), nil), "an empty batch")
	})
}

func TestPublishBatchWithAContextThatIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		messages := subscribe(t.Context(), t, b)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, b.PublishBatch(ctx, []*message.Message{of("a", "one")}), context.Canceled)
		requirePending(t, messages, "delivered")
	})
}

func TestClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 2)
		messages := subscribe(t.Context(), t, b)
		require.NoError(t, b.Close())
		select {
		case _, open := <-messages:
			require.False(t, open)
		default:
			t.Fatal("Close returned before the subscription had ended")
		}
		require.ErrorIs(t, b.PublishBatch(t.Context(), []*message.Message{of("a", "one")}), inprocess.ErrClosed)
		_, err := b.Subscribe(t.Context(), inprocess.Topic)
		require.ErrorIs(t, err, inprocess.ErrClosed)
		require.NoError(t, b.Close(), "once more")
	})
}

func TestNackedMessageComesAgainEverMoreSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		messages := subscribe(t.Context(), t, b)
		done := publish(t.Context(), b, of("a", "one"), of("a", "two"))

		m := <-messages
		for _, want := range []int64{10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000} {
			m.Nack()
			nacked := time.Now()
			m = <-messages
			require.Equal(t, "one", m.UUID)
			require.Equal(t, want, time.Since(nacked).Milliseconds())
		}
		m.Ack()
		m = <-messages
		require.Equal(t, "two", m.UUID)
		m.Nack()
		nacked := time.Now()
		m = <-messages
		require.Equal(t, 10*time.Millisecond, time.Since(nacked), "each message has delays of its own")
		m.Ack()
		require.NoError(t, <-done)
	})
}

func TestStoppedSubscriberFinishesWhatItHasInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		ctx, stop := context.WithCancel(t.Context())
		messages := subscribe(ctx, t, b)
		done := publish(t.Context(), b, of("a", "one"))
		inHand := <-messages

		stop()
		requirePending(t, messages, "closed with a message in hand")
		requirePending(t, done, "published before the ack")
		inHand.Ack()

		require.NoError(t, <-done)
		_, open := <-messages
		require.False(t, open)
	})
}

func TestPublishedAgainAfterTheSubscriberWasReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		ctx, stop := context.WithCancel(t.Context())
		first := subscribe(ctx, t, b)
		done := publish(t.Context(), b, of("a", "one"), of("a", "two"))
		inHand := <-first
		stop()
		inHand.Nack()
		require.ErrorIs(t, <-done, bus.ErrGivenBack)

		second := subscribe(t.Context(), t, b)
		done = publish(t.Context(), b, of("a", "one"), of("a", "two"))
		for _, want := range []string{"one", "two"} {
			m := <-second
			require.Equal(t, want, m.UUID)
			m.Ack()
		}
		require.NoError(t, <-done)
	})
}

// One of two subscribers ends: what it gives back goes to the other, before the next of its aggregate.
func TestTheOtherSubscriberGetsWhatOneGivesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		ctx, stop := context.WithCancel(t.Context())
		first := subscribe(ctx, t, b)
		done := publish(t.Context(), b, of("a", "one"), of("a", "two"))
		inHand := <-first
		second := subscribe(t.Context(), t, b)
		stop()
		inHand.Nack()
		for _, want := range []string{"one", "two"} {
			m := <-second
			require.Equal(t, want, m.UUID)
			m.Ack()
		}
		require.NoError(t, <-done)
	})
}

// What was published for a context that has ended does not pile up behind a slow handler.
func TestWhatNobodyWantsIsDroppedWithTheNextBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, 1)
		messages := subscribe(t.Context(), t, b)
		ctx, stop := context.WithCancel(t.Context())
		old := of("a", "two")
		require.NoError(t, b.PublishBatch(ctx, []*message.Message{of("a", "one"), old}))
		inHand := <-messages
		stop()
		synctest.Wait()
		done := publish(t.Context(), b, of("a", "one"), of("a", "two"))
		<-old.Nacked()
		inHand.Ack()
		for _, want := range []string{"one", "two"} {
			m := <-messages
			require.Equal(t, want, m.UUID)
			m.Ack()
		}
		require.NoError(t, <-done)
	})
}

// TestRouter is the way a worker uses the bus and stops: every handler is stopped, finishes what it has in hand, and
// what the publisher was told is true.
func TestRouter(t *testing.T) {
	t.Parallel()
	b := newBus(t, 4)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 5 * time.Second}, nil)
	require.NoError(t, err)
	var mu sync.Mutex
	handled := map[string]int{}
	entered, release := make(chan struct{}), make(chan struct{})
	var handlers []*message.Handler
	for _, topic := range b.Topics() {
		handlers = append(handlers, router.AddConsumerHandler(topic, topic, b, func(m *message.Message) error {
			if m.UUID == "slow" {
				close(entered)
				<-release
			}
			mu.Lock()
			defer mu.Unlock()
			handled[m.UUID]++
			return nil
		}))
	}
	running := make(chan error, 1)
	go func() { running <- router.Run(context.WithoutCancel(t.Context())) }()
	<-router.Running()

	var batch []*message.Message
	for i := range 100 {
		batch = append(batch, of(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	require.NoError(t, bus.Deliver(t.Context(), b, batch))
	require.Len(t, handled, 100)

	done := publish(t.Context(), b, of("a", "slow"), of("a", "after it"))
	<-entered
	for _, h := range handlers {
		h.Stop()
	}
	close(release)
	for _, h := range handlers {
		<-h.Stopped()
	}
	require.ErrorIs(t, <-done, bus.ErrGivenBack)
	require.NoError(t, router.Close())
	require.NoError(t, <-running)
	require.Equal(t, 1, handled["slow"])
	require.NotContains(t, handled, "after it")
}

func BenchmarkPublishBatch(b *testing.B) {
	for _, concurrency := range []int{1, 8} {
		b.Run(fmt.Sprintf("concurrency=%d", concurrency), func(b *testing.B) {
			p := inprocess.New(concurrency)
			messages, err := p.Subscribe(b.Context(), inprocess.Topic)
			require.NoError(b, err)
			go func() {
				for m := range messages {
					m.Ack()
				}
			}()
			b.ReportAllocs()
			for b.Loop() {
				batch := make([]*message.Message, 100)
				for i := range batch {
					batch[i] = of(fmt.Sprint(i), "event")
				}
				require.NoError(b, bus.Deliver(b.Context(), p, batch))
			}
			b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "messages/s")
			require.NoError(b, p.Close())
		})
	}
}
