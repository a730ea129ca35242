package mutants

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests that must find the mutants take minutes, and run by make mutants. That each can be tried is checked here.
func TestMutantsFitTheSource(t *testing.T) {
	t.Parallel()
	for _, m := range all() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.file = filepath.Join("..", "..", "..", m.file)
			_, err := m.overlay(t.TempDir())
			require.NoError(t, err)
		})
	}
}
