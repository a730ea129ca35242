package main

import (
	"context"
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

// dlqKeeping are the commands that take letters out of their queue, and bring them back.
func dlqKeeping(s *worker.Settings) []*cobra.Command {
	return []*cobra.Command{
		dlqPut(s, deadletter.Archived, "archive", "Take dead letters out of the queue and put them into the archive",
			`archive takes the dead letters that are chosen out of the queue and puts them into the archive, a table of the store, with
who did it, when and why. Each leaves the queue only once it is in the archive: restore brings it back. With
--after-dead-letter park, later events of its aggregate go on waiting for it.`),
		dlqPut(s, deadletter.Discarded, "discard", "Take dead letters that nobody wants handled out of the queue",
			`discard is as archive, for letters that are not to be handled: what is parked behind them waits no longer, and the archive
shows and restores them only when they are named. Nothing is destroyed: restore ID brings one back.`),
		dlqArchived(s), dlqRestore(s), dlqExport(s), dlqImport(s), dlqEdit(s),
	}
}

func dlqPut(s *worker.Settings, disposition deadletter.Disposition, name, short, long string) *cobra.Command {
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
		return withArchive(c.Context(), s, func(a *deadletter.Archive) error {
			n, err := a.Put(c.Context(), filter, disposition, d.Decision)
			return report(c.OutOrStdout(), string(disposition), n, filter, err)
		})
	}
	return c
}

func dlqArchived(s *worker.Settings) *cobra.Command {
	c := group(&cobra.Command{Use: "archived", Short: "Look into the archive of dead letters"})
	c.AddCommand(dlqArchivedList(s), dlqArchivedShow(s))
	return c
}

func dlqArchivedList(s *worker.Settings) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list [ID]...",
		Short: "List the letters in the archive, in the order in which they came there",
		Long: `list lists the letters that archive has put away. Those that were discarded, edited or restored are listed with --all;
the first two also by their ids.`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&all, "all", false, "also those that were discarded, edited or restored")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		return withArchive(c.Context(), s, func(a *deadletter.Archive) error {
			p := newArchivePrinter(c.OutOrStdout(), *f)
			for l, err := range a.List(c.Context(), deadletter.ArchiveFilter{Filter: filter, All: all}) {
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
		Short: "Show one letter of the archive, by its id or its event's",
		Args:  oneID, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(c)
	c.Flags().BoolVar(&reveal, "reveal", false, "show the body and the headers too: they may be about a patient")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter := deadletter.ArchiveFilter{Filter: deadletter.Filter{IDs: args, Limit: 1}, All: true}
		return withArchive(c.Context(), s, func(a *deadletter.Archive) error {
			for l, err := range a.List(c.Context(), filter) {
				if err != nil {
					return err
				}
				return showLetter(c.OutOrStdout(), *f, l.Letter, reveal)
			}
			return fmt.Errorf("no archived letter has the id %q", args[0])
		})
	}
	return c
}

func dlqRestore(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "restore [ID]...",
		Short: "Put archived letters back into the queue as they were",
		Long: `restore puts the letters that are chosen back into the queue, behind what is there, in the order in which they were
archived. They are as they were, body, properties and headers; only those in a table of the store get new ids. Their rows
stay in the archive, marked. Discarded and edited ones are restored only by their ids.`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	by := addBy(c)
	chosen := addChoice(c, "reason")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		return withArchive(c.Context(), s, func(a *deadletter.Archive) error {
			n, err := a.Restore(c.Context(), filter, *by)
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
		Long: `export writes the dead letters that are chosen, or all, into a new file that only its owner can read, a line each, and
loses nothing of them. THE FILE HOLDS PATIENT DATA: the bodies are in it. import reads it. FILE may be -, which is the
standard output. If there is no letter, no file is left behind.`,
		Args: oneFile,
	}
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&remove, "remove", false, "take the letters out of the queue, each once its line is safe on the disk")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		filter, err := chosen.filter(nil)
		if err != nil {
			return err
		}
		if args[0] == "-" {
			if remove {
				return usageError{errors.New("--remove needs a file: nobody can tell whether what reads the standard output keeps it")}
			}
			return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
				n, err := deadletter.Export(c.Context(), q, filter, unsynced{c.OutOrStdout()})
				return report(c.ErrOrStderr(), "exported", n, filter, err)
			})
		}
		return withDeadLetters(c.Context(), s, func(q deadletter.Queue) error {
			export := deadletter.Export
			if remove {
				export = deadletter.ExportAndRemove
			}
			n, err := exportInto(args[0], func(file *os.File) (int, error) { return export(c.Context(), q, filter, file) })
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
		Short: "Put dead letters that were exported into the queue",
		Long: `import puts the letters of a file that export wrote into the queue, behind what is there, in their order. All of the file
is read first: if a line is bad, it is named, and nothing is imported.

A letter that was imported before is passed over, wherever it has come since: the archive knows it. An import that was cut
off is completed by importing the file again.`,
		Args: oneFile,
	}
	by := addBy(c)
	c.Flags().BoolVar(&again, "again", false, "also letters that were imported before, as they were purged or lost since")
	c.RunE = func(c *cobra.Command, args []string) error {
		return withArchive(c.Context(), s, func(a *deadletter.Archive) (err error) {
			file, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("import dead letters: %w", err)
			}
			defer file.Close()
			mode := deadletter.ImportOnce
			if again {
				mode = deadletter.ImportAnew
			}
			d := deadletter.Decision{By: *by, Reason: "import of " + args[0]}
			counts, err := a.Import(c.Context(), file, d, mode)
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
	c.Flags().StringVar(&d.Reason, "reason", "", "why, for whoever looks into the archive; required")
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

func withArchive(ctx context.Context, s *worker.Settings, do func(*deadletter.Archive) error) (err error) {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	a, closeArchive, err := s.OpenArchive(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeArchive()) }()
	return do(a)
}

// archivePrinter prints archived letters.
type archivePrinter struct {
	w io.Writer
	f format
	t *table
}

func newArchivePrinter(w io.Writer, f format) *archivePrinter {
	return &archivePrinter{w: w, f: f, t: newTable(w, "ID", "ARCHIVED", "AS", "BY", "WHY", "RESTORED", "TYPE", "HANDLER", "FAILURE")}
}

func (p *archivePrinter) print(l deadletter.ArchivedLetter) error {
	if p.f == formatJSON {
		line := struct {
			letterLine

			ArchiveID   string                 `json:"archive_id"`
			Disposition deadletter.Disposition `json:"disposition"`
			By          string                 `json:"archived_by"`
			At          time.Time              `json:"archived_at"`
			Why         string                 `json:"archived_reason"`
			RestoredBy  string                 `json:"restored_by,omitempty"`
			RestoredAt  *time.Time             `json:"restored_at,omitempty"`
		}{letterLine: lineOf(l.Letter), ArchiveID: l.ID, Disposition: l.Disposition, By: l.By, At: l.At, Why: l.Reason}
		if !l.RestoredAt.IsZero() {
			line.RestoredBy, line.RestoredAt = l.RestoredBy, &l.RestoredAt
		}
		return printJSON(p.w, line)
	}
	restored := "-"
	if !l.RestoredAt.IsZero() {
		restored = localTime(l.RestoredAt) + " " + l.RestoredBy
	}
	p.t.row(l.Letter.ID, localTime(l.At), string(l.Disposition), l.By, l.Reason, restored, l.Letter.Type, l.Letter.Handler,
		l.Letter.Failure.Reason)
	return nil
}
