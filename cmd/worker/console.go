package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/console"
	"github.com/healz/worker/internal/handlers/register"
	"github.com/healz/worker/internal/worker"
)

// consoleConns is how many connections to Postgres the console has: its own, so that who looks keeps nobody from working.
const consoleConns = 4

// consoleFlags are the settings of the console.
type consoleFlags struct {
	token, writeToken string
	write             bool
}

func (f *consoleFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.token, "console-token", "",
		"who has this token may look at the console; @FILE reads it from a file. Without a token it is served on loopback addresses alone")
	flags.StringVar(&f.writeToken, "console-write-token", "", "who has this token may also replay, archive and reveal; @FILE as above")
	flags.BoolVar(&f.write, "console-write", false, "let all who may look at the console also replay, archive and reveal")
}

// access reads the tokens.
func (f *consoleFlags) access() (console.Access, error) {
	a := console.Access{Write: f.write}
	for _, token := range []struct {
		name, value string
		into        *string
	}{{"console-token", f.token, &a.Token}, {"console-write-token", f.writeToken, &a.WriteToken}} {
		*token.into = token.value
		path, isFile := strings.CutPrefix(token.value, "@")
		if !isFile {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return a, fmt.Errorf("%s: %w", token.name, err)
		}
		if *token.into = strings.TrimSpace(string(content)); *token.into == "" {
			return a, fmt.Errorf("%s: %s is empty", token.name, path)
		}
	}
	return a, a.Check()
}

// serveConsole opens a console of the worker on front, and returns what closes it.
func serveConsole(
	ctx context.Context, front *console.Front, s worker.Settings, access console.Access, w *worker.Worker,
	listening net.Addr, logger *slog.Logger,
) (func() error, error) {
	if err := access.CheckAddress(listening); err != nil {
		front.Refuse(err)
		logger.WarnContext(ctx, "the console is not served", "reason", err)
		return func() error { return nil }, nil
	}
	s.MaxConns = consoleConns
	backend, err := s.OpenStore(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the store for the console: %w", err)
	}
	letters, closeLetters, err := s.OpenDeadLetters(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the dead letters for the console: %w", err), backend.Close())
	}
	c, err := console.New(ctx, console.Config{
		Store: backend, Letters: letters, Aggregates: register.Aggregates(), Access: access, Logger: logger,
		Status: func(ctx context.Context) console.Status { return console.StatusOf(w.Health(ctx)) },
	})
	if err != nil {
		return nil, errors.Join(err, closeLetters(), backend.Close())
	}
	front.Serve(c)
	return func() error {
		c.Close()
		return errors.Join(closeLetters(), backend.Close())
	}, nil
}
