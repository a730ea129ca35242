package cli

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/healz/worker/internal/text"
)

const (
	// defaultWidth is the width of a table that is not printed to a terminal, and of the help.
	defaultWidth = 80
	minWidth     = 40
)

const colorFlag = "color"

// addColor gives c and its subcommands the flag that turns colours on and off.
func addColor(c *cobra.Command) {
	when := "auto"
	c.PersistentFlags().Var(newChoice(&when, "auto", "always", "never"), colorFlag,
		"colours: auto is on a terminal, unless NO_COLOR is set or TERM is dumb")
	complete(c, colorFlag, "auto", "always", "never")
}

// asTerminal returns the file of a reader or writer that is a terminal.
func asTerminal(stream any) (*os.File, bool) {
	file, isFile := stream.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return nil, false
	}
	return file, true
}

// widthOf is the width of the terminal that w is, or 0: what is searched by lines is not wrapped.
func widthOf(w io.Writer) int {
	file, terminal := asTerminal(w)
	if !terminal {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil || width < 1 {
		return defaultWidth
	}
	return max(width, minWidth)
}

// widthFor is the width that what c prints may have, or 0: without a terminal, or with -o wide, there is no limit.
func widthFor(c *cobra.Command, f format) int {
	if f == formatWide {
		return 0
	}
	return widthOf(c.OutOrStdout())
}

// paint colours texts, if colours are on.
type paint bool

// paintFor is the paint for what c prints to w.
func paintFor(c *cobra.Command, w io.Writer) paint {
	if f := c.Flag(colorFlag); f != nil && f.Value.String() != "auto" {
		return f.Value.String() == "always"
	}
	_, terminal := asTerminal(w)
	return paint(terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// The styles, as parameters of the control sequence SGR.
const (
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p paint) in(style, text string) string {
	if !bool(p) || style == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// styleOf is the style of a word that judges something: a status, a verdict or the state of a letter.
func styleOf(word string) string {
	switch strings.TrimSpace(word) {
	case "ok", "would pass", "handled":
		return green
	case "warning", "unknown", "cannot tell", "replaying":
		return yellow
	case "wrong", "would fail", "waiting", "failed":
		return red
	default:
		return ""
	}
}

// reflowed is a text of paragraphs in lines of a width.
func reflowed(all string, width int) string {
	paragraphs := strings.Split(all, "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.Join(text.Wrap(strings.ReplaceAll(p, "\n", " "), width), "\n")
	}
	return strings.Join(paragraphs, "\n\n")
}
