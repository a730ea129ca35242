package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"größe – 日本 😀 {}":          "größe – 日本 😀 {}",
		"a\nb\tc\x1b[2J\x7f\u0085": "a·b·c·[2J··",
		"\u202edesrever\u200b":     "·desrever·", // turns the writing direction; is not seen
	} {
		require.Equal(t, want, printable(text))
	}
}
