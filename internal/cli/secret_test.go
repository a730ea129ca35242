package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/examples/clinic"
)

func TestSecret(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for name, test := range map[string]struct{ text, want, err string }{
		"the value itself":      {"amqp://u:p@host/", "amqp://u:p@host/", ""},
		"empty":                 {"", "", ""},
		"a file":                {"@" + write("url", "\tamqp://u:@p@host/\r\n"), "amqp://u:@p@host/", ""},
		"a file in a file":      {"@" + write("at", "@"+filepath.Join(folder, "url")), "@" + filepath.Join(folder, "url"), ""},
		"a file of blanks":      {"@" + write("blank", " \n"), "", filepath.Join(folder, "blank") + " is empty"},
		"a file that is not":    {"@" + filepath.Join(folder, "none"), "", "open " + filepath.Join(folder, "none") + ": "},
		"a folder":              {"@" + folder, "", folder + ": is a directory"},
		"a file without a name": {"@", "", "open : no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var value string
			err := secret{&value}.Set(test.text)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, value)
		})
	}
}

// Each setting of a token or a URL, which may contain a password, may be @FILE, and its help says so.
func TestSecretSettings(t *testing.T) {
	t.Parallel()
	run, _, err := newRoot(clinic.Register).Find([]string{"run"})
	require.NoError(t, err)
	require.NoError(t, run.ParseFlags(nil)) // which adds the root's flags
	var names []string
	run.Flags().VisitAll(func(f *pflag.Flag) {
		if _, is := f.Value.(secret); is {
			names = append(names, f.Name)
			require.Contains(t, f.Usage, "@FILE")
		} else {
			require.NotRegexp(t, "token|url|password", f.Name)
		}
	})
	require.Len(t, names, 5, names)
}
