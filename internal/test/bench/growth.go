package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/healz/worker/internal/worker"
)

const (
	smallTable = 10_000
	largeTable = 10_000_000
)

// measureGrowth compares a table of ten million events with one of ten thousand.
func measureGrowth(ctx context.Context, s *stage) error {
	if !s.wantsAny("growth-append", "growth-read", "growth-relay") {
		return nil
	}
	type table struct{ append, read, relay contender }
	var tables []table
	for _, size := range []int{smallTable, largeTable} {
		settings, backend, err := s.newStore(ctx)
		if err != nil {
			return err
		}
		if err := fill(ctx, settings.DatabaseURL, size); err != nil {
			return err
		}
		// What filled the table is written to disk before, not while, it is measured. It takes a superuser.
		if err := execute(ctx, settings.DatabaseURL, "CHECKPOINT"); err != nil {
			return fmt.Errorf("write the table to disk: %w", err)
		}
		origin, id, err := writeDiary(ctx, backend)
		if err != nil {
			return err
		}
		relays, err := s.ownRelay(ctx, settings, backend)
		if err != nil {
			return err
		}
		tables = append(tables, table{
			append: appending(1, appendOne(backend)),
			read:   diaryReader(backend, origin, id),
			relay:  relays,
		})
	}
	small, large := tables[0], tables[1]
	return errors.Join(
		s.measureRate(ctx, rate{
			name: "growth-append", what: "append one event to 10 million", against: "with 10 thousand", reach: 0.85, step: streamLength,
		}, contenders{raw: small.append, ours: large.append}),
		s.measureRate(ctx, rate{
			name: "growth-read", what: "read a stream of 1000 events among 10 million", against: "with 10 thousand", reach: 0.85,
			step: longStream,
		}, contenders{raw: small.read, ours: large.read}),
		s.measureRate(ctx, rate{
			name: "growth-relay", what: "relay a backlog of 10 million", against: "of 10 thousand", reach: 0.85,
			step: worker.DefaultSettings().Relay.BatchSize, most: smallTable,
		}, contenders{raw: small.relay, ours: large.relay}),
	)
}
