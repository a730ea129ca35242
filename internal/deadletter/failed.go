package deadletter

import "strings"

// FailedError is the error of a message that failed for good, with one failure for each handler that gave up.
type FailedError struct{ Failures []Failure }

func (e *FailedError) Error() string {
	texts := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		texts[i] = strings.TrimPrefix(f.Handler+": "+f.Reason, ": ")
	}
	return strings.Join(texts, "; ")
}
