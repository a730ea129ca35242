package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// variable is the environment variable of a flag. Three have the names that all services share.
func variable(f *pflag.Flag) string {
	name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	switch name {
	case "DATABASE_URL", "RABBITMQ_URL", "HTTP_ADDR":
		return name
	default:
		return "WORKER_" + name
	}
}

// fromEnvironment sets the flags that the command line does not from their variables. An empty variable counts as none.
func fromEnvironment(c *cobra.Command, _ []string) error {
	var failed error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		value := os.Getenv(variable(f))
		if f.Changed || value == "" || f.Name == "help" || failed != nil {
			return
		}
		if err := c.Flags().Set(f.Name, value); err != nil {
			failed = usageError{fmt.Errorf("environment variable %s: %w", variable(f), err)}
		}
	})
	return failed
}

// describeEnvironment names each flag's variable in its help.
func describeEnvironment(c *cobra.Command) {
	describe := func(f *pflag.Flag) {
		if mark := " [$" + variable(f) + "]"; f.Name != "help" && !strings.HasSuffix(f.Usage, mark) {
			f.Usage += mark
		}
	}
	c.PersistentFlags().VisitAll(describe)
	c.LocalFlags().VisitAll(describe)
	for _, sub := range c.Commands() {
		describeEnvironment(sub)
	}
}
