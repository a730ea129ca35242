package text_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/text"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"größe – 日本 😀 {}":          "größe – 日本 😀 {}",
		"a\nb\tc\x1b[2J\x7f\u0085": "a·b·c·[2J··",
		"\u202edesrever\u200b":     "·desrever·", // turns the writing direction; is not seen
	} {
		require.Equal(t, want, text.Printable(s))
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text  string
		width int
		want  []string
	}{
		"what fits stays": {"one  two", 8, []string{"one  two"}},
		"no limit":        {"one two three", 0, []string{"one two three"}},
		"a long word":     {"one two three abcdefghijk four", 8, []string{"one two", "three", "abcdefgh", "ijk four"}},
		"characters":      {"größe größe", 6, []string{"größe", "größe"}},
	} {
		require.Equal(t, test.want, text.Wrap(test.text, test.width), name)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	require.Equal(t, "größe", text.Cut("größe", 5))
	require.Equal(t, "größ…", text.Cut("größere", 5))
}

func TestCount(t *testing.T) {
	t.Parallel()
	require.Equal(t, "1 event, 2 events", text.Count(1, "event")+", "+text.Count(2, "event"))
}
