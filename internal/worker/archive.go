package worker

import (
	"context"
	"errors"

	"github.com/healz/worker/internal/deadletter"
)

// OpenArchive opens the archive, in the store of the settings, of the dead letters that they have.
func (s Settings) OpenArchive(ctx context.Context) (*deadletter.Archive, func() error, error) {
	b, err := s.OpenExisting(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.AMQP.URL == "" {
		return deadletter.NewShelfArchive(deadletter.NewShelfQueue(b), b), b.Close, nil
	}
	q, closeQueue, err := s.OpenDeadLetters(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return deadletter.NewBrokerArchive(q, b), func() error { return errors.Join(closeQueue(), b.Close()) }, nil
}
