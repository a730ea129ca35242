package handlers

import (
	"bytes"
	"fmt"
	"index/suffixarray"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/healz/worker/internal/events"
)

const (
	// minSecretLength is from how many characters on a value of an event is taken out of an error's text. Shorter ones would
	// turn up in any text by chance.
	minSecretLength = 3
	// minPartLength is from how many characters on it is taken out of the middle of a word, too.
	minPartLength = 6
	// maxErrorBytes is how much is kept of an error's text, and searchedBytes how much of it is searched, so that a value is
	// found on which the cut falls.
	maxErrorBytes, searchedBytes = 8 << 10, 16 << 10
	// maxQuotings is how many times a value may be quoted within what is quoted, and is still found.
	maxQuotings = 3
	// maxMisses and maxMissBytes bound which values that are not in a text are remembered.
	maxMisses, maxMissBytes = 4096, 64
)

// ordinary are words of technical errors. They say nothing of a patient, so they stay although they are in an event. No
// name and no diagnosis belongs here.
const ordinary = " " +
	"a about access acquire active address after again against all allowed already amount an and any app appointment " +
	"are argument array as at attempt attempts authentication available away backend be because been before broken " +
	"broker bus but by byte bytes call called can cancel canceled cancelled cannot change changed channel check " +
	"client clinic closed closing code column command commit conflict connect connected connecting connection " +
	"connections constraint contact context convert could create created credentials data database date deadline " +
	"decode default delete deleted delivered delivery denied deny disabled dns document does down duplicate email " +
	"empty encode end entry eof error errors event events exceeded exists expected fail failed failing failure false " +
	"fetch file find for format found from full gateway get given handle handled handler handlers has have header " +
	"host http https id in index input insert int integer internal into invalid is it item its json kind length " +
	"limit list log login longer match maximum message method minimum mismatch missing mode more must name network " +
	"new nil no none not note null number object of off old on one only open operation or other out output over " +
	"panic parameter parse password patient pending permission pool printer process program proxy publish query " +
	"queue ready reason receive record refuse refused reject rejected relation remote replay reply request required " +
	"reset resource response retry role rollback rows run schema send sent server service session set setting should " +
	"size socket sql started state status still stop stopped stream string such syntax system table tcp tenant than " +
	"that the there this time timed timeout tls to token too transaction true try type udp unable unavailable " +
	"undefined unexpected unique unknown unsupported until up update url use user uuid valid value values version " +
	"wait waiting warning was went when which while with within without worker write writing wrong "

// redactedError has the text of an error without what it quotes of the event, which is about a patient. What it wraps
// is still there for errors.Is and errors.As.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

// redact makes the error of a handler fit for logs, headers and the eyes of operators: values of event_data and metadata
// that it quotes are replaced by the names of their fields.
func redact(err error, e events.Event) error {
	return &redactedError{text: withoutValues(err.Error(), e), err: err}
}

// withoutValues replaces what text quotes of e's data and metadata by the name of its field: ‹name›. It finds whole values
// and single words of them, in upper or lower case, quoted or not. Short ones must stand alone, and those that consist of
// [ordinary] words stay. It cannot find what a handler has put into other words: an author keeps people out of errors all
// the same. A long text is cut.
//
// The text, which is the shorter, is indexed; the data is read once and not copied but for the longest value in it.
func withoutValues(text string, e events.Event) string {
	s := newSearch(text[:min(len(text), searchedBytes)])
	s.json(e.Data)
	s.json(e.Metadata)
	if len(text) > maxErrorBytes {
		return strings.ToValidUTF8(s.replaced(maxErrorBytes), "") + "…"
	}
	return s.replaced(len(text))
}

// search finds values in a text.
type search struct {
	text string
	// folded is the text in lower case, then without its quoting, and so on. Each byte of it comes from a span of the text.
	folded []byte
	spans  []span
	index  *suffixarray.Index // of folded; nil until it is needed
	// triples has a bit for the hash of any three bytes of folded, and numbers is whether one of its numbers begins with
	// these digits: they rule out most values.
	triples [1 << 10]uint64
	numbers [1000]bool

	name  []byte    // the literal of the field that is being read; nil outside any
	value []byte    // the string that is being read, without escapes and in lower case
	lower [256]byte // what stands for an ASCII letter or digit in value; 0 for other bytes
	// characters are the bytes, then a cache of the characters that are not ASCII.
	characters [512]character
	known      map[string]struct{} // values that were searched for
	found      []found             // by where in the text it begins: the longest; nil as long as there is none
}

type span struct{ from, to int }

// character is what [appendFolded] makes of a character.
type character struct {
	r      rune
	folded [utf8.UTFMax]byte
	length uint8 // of folded
	inWord bool
}

type found struct {
	to    int // 0 is nothing found
	field string
}

func newSearch(text string) *search {
	s := &search{text: text, known: map[string]struct{}{}}
	for b := range s.lower {
		c := character{folded: [utf8.UTFMax]byte{byte(b)}, length: 1}
		if b < utf8.RuneSelf && isPartOfWord(rune(b)) {
			s.lower[b] = byte(unicode.ToLower(rune(b)))
			c.folded[0], c.inWord = s.lower[b], true
		}
		s.characters[b] = c
	}
	spans := make([]span, len(text))
	for i := range spans {
		spans[i] = span{i, i + 1}
	}
	for range maxQuotings {
		s.fold(text, spans)
		if !strings.Contains(text, `\`) {
			break
		}
		text, spans = unquoted(text, spans)
	}
	for i := range len(s.folded) - 2 {
		h := hash(s.folded[i:])
		s.triples[h/64] |= 1 << (h % 64)
	}
	for i, b := range s.folded {
		if isDigit(b) && (i == 0 || !isDigit(s.folded[i-1])) {
			s.numbers[firstDigits(s.folded[i:])] = true
		}
	}
	return s
}

// fold adds a text in lower case, and a byte that no value has.
func (s *search) fold(text string, spans []span) {
	for i := 0; i < len(text); {
		var n int
		s.folded, n = appendFolded(s.folded, text[i:])
		for len(s.spans) < len(s.folded) {
			s.spans = append(s.spans, span{spans[i].from, spans[i+n-1].to})
		}
		i += n
	}
	s.folded, s.spans = append(s.folded, 0xff), append(s.spans, span{})
}

// appendFolded adds the first character of a text in lower case, and tells how long it was.
func appendFolded[T string | []byte](to []byte, text T) ([]byte, int) {
	r, n := utf8.DecodeRuneInString(string(text[:min(len(text), utf8.UTFMax)]))
	if r == utf8.RuneError {
		return append(to, text[:n]...), n
	}
	return utf8.AppendRune(to, unicode.ToLower(unicode.ToUpper(r))), n
}

// unquoted is a text with the escapes of Go and JSON replaced by what they stand for.
func unquoted(text string, spans []span) (string, []span) {
	var plain []byte
	var origin []span
	for i := 0; i < len(text); {
		r, multibyte, rest, err := strconv.UnquoteChar(text[i:], '"')
		if text[i] != '\\' || err != nil {
			r, multibyte, rest = rune(text[i]), false, text[i+1:]
		}
		if multibyte {
			plain = utf8.AppendRune(plain, r)
		} else {
			plain = append(plain, byte(r))
		}
		end := len(text) - len(rest)
		for len(origin) < len(plain) {
			origin = append(origin, span{spans[i].from, spans[end-1].to})
		}
		i = end
	}
	return string(plain), origin
}

func hash(b []byte) uint32 {
	return (uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16) * 2654435761 >> 16 // Knuth's multiplicative hash
}

// firstDigits are the first three significant digits of the number at the beginning of a text.
func firstDigits(text []byte) int {
	digits, n := 0, 0
	for _, b := range text {
		if n == 3 || !isDigit(b) && b != '.' {
			break
		}
		if isDigit(b) && (n > 0 || b != '0') {
			digits, n = 10*digits+int(b-'0'), n+1
		}
	}
	for ; 0 < n && n < 3; n++ {
		digits *= 10
	}
	return digits
}

// json finds the values of a JSON text. What is no JSON does no harm.
func (s *search) json(text []byte) {
	s.name = nil
	var outer [][]byte // the names of the fields that hold the objects that are open
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '"':
			literal := text[i : i+stringLength(text[i:])]
			i += len(literal) - 1
			if isName(text[i+1:]) {
				s.name = literal
			} else {
				s.string(literal)
			}
		case b == '{':
			outer = append(outer, s.name)
		case b == '}' && len(outer) > 0:
			s.name = outer[len(outer)-1]
			outer = outer[:len(outer)-1]
		case isDigit(b):
			end := i + 1
			for end < len(text) && isInNumber(text[end]) {
				end++
			}
			if end-i >= minSecretLength && s.numbers[firstDigits(text[i:end])] {
				s.number(string(text[i:end]))
			}
			i = end - 1
		}
	}
}

// stringLength is the length of the string at the beginning of text, with its quotes.
func stringLength(text []byte) int {
	for i := 1; ; {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return len(text)
		}
		end := i + n
		i = end + 1
		for text[end-1] == '\\' {
			end--
		}
		if (i-end)%2 == 1 { // an even number of backslashes, which are escaped themselves
			return i
		}
	}
}

// isName is whether a string that precedes rest is the name of a field.
func isName(rest []byte) bool {
	for _, b := range rest {
		if b != ' ' && b != '\t' && b != '\r' && b != '\n' {
			return b == ':'
		}
	}
	return false
}

// string finds a string and its words.
func (s *search) string(literal []byte) {
	text := bytes.TrimSuffix(literal[1:], []byte{'"'})
	value, word := s.value[:0], -1 // where the word begins that is being read
	for i := 0; i < len(text); {
		b := text[i]
		if s.lower[b] != 0 {
			if word < 0 {
				word = len(value)
			}
			for ; i < len(text) && s.lower[text[i]] != 0; i++ {
				value = append(value, s.lower[text[i]])
			}
			continue
		}
		c, length := &s.characters[b], 1
		if b >= utf8.RuneSelf || b == '\\' {
			c, length = s.character(text[i:])
		}
		i += length
		if !c.inWord && word >= 0 {
			s.find(value[word:])
			word = -1
		} else if c.inWord && word < 0 {
			word = len(value)
		}
		value = append(value, c.folded[:]...)[:len(value)+int(c.length)] // a constant number of bytes is copied faster
	}
	if word >= 0 {
		s.find(value[word:])
	}
	s.find(bytes.TrimSpace(value))
	s.value = value
}

// character is the first character of a text, and how many bytes of the text it takes.
func (s *search) character(text []byte) (c *character, length int) {
	if len(text) > 1 && text[0]&0xe0 == 0xc0 && text[1]&0xc0 == 0x80 { // most have two bytes, and DecodeRune is slower
		r := rune(text[0]&0x1f)<<6 | rune(text[1]&0x3f)
		if c := &s.characters[0x100|r&0xff]; c.r == r {
			return c, 2
		}
	}
	return s.anyCharacter(text)
}

func (s *search) anyCharacter(text []byte) (c *character, length int) {
	r, length := utf8.DecodeRune(text)
	if text[0] == '\\' {
		r, length = unescaped(text)
	}
	if r < utf8.RuneSelf {
		return &s.characters[r], length
	}
	if r == utf8.RuneError && length == 1 {
		return &s.characters[text[0]], 1
	}
	c = &s.characters[0x100|r&0xff]
	if c.r != r {
		*c = character{r: r, inWord: isPartOfWord(r)}
		folded, _ := appendFolded(nil, string(r))
		c.length = uint8(copy(c.folded[:], folded))
	}
	return c, length
}

// unescaped is the character of the JSON escape at the beginning of a text, and the length of the escape. What is no
// escape is a backslash.
func unescaped(text []byte) (r rune, length int) {
	if r := utf16Unit(text); r >= 0 {
		if !utf16.IsSurrogate(r) {
			return r, len(`\u0000`)
		}
		if r = utf16.DecodeRune(r, utf16Unit(text[len(`\u0000`):])); r != utf8.RuneError {
			return r, len(`\u0000\u0000`)
		}
		return r, len(`\u0000`)
	}
	if len(text) > 1 {
		if at := strings.IndexByte(`"\/bfnrt`, text[1]); at >= 0 {
			return rune("\"\\/\b\f\n\r\t"[at]), len(`\n`)
		}
	}
	return '\\', 1
}

// utf16Unit is the value of the \u escape at the beginning of a text, or -1.
func utf16Unit(text []byte) (r rune) {
	if len(text) < len(`\u0000`) || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	for _, b := range text[len(`\u`):len(`\u0000`)] {
		switch {
		case isDigit(b):
			r = r<<4 | rune(b-'0')
		case 'a' <= b|0x20 && b|0x20 <= 'f': // in lower case
			r = r<<4 | rune(b|0x20-'a'+10)
		default:
			return -1
		}
	}
	return r
}

// number finds a number as it stands, and as Go prints it.
func (s *search) number(literal string) {
	s.find(bytes.ToLower([]byte(literal)))
	if f, err := strconv.ParseFloat(literal, 64); err == nil {
		s.find(fmt.Append(nil, f))
		s.find(strconv.AppendFloat(nil, f, 'f', -1, 64))
		s.find(strconv.AppendFloat(nil, math.Trunc(f), 'f', -1, 64))
	}
}

// find finds a value in lower case wherever it is in the text.
func (s *search) find(value []byte) {
	if len(value) < minSecretLength || !s.hasTriple(value) || !s.hasTriple(value[len(value)-3:]) || len(value) > len(s.folded) {
		return
	}
	length := utf8.RuneCount(value)
	if _, done := s.known[string(value)]; done || length < minSecretLength {
		return
	}
	if s.index == nil {
		s.index = suffixarray.New(s.folded)
	}
	places := s.index.Lookup(value, -1)
	if len(places) > 0 || len(value) <= maxMissBytes && len(s.known) < maxMisses {
		s.known[string(value)] = struct{}{}
	}
	if len(places) == 0 || isOrdinary(string(value)) {
		return
	}
	for _, at := range places {
		if end := at + len(value); length >= minPartLength || s.isEdge(at) && s.isEdge(end) {
			s.add(s.spans[at].from, s.spans[end-1].to)
		}
	}
}

func (s *search) hasTriple(b []byte) bool {
	h := hash(b)
	return s.triples[h/64]&(1<<(h%64)) != 0
}

// isEdge is whether no word goes on over a place in folded.
func (s *search) isEdge(at int) bool {
	before, _ := utf8.DecodeLastRune(s.folded[:at])
	after, _ := utf8.DecodeRune(s.folded[at:])
	if !isPartOfWord(before) || !isPartOfWord(after) || unicode.IsDigit(before) != unicode.IsDigit(after) {
		return true
	}
	if unicode.In(before, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar) {
		return true // no blanks between words
	}
	last, _ := utf8.DecodeLastRuneInString(s.text[:s.spans[at-1].to])
	first, _ := utf8.DecodeRuneInString(s.text[s.spans[at].from:])
	return unicode.IsLower(last) && unicode.IsUpper(first) // as in lastName
}

func (s *search) add(from, to int) {
	if s.found == nil {
		s.found = make([]found, len(s.text))
	}
	if to <= s.found[from].to {
		return
	}
	field := "event_data"
	if name := bytes.Trim(s.name, `"`); isIdentifier(string(name)) {
		field = string(name)
	}
	s.found[from] = found{to: to, field: field}
}

// replaced are the first bytes of the text, with the names of fields in place of what was found. Of what overlaps, the
// longest gives the name.
func (s *search) replaced(length int) string {
	if s.found == nil {
		return s.text[:length]
	}
	var b strings.Builder
	for i := 0; i < length; i++ {
		f := s.found[i]
		if f.to == 0 {
			b.WriteByte(s.text[i])
			continue
		}
		longest := f.to - i
		for k := i; k < f.to; k++ {
			if more := s.found[k]; more.to > k {
				if more.to-k > longest {
					longest, f.field = more.to-k, more.field
				}
				f.to = max(f.to, more.to)
			}
		}
		b.WriteString("‹" + f.field + "›")
		i = f.to - 1
	}
	return b.String()
}

// isOrdinary is whether a text consists of [ordinary] words.
func isOrdinary(text string) bool {
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return !isPartOfWord(r) }) {
		if !strings.Contains(ordinary, " "+word+" ") {
			return false
		}
	}
	return true
}

// isIdentifier is whether a name is one that a program gives to a field. Others may be data, such as a phone number.
func isIdentifier(name string) bool {
	const most = 60
	for i, r := range name {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return false
		}
	}
	return name != "" && len(name) <= most
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

func isInNumber(b byte) bool { return isDigit(b) || b == '.' || b == '-' || b == '+' || b|0x20 == 'e' }

func isPartOfWord(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)
}
