package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/handlers"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/text"
	"github.com/healz/worker/internal/worker"
)

// names are what flags can name. They are used for completion and for hints.
type names struct{ types, aggregates, handlers, groups []string }

// newestEvents is the number of events whose types are known as names.
const newestEvents = 1000

// namesIn are the names in the newest events and in the waiting dead letters of a store.
func namesIn(ctx context.Context, b worker.Backend) (n names, err error) {
	page, err := b.Search(ctx, store.Search{}, store.Query{Limit: newestEvents, WithoutData: true})
	if err != nil {
		return n, err
	}
	for _, e := range page.Events {
		n.types, n.aggregates = append(n.types, e.Type), append(n.aggregates, e.AggregateType)
	}
	groups, err := deadletter.NewTable(b.SQL()).Groups(ctx, deadletter.Filter{})
	for _, g := range groups {
		n.types, n.handlers, n.groups = append(n.types, g.Type), append(n.handlers, g.Handler), append(n.groups, g.ID)
	}
	return n, err
}

// hint says which of the known names are near to names that were asked for and are not known, or is "".
func (n names) hint(eventType, aggregateType, handler, group string) string {
	var meant []string
	for _, of := range []struct {
		flag, name string
		known      []string
	}{
		{"type", eventType, n.types},
		{"aggregate", aggregateType, n.aggregates},
		{"handler", handler, n.handlers},
		{"group", group, n.groups},
	} {
		if near := nearest(of.name, of.known); near != "" {
			meant = append(meant, fmt.Sprintf("--%s %s", of.flag, text.Printable(near)))
		}
	}
	if len(meant) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(meant, " and ") + "?"
}

// printHint prints on stderr which types were probably meant, if these are not known.
func printHint(c *cobra.Command, b worker.Backend, eventType, aggregateType string) error {
	if eventType == "" && aggregateType == "" {
		return nil
	}
	known, err := namesIn(c.Context(), b)
	if hint := known.hint(eventType, aggregateType, "", ""); hint != "" {
		fmt.Fprintln(c.ErrOrStderr(), hint)
	}
	return err
}

// nearest returns the known name that differs least from a name, if it differs in few characters or begins with it. It is ""
// if there is none, or if the name itself is known.
func nearest(name string, known []string) string {
	near, least := "", 0
	most := max(2, len(name)/4)
	if len(name) < 4 {
		most = 1
	}
	for _, k := range slices.Sorted(slices.Values(known)) {
		if k == name || name == "" {
			return ""
		}
		d := distance(strings.ToLower(name), strings.ToLower(k))
		if len(name) >= 3 && strings.HasPrefix(strings.ToLower(k), strings.ToLower(name)) {
			d = min(d, 1)
		}
		if k != "" && d <= most && (near == "" || d < least) {
			near, least = k, d
		}
	}
	return near
}

// distance is the number of bytes to insert, delete or replace to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// meant adds to the text of an error the name that was probably meant.
func meant(text, prefix, name string, known []string) error {
	if near := nearest(name, known); near != "" {
		text += fmt.Sprintf("; did you mean %s%s?", prefix, near)
	}
	return usageError{fmt.Errorf("%s", text)}
}

// completionTimeout bounds how long the shell waits for names of the store.
const completionTimeout = 2 * time.Second

// completeNames completes the flags and arguments that name something in the store or among the handlers.
func completeNames(root *cobra.Command, s *worker.Settings, all registrations) {
	complete := func(of func(names) []string) cobra.CompletionFunc {
		return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			known := slices.DeleteFunc(of(namesFor(c, s, all)), func(name string) bool { return name == "" })
			slices.Sort(known)
			return slices.Compact(known), cobra.ShellCompDirectiveNoFileComp
		}
	}
	flags := map[string]cobra.CompletionFunc{
		"type":    complete(func(n names) []string { return n.types }),
		"handler": complete(func(n names) []string { return n.handlers }),
		"to": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return append(s.Registry(all).Names(), string(deadletter.ToHandler), string(deadletter.ToBus)), cobra.ShellCompDirectiveNoFileComp
		},
		"group": complete(func(n names) []string { return n.groups }),
	}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for name, function := range flags {
			if c.Flags().Lookup(name) != nil {
				if err := c.RegisterFlagCompletionFunc(name, function); err != nil {
					panic(err) // it is completed already
				}
			}
		}
		if strings.Contains(c.Use, "TYPE") {
			c.ValidArgsFunction = flags["type"]
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}

// namesFor are the names for the completion of a command: of the registered handlers and, if it can be opened, of the store.
func namesFor(c *cobra.Command, s *worker.Settings, all registrations) names {
	if fromEnvironment(c, c.Flags()) != nil {
		return names{}
	}
	complement(s)
	ctx, cancel := context.WithTimeout(cmp.Or(c.Context(), context.Background()), completionTimeout)
	defer cancel()
	c.SetContext(ctx)
	var n names
	_ = withStore(c, s, s.OpenExisting, func(b worker.Backend) (err error) { // without a store there are the handlers
		n, err = namesIn(ctx, b)
		return err
	})
	reg := s.Registry(all)
	types, _ := handlers.Types(reg)
	n.types, n.handlers = append(n.types, types...), append(n.handlers, reg.Names()...)
	return n
}
