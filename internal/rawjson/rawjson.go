// Package rawjson takes JSON apart without decoding it. It is for where most of an event is passed on as it stands:
// encoding/json reads a text twice, and builds values that are not needed.
package rawjson

import (
	"bytes"
	"fmt"
	"iter"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Members yields the names and values of an object, in their order, as they stand: a name without its quotes, both
// with their escapes. It checks nothing: of what is no valid JSON, or no object, it yields what comes before that shows.
func Members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		rest, ok := after(object, '{')
		for ok {
			length := valueLength(rest)
			if length < 2 || rest[0] != '"' {
				return
			}
			name := rest[1 : length-1]
			if rest, ok = after(rest[length:], ':'); !ok {
				return
			}
			if length = valueLength(rest); length == 0 || !yield(name, rest[:length:length]) {
				return
			}
			rest, ok = after(rest[length:], ',')
		}
	}
}

// Elements are the elements of an array, as they stand. The error says where the array is none; the elements themselves
// are not looked into.
func Elements(array []byte) ([][]byte, error) {
	var elements [][]byte
	rest, ok := after(array, '[')
	if end, empty := after(rest, ']'); ok && empty && len(end) == 0 {
		return nil, nil
	}
	for ok {
		length := valueLength(rest)
		if length == 0 {
			break
		}
		elements = append(elements, rest[:length:length])
		rest = rest[length:]
		if end, ended := after(rest, ']'); ended && len(end) == 0 {
			return elements, nil
		}
		rest, ok = after(rest, ',')
	}
	return nil, fmt.Errorf("no JSON array: after %d elements it does not go on", len(elements))
}

// Text is the value of a string that has no escapes.
func Text(value []byte) (text string, ok bool) {
	if len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
		return "", false
	}
	return string(value[1 : len(value)-1]), true
}

// Printable escapes the invisible characters of a JSON text, such as those that set the direction of what a terminal shows.
func Printable(text []byte) []byte {
	invisible := func(r rune) bool { return r > unicode.MaxASCII && r != utf8.RuneError && !unicode.IsPrint(r) }
	if bytes.IndexFunc(text, invisible) < 0 {
		return text
	}
	escaped := make([]byte, 0, 2*len(text))
	for _, r := range string(text) {
		if !invisible(r) {
			escaped = utf8.AppendRune(escaped, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			escaped = fmt.Appendf(escaped, `\u%04x`, unit)
		}
	}
	return escaped
}

// after is what follows a mark and the white space around it.
func after(text []byte, mark byte) (rest []byte, ok bool) {
	text = bytes.TrimLeft(text, space)
	if len(text) == 0 || text[0] != mark {
		return nil, false
	}
	return bytes.TrimLeft(text[1:], space), true
}

const space = " \t\r\n"

// valueLength is the length of the value at the beginning of text; 0 if there is none, or it has no end.
func valueLength(text []byte) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			length := stringLength(text[i:])
			if length == 0 {
				return 0
			}
			i += length - 1
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // the end of a number or a word, and of what it stands in
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	if depth > 0 {
		return 0
	}
	return len(text)
}

// stringLength is the length of the string at the beginning of text, quotes included; 0 if it has no end.
func stringLength(text []byte) int {
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return 0
}
