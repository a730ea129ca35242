package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// secret is a setting that may be @FILE. Its value is then the content of that file without the space around it, so that it
// is neither in the environment nor on the command line.
type secret struct{ value *string }

// addSecret adds a setting that may be @FILE.
func addSecret(flags *pflag.FlagSet, into *string, name, usage string) {
	flags.Var(secret{into}, name, usage+"; @FILE reads it from a file")
}

// Set names the file in its errors, and never the value.
func (s secret) Set(text string) error {
	path, isFile := strings.CutPrefix(text, "@")
	if !isFile {
		*s.value = text
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if *s.value = strings.TrimSpace(string(content)); *s.value == "" {
		return fmt.Errorf("%s is empty", path)
	}
	return nil
}

// String is for the help, which prints no secret.
func (secret) String() string { return "" }

// Type is what the help prints.
func (secret) Type() string { return "string" }
