package store

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// NewCursor is the cursor behind the event that has a place in the order of a read. The read is named with its key,
// as in "tenant 0198c9…"; sortKey is what the read sorts by (microseconds of created_at, or the version), and id
// breaks its ties.
func NewCursor(read string, sortKey, id int64) Cursor {
	return Cursor(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s %d %d", seal(read), sortKey, id)))
}

// Place is what [NewCursor] was given. It is a *[QueryError] when c is no cursor, or one of another read.
func (c Cursor) Place(read string) (sortKey, id int64, err error) {
	text, err := base64.RawURLEncoding.DecodeString(string(c))
	if err == nil {
		var sealed string
		if _, err = fmt.Sscanf(string(text), "%s %d %d", &sealed, &sortKey, &id); err == nil {
			if sealed != seal(read) {
				return 0, 0, &QueryError{Field: "after", Problem: "is a cursor of another read"}
			}
		}
	}
	if err != nil || NewCursor(read, sortKey, id) != c {
		return 0, 0, &QueryError{Field: "after", Problem: "is not a cursor"}
	}
	return sortKey, id, nil
}

// seal ties a cursor to its read in a few characters.
func seal(read string) string {
	sum := sha256.Sum256([]byte(read))
	return hex.EncodeToString(sum[:6])
}
