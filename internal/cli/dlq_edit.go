package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqEdit(s *worker.Settings) *cobra.Command {
	var patch string
	c := &cobra.Command{
		Use:   "edit ID --reason WHY",
		Short: "Change the payload of a dead letter, and replay it",
		Long: `edit opens the event of a waiting dead letter in $VISUAL or $EDITOR, or applies a patch to it. It validates the result and
releases the letter for a replay to the handler that failed; a running worker publishes it. The letter keeps its id. Its
original becomes a separate letter in the state edited.

The letter remains the same event: its id, type, aggregate, version, tenant and correlation cannot be changed, unless they
are missing. Therefore the handlers that have handled the original skip it, and its trace stays complete. Its metadata
contains the fingerprint of the original (edited_from). The event in the store, if there is one, is not changed.

While the editor is open, the event is in a file that only its owner can read, in a directory that is removed afterwards.`,
		Example: `  worker dlq edit 01JD… --reason 'CLINIC-512: the name was missing'
  echo '{"event_data":{"name":"Ana"}}' | worker dlq edit 01JD… \
    --patch - --reason CLINIC-512`,
		Args: oneID,
	}
	by := addDecision(c)
	c.Flags().StringVar(&patch, "patch", "",
		"apply the JSON Patch (RFC 6902) or JSON Merge Patch (RFC 7396) in this `FILE`, - for stdin, and open no editor")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := checkReason(*by); err != nil {
			return err
		}
		change := editor(c)
		if patch != "" {
			var text []byte
			var err error
			if patch == "-" {
				text, err = io.ReadAll(c.InOrStdin())
			} else {
				text, err = os.ReadFile(patch)
			}
			if err != nil {
				return usageError{err}
			}
			change = func(body []byte, _ func([]byte) error) ([]byte, error) { return deadletter.Patch(body, text) }
		}
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			done, err := table.Edit(c.Context(), args[0], change, *by)
			if errors.Is(err, deadletter.ErrUnchanged) {
				fmt.Fprintln(c.ErrOrStderr(), "nothing was changed")
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "edited: letter %s is released, and a running worker publishes it; the original is letter %s\n",
				done.LetterID, done.OriginalID)
			return nil
		})
	}
	return c
}

// editor lets the user edit a body until it is valid, or the user gives up.
func editor(c *cobra.Command) func(body []byte, check func([]byte) error) ([]byte, error) {
	return func(body []byte, check func([]byte) error) (edited []byte, err error) {
		command := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"))
		if command == "" {
			return nil, usageError{errors.New("set VISUAL or EDITOR to an editor, or use --patch")}
		}
		directory, err := os.MkdirTemp("", "worker-edit-")
		if err != nil {
			return nil, fmt.Errorf("create a directory for the editor: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()
		path := filepath.Join(directory, "event.json")
		var indented bytes.Buffer
		if json.Indent(&indented, body, "", "  ") == nil {
			body = indented.Bytes()
		}
		if err := os.WriteFile(path, body, 0o600); err != nil {
			return nil, fmt.Errorf("write the file for the editor: %w", err)
		}
		in := bufio.NewReader(c.InOrStdin())
		for {
			if err := runEditor(c, command, path); err != nil {
				return nil, err
			}
			edited, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("read the edited file: %w", err)
			}
			if bytes.Equal(edited, body) {
				return nil, deadletter.ErrUnchanged
			}
			invalid := check(edited)
			if invalid == nil {
				return edited, nil
			}
			fmt.Fprintf(c.ErrOrStderr(), "%s\nEdit again? [Y/n] ", invalid)
			answer, err := in.ReadString('\n')
			if err != nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
				return nil, fmt.Errorf("not edited: %w", invalid)
			}
		}
	}
}

// runEditor runs the editor on the terminal. The command may contain arguments.
func runEditor(c *cobra.Command, command, path string) error {
	shell := exec.CommandContext(context.WithoutCancel(c.Context()), "sh", "-c", command+` "$1"`, "sh", path)
	shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, c.OutOrStdout(), c.ErrOrStderr()
	if err := shell.Run(); err != nil {
		return fmt.Errorf("the editor failed, nothing was changed: %w", err)
	}
	return nil
}
