package migrations

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// No line of roles.sql is missed.
func TestPostgresGrants(t *testing.T) {
	t.Parallel()
	privileges := 0
	for line := range strings.Lines(roles) {
		if granted, _, found := strings.Cut(line, " ON "); found && strings.HasPrefix(granted, "GRANT ") {
			privileges += len(strings.Split(granted, ","))
		}
	}
	require.Len(t, PostgresGrants(), privileges)
	require.Contains(t, PostgresGrants(), Grant{"USAGE", "events_id_seq"})
	require.Contains(t, PostgresGrants(), Grant{"DELETE", "handled"})
}
