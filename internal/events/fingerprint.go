package events

import (
	"crypto/sha256"
	"encoding/json"
	"hash"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Fingerprint is the same for two events that say the same of the same aggregate: it covers the id, the type, the
// aggregate with its version, the tenant and the data. However the JSON of the data is written, the key order, white
// space, escapes and the form of numbers do not count. Two events with one id and different fingerprints contradict
// each other. That of an edited copy (see [EditedBody]) is the original's.
func (e Event) Fingerprint() [sha256.Size]byte {
	if original, edited := e.editedFrom(); edited {
		return original
	}
	h := sha256.New()
	for _, s := range []string{
		e.ID.String(), e.Type, e.AggregateType, e.AggregateID.String(), strconv.Itoa(e.AggregateVersion), e.TenantID.String(),
	} {
		writeString(h, s)
	}
	var data any
	if decode(e.Data, &data) == nil {
		writeValue(h, data)
	} else {
		writeString(h, string(e.Data))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// writeValue writes v unambiguously: each value begins with a letter for its kind.
func writeValue(h hash.Hash, v any) {
	switch v := v.(type) {
	case map[string]any:
		write(h, "o"+strconv.Itoa(len(v))+":")
		for _, key := range slices.Sorted(maps.Keys(v)) {
			writeString(h, key)
			writeValue(h, v[key])
		}
	case []any:
		write(h, "a"+strconv.Itoa(len(v))+":")
		for _, item := range v {
			writeValue(h, item)
		}
	case json.Number:
		write(h, "n")
		writeString(h, canonicalNumber(string(v)))
	case string:
		writeString(h, v)
	case bool:
		write(h, strconv.FormatBool(v))
	default:
		write(h, "null")
	}
}

func writeString(h hash.Hash, s string) { write(h, "s"+strconv.Itoa(len(s))+":"+s) }

func write(h hash.Hash, s string) { _, _ = io.WriteString(h, s) } // a hash never fails

// canonicalNumber writes a JSON number as digits and a power of ten, so that 1e2, 100 and 100.0 are one.
func canonicalNumber(s string) string {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	power, err := strconv.Atoi(strings.TrimPrefix(exponent, "+"))
	if err != nil && exponent != "" {
		return s
	}
	power -= len(fraction)
	digits := strings.TrimLeft(whole+fraction, "0")
	trimmed := strings.TrimRight(digits, "0")
	power += len(digits) - len(trimmed)
	if trimmed == "" {
		return "0"
	}
	if negative {
		trimmed = "-" + trimmed
	}
	return trimmed + "e" + strconv.Itoa(power)
}
