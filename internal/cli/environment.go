package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/text"
)

// variable returns the environment variable of a flag of c. Three variables have names that all services share. The
// variable of a command's own flag contains the name of the command, so that it does not change other commands; doctor
// shares the variables of run.
func variable(c *cobra.Command, f *pflag.Flag) string {
	name := upper(f.Name)
	switch {
	case name == "DATABASE_URL" || name == "RABBITMQ_URL" || name == "HTTP_ADDR":
		return name
	case c.LocalNonPersistentFlags().Lookup(f.Name) != nil && c.Name() != "run" && c.Name() != "doctor" && f.Name != outputFlag:
		_, path, _ := strings.Cut(c.CommandPath(), " ")
		return "WORKER_" + upper(path) + "_" + name
	default:
		return "WORKER_" + name
	}
}

func upper(s string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", " ", "_").Replace(s))
}

// fromEnvironment sets the flags of c that the command line does not set from their variables. A blank variable counts as unset.
func fromEnvironment(c *cobra.Command, flags *pflag.FlagSet) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		value := os.Getenv(variable(c, f))
		if f.Name == outputFlag && value == "" {
			value = os.Getenv("WORKER_" + upper(formerOutputFlag))
		}
		if f.Changed || strings.TrimSpace(value) == "" || f.Name == "help" || f.Name == "version" || failed != nil {
			return
		}
		if err := c.Flags().Set(f.Name, value); err != nil {
			failed = usageError{fmt.Errorf("environment variable %s: %w", variable(c, f), err)}
		}
	})
	return failed
}

// usageTemplate is cobra's template of the help, with lines of the default width, and with the global flags in short.
func usageTemplate(root *cobra.Command) string {
	var global []string
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { global = append(global, "--"+f.Name) })
	short := fmt.Sprintf("Global flags, explained by %q:\n  %s", root.Name()+" --help",
		strings.Join(text.Wrap(strings.Join(global, " "), defaultWidth-2), "\n  "))
	return strings.NewReplacer(
		".LocalFlags.FlagUsages", fmt.Sprintf(".LocalFlags.FlagUsagesWrapped %d", defaultWidth),
		"Global Flags:\n{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}", short,
	).Replace(root.UsageTemplate())
}

// finish adds the variable of each flag to its help, and turns off completion by file names where no FILE is taken.
func finish(c *cobra.Command) {
	c.Long = reflowed(c.Long, defaultWidth)
	if !strings.Contains(c.Use, "FILE") {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	describe := func(f *pflag.Flag) {
		if mark := " [$" + variable(c, f) + "]"; f.Name != "help" && f.Name != "version" && !strings.HasSuffix(f.Usage, mark) {
			f.Usage += mark
		}
	}
	c.PersistentFlags().VisitAll(describe)
	c.LocalFlags().VisitAll(describe)
	for _, sub := range c.Commands() {
		finish(sub)
	}
}
