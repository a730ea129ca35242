package deadletter

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// fingerprintBytes is how much of a hash names a group: 8 characters can be read out and typed at night.
const fingerprintBytes = 4

// Fingerprint is the id of the group to which a letter of this handler, type and reason belongs, and the reason's pattern.
// The group does not depend on the event's data: whatever was taken out, once or several times in a row, counts the same.
func Fingerprint(handler, eventType, reason string) (id, patternOfReason string) {
	p := read(reason)
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", handler, eventType, strings.TrimSpace(p.alike.String())))
	return hex.EncodeToString(sum[:fingerprintBytes]), p.String()
}

// What stands in a pattern for what was taken out.
const (
	anyID     = "ID"
	anyNumber = "N"
	anyQuoted = `"…"`
)

// Pattern is a reason without what differs between errors of one kind: an id becomes ID, a number N, what is quoted "…",
// and any blanks one. Names such as sha256 stay, and so do the placeholders ‹name› of what was taken out before.
func Pattern(reason string) string { return read(reason).String() }

func read(reason string) *pattern {
	p := &pattern{rest: reason}
	for p.rest != "" {
		p.step()
	}
	return p
}

// pattern is a reason that is being read.
type pattern struct {
	rest string
	last rune // the one before rest, 0 at the beginning
	out  strings.Builder
	// alike is out with [anyNumber] for all that was taken out, and takenOut whether nothing but blanks follows one.
	alike    strings.Builder
	takenOut bool
}

func (p *pattern) String() string { return strings.TrimSpace(p.out.String()) }

// take moves the next n bytes out of rest, and puts text in their place.
func (p *pattern) take(n int, text string) {
	if !p.takenOut || text != " " {
		p.takenOut = false
		p.alike.WriteString(text)
	}
	p.advance(n, text)
}

// takeOut moves the next n bytes out of rest, which differ from letter to letter, and puts a placeholder in their place.
func (p *pattern) takeOut(n int, placeholder string) {
	if !p.takenOut {
		p.takenOut = true
		p.alike.WriteString(anyNumber + " ")
	}
	p.advance(n, placeholder)
}

func (p *pattern) advance(n int, text string) {
	p.last, _ = utf8.DecodeLastRuneInString(p.rest[:n])
	p.rest = p.rest[n:]
	p.out.WriteString(text)
}

func (p *pattern) step() {
	r, size := utf8.DecodeRuneInString(p.rest)
	switch {
	case unicode.IsSpace(r):
		p.take(len(p.rest)-len(strings.TrimLeftFunc(p.rest, unicode.IsSpace)), " ")
	case r == '‹' && strings.ContainsRune(p.rest, '›'):
		n := strings.IndexRune(p.rest, '›') + len("›")
		p.takeOut(n, p.rest[:n])
	case isWord(r):
		p.word()
	case r == '-' && !isWord(p.last) && len(p.rest) > 1 && isDigit(rune(p.rest[1])):
		p.take(size, "") // a sign
	default:
		if n := quoted(p.rest, p.last); n > 0 {
			p.takeOut(n, anyQuoted)
			return
		}
		p.take(size, p.rest[:size])
	}
}

// word reads an id, a number, or a word that may hold some.
func (p *pattern) word() {
	if len(p.rest) >= 36 && p.rest[8] == '-' {
		if _, err := uuid.Parse(p.rest[:36]); err == nil {
			p.takeOut(36, anyID)
			return
		}
	}
	n := strings.IndexFunc(p.rest, func(r rune) bool { return !isWord(r) })
	if n < 0 {
		n = len(p.rest)
	}
	word := p.rest[:n]
	if strings.IndexFunc(word, func(r rune) bool { return !isDigit(r) }) < 0 {
		p.takeOut(numberLength(p.rest), anyNumber)
		return
	}
	if text := patternOfWord(word); text == anyID {
		p.takeOut(n, anyID)
	} else {
		p.take(n, text)
	}
}

// numberLength is the length of the number at the beginning, its groups and decimals among it.
func numberLength(s string) int {
	n := 0
	for n < len(s) && (isDigit(rune(s[n])) || (s[n] == '.' || s[n] == ',') && n+1 < len(s) && isDigit(rune(s[n+1]))) {
		n++
	}
	return n
}

// patternOfWord is the pattern of a word, which is not all digits.
func patternOfWord(word string) string {
	const (
		idLength   = 8 // from how long on a hexadecimal word is an id
		ulidLength = 26
		nameDigits = 3 // how many digits end a name, such as sha256
	)
	first := strings.IndexFunc(word, isDigit)
	switch {
	case first < 0:
		return word
	case len(word) == ulidLength, len(word) >= idLength && isHex(word):
		return anyID
	case first > 0 && strings.IndexFunc(word[first:], func(r rune) bool { return !isDigit(r) }) >= 0:
		return anyID
	case first > 0 && len(word)-first <= nameDigits:
		return word
	}
	var b strings.Builder // as order4711, 30s and 1m30s
	for i, r := range word {
		if !isDigit(r) {
			b.WriteRune(r)
		} else if i == 0 || !isDigit(rune(word[i-1])) {
			b.WriteString(anyNumber)
		}
	}
	return b.String()
}

// quoted is the length of what is quoted at the beginning, with its quotes; 0 if nothing is. An apostrophe is no quote.
func quoted(s string, before rune) int {
	open, size := utf8.DecodeRuneInString(s)
	closing, ok := map[rune]rune{'"': '"', '\'': '\'', '`': '`', '“': '”', '„': '“', '«': '»'}[open]
	if !ok || open == '\'' && isWord(before) {
		return 0
	}
	escaped := false
	for i, r := range s[size:] {
		end := size + i + utf8.RuneLen(closing)
		switch {
		case escaped:
			escaped = false
		case r == '\\' && open == '"':
			escaped = true
		case r == closing:
			if next, _ := utf8.DecodeRuneInString(s[end:]); open == '\'' && end < len(s) && isWord(next) {
				continue
			}
			return end
		}
	}
	return 0
}

func isDigit(r rune) bool { return '0' <= r && r <= '9' }
func isWord(r rune) bool  { return unicode.IsLetter(r) || isDigit(r) }

func isHex(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return !isDigit(r) && (r < 'a' || 'f' < r) && (r < 'A' || 'F' < r)
	}) < 0
}
