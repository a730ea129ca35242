package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/healz/worker/migrations"
)

// modulePath is the module of the worker, which another program may import.
const modulePath = "github.com/healz/worker"

// version is set by the linker where the build does not know it, as in an image.
var version string

// Version is the version of the worker's module, or "unknown".
func Version() string { return buildOf().Worker }

// build is what a program was built of.
type build struct {
	Worker string `json:"worker"`
	// Commit is that of the program's repository, with "+dirty" if it had changes.
	Commit string `json:"commit,omitempty"`
	// Program is the module that imports the worker, with its version.
	Program  string `json:"program,omitempty"`
	Go       string `json:"go"`
	Postgres int64  `json:"schema_postgres"`
	SQLite   int64  `json:"schema_sqlite"`
}

func buildOf() build {
	b := build{Worker: "unknown", Go: runtime.Version()}
	b.Postgres, b.SQLite, _ = migrations.Latest() // a test sees to it that it does not fail
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if b.Commit = settings["vcs.revision"]; settings["vcs.modified"] == "true" {
		b.Commit += "+dirty"
	}
	if info.Main.Path == modulePath {
		b.Worker = info.Main.Version
	} else {
		b.Program = strings.TrimSpace(info.Main.Path + " " + info.Main.Version)
	}
	for _, dependency := range info.Deps {
		if dependency.Path != modulePath {
			continue
		}
		if b.Worker = dependency.Version; dependency.Replace != nil {
			b.Worker = strings.TrimSpace("replaced by " + dependency.Replace.Path + " " + dependency.Replace.Version)
		}
	}
	if version != "" {
		b.Worker = version
	}
	return b
}

func (b build) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "worker   %s\n", b.Worker)
	if b.Program != "" {
		fmt.Fprintf(&text, "program  %s\n", b.Program)
	}
	if b.Commit != "" {
		fmt.Fprintf(&text, "commit   %s\n", b.Commit)
	}
	fmt.Fprintf(&text, "go       %s %s/%s\nschema   Postgres %d, SQLite %d\n", b.Go, runtime.GOOS, runtime.GOARCH, b.Postgres, b.SQLite)
	return text.String()
}

func versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of the worker, of its schema and of Go",
		Args:  noArguments,
	}
	f := addFormat(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *f == formatJSON {
			return json.NewEncoder(c.OutOrStdout()).Encode(buildOf())
		}
		_, err := fmt.Fprint(c.OutOrStdout(), buildOf())
		return err
	}
	return c
}
