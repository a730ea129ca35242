package cli

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
)

var manFolder = flag.String("man", "", "folder for the man pages, which are otherwise deleted") //nolint:gochecknoglobals // flags are

// The man pages are made by a test, as by make man: the worker itself does not carry the generator.
func TestManPages(t *testing.T) {
	t.Parallel()
	folder := *manFolder
	if folder == "" {
		folder = t.TempDir()
	}
	root := newRoot(clinic.Register, Demo())
	root.DisableAutoGenTag = true
	anywhere(root)
	require.NoError(t, doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "worker", Manual: "worker"}, folder))
	page, err := os.ReadFile(filepath.Join(folder, "worker-dlq-archived-list.1"))
	require.NoError(t, err, "there is a page for each command")
	require.Contains(t, string(page), ".SH DESCRIPTION\nlist prints the archived letters.")
	require.Contains(t, string(page), `\fB--since\fP`)
}

// anywhere takes the user and the host of this machine out of the defaults.
func anywhere(c *cobra.Command) {
	if by := c.Flags().Lookup("by"); by != nil {
		by.DefValue = "USER@HOST"
	}
	for _, sub := range c.Commands() {
		anywhere(sub)
	}
}
