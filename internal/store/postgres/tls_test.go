package postgres_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/store/postgres"
	"github.com/healz/worker/internal/test/testservers"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	url, certificates := testservers.PostgresTLS(t)
	ca := func(name string) string { return "&sslrootcert=" + filepath.Join(certificates, name) }
	for name, test := range map[string]struct {
		url  string
		want string // "" is success
	}{
		"verified":             {url + ca("ca.pem"), ""},
		"of another authority": {url + ca("other-ca.pem"), "unknown authority"},
		"for another host": {
			strings.Replace(url, "127.0.0.1", "localhost", 1) + ca("ca.pem"), "wanted to match localhost",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := postgres.Open(t.Context(), test.url, postgres.Options{MaxConns: 2})
			if test.want != "" {
				require.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			require.NoError(t, s.Migrate(t.Context()))
			var encrypted bool
			conn := connect(t, test.url)
			require.NoError(t, conn.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted))
			require.True(t, encrypted)
			require.NoError(t, s.Close())
		})
	}
}
