package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/healz/worker/internal/console"
)

type consoleFlags struct {
	token, writeToken string
	write             bool
}

func (f *consoleFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.token, "console-token", "",
		"token for reading the console; @FILE reads it from a file. Without a token, the console is served only on loopback addresses")
	flags.StringVar(&f.writeToken, "console-write-token", "", "token that also permits replay, archive and reveal; @FILE reads it from a file")
	flags.BoolVar(&f.write, "console-write", false, "permit replay, archive and reveal to all readers of the console")
}

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
