package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/worker"
)

func dlqPutAside(s *worker.Settings, to deadletter.State, name, short, long string) *cobra.Command {
	c := &cobra.Command{
		Use: name + " [ID]... --reason WHY", Short: short, Long: long,
		Example: "  worker dlq " + name + " --group 3f9a12c4 --reason 'CLINIC-512: sent twice'",
	}
	by := addDecision(c)
	chosen := addChoice(c, "failure")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := checkReason(*by); err != nil {
			return err
		}
		return onChosen(c, s, chosen, args, c.OutOrStdout(), string(to), func(table *deadletter.Table, f deadletter.Filter) (int, error) {
			return table.PutAside(c.Context(), f, to, *by)
		})
	}
	return c
}

func dlqArchived(s *worker.Settings) *cobra.Command {
	c := group(&cobra.Command{Use: "archived", Short: "List and show archived dead letters"})
	c.AddCommand(dlqArchivedList(s), dlqShow(s))
	return c
}

func dlqArchivedList(s *worker.Settings) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list [ID]...",
		Short: "List archived letters, in the order of archiving",
		Long: `list prints the archived letters. With --all or with ids it also prints discarded letters, the originals of edited letters,
and letters that were handled by a replay.`,
	}
	f := addFormat(c)
	chosen := addFilter(c, "reason")
	c.Flags().BoolVar(&all, "all", false, "include discarded, edited and handled letters")
	c.RunE = func(c *cobra.Command, args []string) error {
		chosen.States = []deadletter.State{deadletter.Archived}
		if all || len(args) > 0 {
			chosen.States = append(chosen.States, deadletter.Discarded, deadletter.Superseded, deadletter.Settled)
		}
		filter, err := chosen.filter(args)
		if err != nil {
			return err
		}
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			p := newPrinter(c, *f, column{name: "ID"}, column{name: "ARCHIVED"}, column{name: "AS", spare: 4}, column{name: "BY", least: 12},
				column{name: "WHY", least: 20}, column{name: "TYPE", least: 16, spare: 2}, column{name: "HANDLER", least: 12, spare: 3},
				column{name: "FAILURE", least: 20, spare: 1})
			return printAll(p, table.List(c.Context(), filter), printArchived)
		})
	}
	return c
}

func printArchived(p *printer, l deadletter.Letter) error {
	return p.print(struct {
		letterLine

		By  string    `json:"archived_by"`
		At  time.Time `json:"archived_at,omitzero"`
		Why string    `json:"archived_reason"`
	}{lineOf(l), l.Decided.By, l.Decided.At, l.Decided.Reason},
		l.ID, localTime(l.Decided.At), string(l.State), l.Decided.By, orDash(l.Decided.Reason), l.Type, l.Handler, l.Reason)
}

func dlqRestore(s *worker.Settings) *cobra.Command {
	c := &cobra.Command{
		Use:   "restore [ID]...",
		Short: "Return archived letters to the state waiting",
		Long: `restore returns archived letters to the state waiting. They are unchanged and keep their ids. Discarded letters and the
originals of edited letters are restored only by id; handled letters are never restored.`,
	}
	by := addBy(c)
	chosen := addChoice(c, "reason")
	c.RunE = func(c *cobra.Command, args []string) error {
		chosen.States = []deadletter.State{deadletter.Archived}
		if len(args) > 0 {
			chosen.States = append(chosen.States, deadletter.Discarded, deadletter.Superseded)
		}
		return onChosen(c, s, chosen, args, c.OutOrStdout(), "restored", func(table *deadletter.Table, f deadletter.Filter) (int, error) {
			return table.Restore(c.Context(), f, *by)
		})
	}
	return c
}

func dlqExport(s *worker.Settings) *cobra.Command {
	var remove bool
	c := &cobra.Command{
		Use:   "export FILE",
		Short: "Write dead letters to a file, as JSON lines",
		Long: `export writes waiting dead letters to a new file, one line each, without any loss: all of them, or those that a filter
selects. THE FILE CONTAINS PATIENT DATA: the bodies are in it, as import needs them. Only its owner can read it. With - as FILE,
export writes to standard output, unless that is a terminal. If no letter matches, it leaves no file.`,
		Args: oneFile,
	}
	chosen := addFilter(c, "reason")
	by := addBy(c)
	c.Flags().BoolVar(&remove, "remove", false, "delete each letter after its line is synced to disk")
	c.RunE = func(c *cobra.Command, args []string) error {
		toStdout := args[0] == "-"
		if toStdout && remove {
			return usageError{errors.New("--remove needs a file: standard output cannot be synced to disk")}
		}
		if _, terminal := asTerminal(c.OutOrStdout()); toStdout && terminal {
			return usageError{errors.New("an export contains patient data, and is not printed on a terminal: name a file, or redirect the output")}
		}
		report := c.OutOrStdout()
		if toStdout {
			report = c.ErrOrStderr()
		}
		return onChosen(c, s, chosen, nil, report, "exported", func(table *deadletter.Table, f deadletter.Filter) (int, error) {
			if toStdout {
				return table.Export(c.Context(), f, unsynced{c.OutOrStdout()}, *by)
			}
			export := table.Export
			if remove {
				export = table.ExportAndRemove
			}
			return exportTo(args[0], func(file *os.File) (int, error) { return export(c.Context(), f, file, *by) })
		})
	}
	return c
}

// unsynced is an output that cannot be synced to disk.
type unsynced struct{ io.Writer }

func (unsynced) Sync() error { return nil }

// exportTo creates a file for an export, and removes it if the export writes nothing.
func exportTo(path string, export func(*os.File) (int, error)) (n int, err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, usageError{fmt.Errorf("export dead letters: %w", err)}
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
		Short: "Add exported dead letters",
		Long: `import adds the letters of a file that export wrote. They keep their ids, and their state is waiting. import first reads the
whole file: if a line is invalid, it names the line and imports nothing.

It skips letters that are in the table already, in any state. To complete an interrupted import, import the file again.`,
		Args: oneFile,
	}
	by := addActor(c)
	c.Flags().BoolVar(&again, "again", false, "return letters to waiting that are archived, discarded, edited or handled in the table")
	c.RunE = func(c *cobra.Command, args []string) error {
		file, err := os.Open(args[0])
		if err != nil {
			return usageError{fmt.Errorf("import dead letters: %w", err)}
		}
		defer file.Close()
		return withDeadLetters(c, s, func(table *deadletter.Table) error {
			counts, err := table.Import(c.Context(), file, again, *by)
			if err != nil {
				return fmt.Errorf("%w (imported: %d)", err, counts.Imported)
			}
			fmt.Fprintf(c.OutOrStdout(), "imported: %d, skipped: %d\n", counts.Imported, counts.Lines-counts.Imported)
			return nil
		})
	}
	return c
}
