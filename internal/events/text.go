package events

import (
	"strings"
	"unicode"
)

// Printable replaces invisible characters, those that move a terminal's cursor, and those that reverse the text after them.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}
