package console

import (
	"math"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// Text stands out from what it is on, in both themes, as WCAG's level AA asks.
func TestContrast(t *testing.T) {
	t.Parallel()
	css, err := assetFiles.ReadFile("assets/console.css")
	require.NoError(t, err)
	colors := map[string][2]string{}
	for _, found := range regexp.MustCompile(`--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)`).FindAllStringSubmatch(string(css), -1) {
		colors[found[1]] = [2]string{found[2], found[3]}
	}
	for _, pair := range [][2]string{
		{"ink", "page"},
		{"ink", "panel"},
		{"ink", "raised"},
		{"ink", "bad-soft"},
		{"dim", "page"},
		{"dim", "panel"},
		{"dim", "raised"},
		{"dim", "bad-soft"},
		{"accent", "page"},
		{"accent", "panel"},
		{"accent", "raised"},
		{"accent", "accent-soft"},
		{"accent-ink", "accent"},
		{"good", "page"},
		{"good", "panel"},
		{"good", "good-soft"},
		{"warn", "raised"},
		{"bad", "page"},
		{"bad", "panel"},
		{"bad", "bad-soft"},
		{"panel", "bad"},
	} {
		text, ground := colors[pair[0]], colors[pair[1]]
		for theme, name := range []string{"light", "dark"} {
			require.NotEmpty(t, text[theme], pair[0])
			require.NotEmpty(t, ground[theme], pair[1])
			a, b := luminance(t, text[theme]), luminance(t, ground[theme])
			require.GreaterOrEqual(t, (math.Max(a, b)+.05)/(math.Min(a, b)+.05), 4.5, "%s on %s, %s", pair[0], pair[1], name)
		}
	}
}

func luminance(t *testing.T, color string) float64 {
	t.Helper()
	part := func(from int) float64 {
		n, err := strconv.ParseUint(color[from:from+2], 16, 8)
		require.NoError(t, err)
		if c := float64(n) / 255; c > .04045 {
			return math.Pow((c+.055)/1.055, 2.4)
		} else {
			return c / 12.92
		}
	}
	return .2126*part(1) + .7152*part(3) + .0722*part(5)
}
