package main

import (
	"bufio"
	"bytes"
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
		Long: `edit opens the event of a dead letter that waits in $VISUAL or $EDITOR, or applies a patch to it, checks it, and releases the
changed letter for a replay to the handler that failed. The worker that runs sends it. The letter keeps its id; its original
becomes an archived letter of its own, in the state edited.

The letter stays the same event: its id, type, aggregate, version, tenant and correlation cannot be changed, where the
letter has them. So the handlers that have handled the original skip it as handled, and its causes and effects stay
connected; its metadata names what it was (edited_from). The event in the store, if it is there, is not changed.

While the editor is open, the event is in a file that only its owner can read, in a folder that is removed afterwards.`,
		Example: `  worker dlq edit 01JD… --reason 'CLINIC-512: the name was missing'
  echo '{"event_data":{"name":"Ana"}}' | worker dlq edit 01JD… --patch - --reason CLINIC-512`,
		Args: oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	d := addDecision(c)
	c.Flags().StringVar(&patch, "patch", "",
		"a FILE with a JSON Patch (RFC 6902) or a JSON Merge Patch (RFC 7396) to apply, - for stdin; no editor is opened")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := d.check(); err != nil {
			return err
		}
		change := editor(c)
		if patch != "" {
			text, err := readPatch(c.InOrStdin(), patch)
			if err != nil {
				return err
			}
			change = func(body []byte, _ func([]byte) error) ([]byte, error) { return deadletter.Patch(body, text) }
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			done, err := table.Edit(c.Context(), args[0], change, d.Decision)
			if errors.Is(err, deadletter.ErrUnchanged) {
				fmt.Fprintln(c.ErrOrStderr(), "nothing was changed, and nothing done")
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "edited: letter %s is released, and the running worker sends it; the original is archived letter %s\n",
				done.LetterID, done.OriginalID)
			return nil
		})
	}
	return c
}

func readPatch(in io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(path)
}

// editor lets the user change a body, until it is right or is given up.
func editor(c *cobra.Command) func(body []byte, check func([]byte) error) ([]byte, error) {
	return func(body []byte, check func([]byte) error) (edited []byte, err error) {
		command := os.Getenv("VISUAL")
		if command == "" {
			command = os.Getenv("EDITOR")
		}
		if command == "" {
			return nil, usageError{errors.New("set VISUAL or EDITOR to an editor, or use --patch")}
		}
		folder, err := os.MkdirTemp("", "worker-edit-")
		if err != nil {
			return nil, fmt.Errorf("make a folder for the editor: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
		path := filepath.Join(folder, "event.json")
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

// runEditor runs the editor, which may be a command with arguments, on the terminal.
func runEditor(c *cobra.Command, command, path string) error {
	shell := exec.CommandContext(context.WithoutCancel(c.Context()), "sh", "-c", command+` "$1"`, "sh", path)
	shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, c.OutOrStdout(), c.ErrOrStderr()
	if err := shell.Run(); err != nil {
		return fmt.Errorf("the editor failed, nothing was changed: %w", err)
	}
	return nil
}
