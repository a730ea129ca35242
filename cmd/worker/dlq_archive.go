package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

// dlqKeeping are the commands that put letters aside, keep them elsewhere, and bring them back.
func dlqKeeping(s *worker.Settings) []*cobra.Command {
	return []*cobra.Command{
		dlqPut(s, deadletter.Archived, "archive", "Put dead letters that wait into the archive",
			`archive marks the dead letters that are chosen as archived, with who did it, when and why. They are no longer listed or
replayed; restore makes them wait again. With --after-dead-letter park, later events of their aggregates still wait behind
them.`),
		dlqPut(s, deadletter.Discarded, "discard", "Put dead letters aside that are not to be handled",
			`discard is as archive, for letters that are not to be handled: nothing stays parked behind them, and archived list and
restore concern them only when they are named. Nothing is destroyed: restore ID makes one wait again.`),
		dlqArchived(s), dlqRestore(s), dlqExport(s), dlqImport(s), dlqEdit(s),
	}
}

func dlqPut(s *worker.Settings, as deadletter.State, name, short, long string) *cobra.Command {
	c := &cobra.Command{
		Use: name + " [ID]... --reason WHY", Short: short, Long: long,
		Example:           "  worker dlq " + name + " --group 3f9a12c4 --reason 'CLINIC-512: sent twice by the old portal'",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	d := addDecision(c)
	chosen := addChoice(c, "failure")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		if err := d.check(); err != nil {
			return err
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			n, err := table.PutAside(c.Context(), filter, as, d.Decision)
			return report(c.OutOrStdout(), string(as), n, filter, err)
		})
	}
	return c
}

func dlqArchived(s *worker.Settings) *cobra.Command {
	c := group(&cobra.Command{Use: "archived", Short: "List and show archived dead letters"})
	c.AddCommand(dlqArchivedList(s), dlqArchivedShow(s))
	return c
}

func dlqArchivedList(s *worker.Settings) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list [ID]...",
		Short: "List archived letters, in the order in which they were archived",
		Long: `list lists the archived letters. With --all or by their ids it also lists those that were discarded, the originals of
those that were edited, and those that were handled by a replay.`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&all, "all", false, "also those that were discarded, edited or handled")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		filter.States = []deadletter.State{deadletter.Archived}
		if all || len(args) > 0 {
			filter.States = append(filter.States, deadletter.Discarded, deadletter.Superseded, deadletter.Settled)
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			p := newArchivePrinter(c.OutOrStdout(), *f)
			for l, err := range table.List(c.Context(), filter) {
				if err == nil {
					err = p.print(l)
				}
				if err != nil {
					return errors.Join(p.t.flush(), err)
				}
			}
			return p.t.flush()
		})
	}
	return c
}

func dlqArchivedShow(s *worker.Settings) *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show one archived letter, by its id or its event's",
		Args:  oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().BoolVar(&reveal, "reveal", false, "show the body and the headers too: they may be about a patient")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := findLetter(c, s, args[0])
		if err != nil {
			return err
		}
		return showLetter(c.OutOrStdout(), *f, l, reveal)
	}
	return c
}

func dlqRestore(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "restore [ID]...",
		Short: "Let archived letters wait again, as they were",
		Long: `restore lets the archived letters that are chosen wait again. They are as they were, and keep their ids. Letters that were
discarded and the originals of edited ones are restored only by their ids; those that were handled are not.`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	by := addBy(c)
	chosen := addChoice(c, "reason")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		filter.States = []deadletter.State{deadletter.Archived}
		if len(args) > 0 {
			filter.States = append(filter.States, deadletter.Discarded, deadletter.Superseded)
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			n, err := table.Restore(c.Context(), filter, *by)
			return report(c.OutOrStdout(), "restored", n, filter, err)
		})
	}
	return c
}

func dlqExport(s *worker.Settings) *cobra.Command {
	var remove bool
	c := &cobra.Command{
		Use:   "export FILE",
		Short: "Write dead letters into a file, as JSON lines",
		Long: `export writes the dead letters that wait and are chosen, or all of them, into a new file that only its owner can read, a
line each, and loses nothing of their messages and failures. THE FILE HOLDS PATIENT DATA: the bodies are in it. import reads
it. FILE may be -, which is the standard output. If there is no letter, no file is left behind.`,
		Args: oneFile,
	}
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&remove, "remove", false, "delete the letters, each once its line is safe on the disk")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		filter, err := chosen.filter(nil)
		if err != nil {
			return err
		}
		if args[0] == "-" {
			if remove {
				return usageError{errors.New("--remove needs a file: nobody can tell whether what reads the standard output keeps it")}
			}
			return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
				n, err := table.Export(c.Context(), filter, unsynced{c.OutOrStdout()})
				return report(c.ErrOrStderr(), "exported", n, filter, err)
			})
		}
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			export := table.Export
			if remove {
				export = table.ExportAndRemove
			}
			n, err := exportInto(args[0], func(file *os.File) (int, error) { return export(c.Context(), filter, file) })
			return report(c.OutOrStdout(), "exported", n, filter, err)
		})
	}
	return c
}

// unsynced is an output that cannot be synced to a disk.
type unsynced struct{ io.Writer }

func (unsynced) Sync() error { return nil }

// exportInto makes a file for what export writes, and removes it again if that is nothing.
func exportInto(path string, export func(*os.File) (int, error)) (n int, err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("export dead letters: %w", err)
	}
	n, err = export(file)
	written, statErr := file.Stat()
	err = errors.Join(err, statErr, file.Close())
	if statErr == nil && written.Size() == 0 {
		err = errors.Join(err, os.Remove(path))
	}
	return n, err
}

func dlqImport(s *worker.Settings) *cobra.Command {
	var again bool
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Add dead letters that were exported",
		Long: `import adds the letters of a file that export wrote, with their ids, and they wait. All of the file is read first: if a line
is bad, it is named, and nothing is imported.

A letter that the table has already, in whatever state, is skipped. An import that was interrupted is completed by importing
the file again.`,
		Args: oneFile,
	}
	c.Flags().BoolVar(&again, "again", false, "let letters wait again that the table has as archived, discarded, edited or handled")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withDeadLetters(c.Context(), s, func(table *deadletter.Table) error {
			file, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("import dead letters: %w", err)
			}
			defer file.Close()
			counts, err := table.Import(c.Context(), file, again)
			if err != nil {
				return fmt.Errorf("%w (imported: %d)", err, counts.Imported)
			}
			fmt.Fprintf(c.OutOrStdout(), "imported: %d, before: %d\n", counts.Imported, counts.Lines-counts.Imported)
			return nil
		})
	}
	return c
}

func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("takes one FILE, but got %d", len(args))}
	}
	return nil
}

// report prints how many letters something was done with. err is what ended it.
func report(w io.Writer, done string, n int, chosen deadletter.Filter, err error) error {
	if err == nil && n == 0 && !chosen.IsZero() {
		return noneFound(chosen)
	}
	fmt.Fprintf(w, "%s: %d\n", done, n)
	return err
}

// choice are the flags of a command that changes something: it takes all letters only when told so.
type choice struct {
	*filterFlags

	all bool
}

func addChoice(c *cobra.Command, reasonFlag string) *choice {
	s := &choice{filterFlags: addFilter(c, reasonFlag)}
	c.Flags().BoolVar(&s.all, "all", false, "all letters there are")
	return s
}

func (s *choice) filter(ids []string) (deadletter.Filter, error) {
	chosen, err := s.filterFlags.filter(ids)
	if err == nil && len(ids) == 0 && !s.all && chosen.IsZero() {
		err = usageError{errors.New("choose letters by their ids or by flags, or say --all")}
	}
	return chosen, err
}

// decision is who does something, and why.
type decision struct{ deadletter.Decision }

func addDecision(c *cobra.Command) *decision {
	d := &decision{}
	addByVar(c, &d.By)
	c.Flags().StringVar(&d.Reason, "reason", "", "why, which the letter then tells; required")
	return d
}

func (d *decision) check() error {
	if d.Reason == "" {
		return usageError{errors.New("say why: --reason")}
	}
	return nil
}

func addBy(c *cobra.Command) *string {
	by := new(string)
	addByVar(c, by)
	return by
}

func addByVar(c *cobra.Command, by *string) {
	c.Flags().StringVar(by, "by", whoAmI(), "who does it")
}

// whoAmI is the user of the system, and the machine.
func whoAmI() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// archivePrinter prints archived letters.
type archivePrinter struct {
	w io.Writer
	f format
	t *table
}

func newArchivePrinter(w io.Writer, f format) *archivePrinter {
	return &archivePrinter{w: w, f: f, t: newTable(w, "ID", "ARCHIVED", "AS", "BY", "WHY", "TYPE", "HANDLER", "FAILURE")}
}

func (p *archivePrinter) print(l deadletter.Letter) error {
	if p.f == formatJSON {
		return printJSON(p.w, struct {
			letterLine

			By  string     `json:"archived_by"`
			At  *time.Time `json:"archived_at,omitempty"`
			Why string     `json:"archived_reason"`
		}{lineOf(l), l.Decided.By, orNull(l.Decided.At), l.Decided.Reason})
	}
	p.t.row(l.ID, localTime(l.Decided.At), string(l.State), l.Decided.By, orDash(l.Decided.Reason), l.Type, l.Handler, l.Reason)
	return nil
}
