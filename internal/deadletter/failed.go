package deadletter

import (
	"strings"
	"unicode/utf8"
)

// FailedError is the error of a message that failed for good, with one failure for each handler that gave up.
type FailedError struct{ Failures []Failure }

func (e *FailedError) Error() string {
	texts := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		texts[i] = strings.TrimPrefix(f.Handler+": "+f.Reason, ": ")
	}
	return strings.Join(texts, "; ")
}

// CutReason cuts a reason to [MaxReasonBytes], at a character's edge, and makes it valid UTF-8.
func CutReason(reason string) string {
	reason = strings.ToValidUTF8(reason, string(utf8.RuneError))
	if len(reason) <= MaxReasonBytes {
		return reason
	}
	cut := MaxReasonBytes - len("…")
	for !utf8.RuneStart(reason[cut]) {
		cut--
	}
	return reason[:cut] + "…"
}
