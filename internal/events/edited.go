package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// editedKey is the field of the metadata in which an edited copy has the fingerprint of its original.
const editedKey = "edited_from"

// EditedBody is the body of an edited copy of e. It marks body, in its metadata, so that the copy has the fingerprint of e:
// a reader takes it for e, and not for another event that contradicts it.
func EditedBody(e Event, body []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("mark an edited event: %w", withoutValues(err))
	}
	metadata := map[string]json.RawMessage{}
	if raw := fields["metadata"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &metadata); err != nil {
			return nil, errors.New("mark an edited event: its metadata is not a JSON object")
		}
	}
	if metadata == nil { // of a JSON null
		metadata = map[string]json.RawMessage{}
	}
	original := e.Fingerprint()
	metadata[editedKey] = json.RawMessage(`"` + hex.EncodeToString(original[:]) + `"`)
	var err error
	if fields["metadata"], err = plain(metadata); err != nil {
		return nil, err
	}
	return plain(fields)
}

// plain is v as JSON in which text stands as it is.
func plain(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("encode an edited event: %w", withoutValues(err))
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// editedFrom is the fingerprint of the event of which e is an edited copy.
func (e Event) editedFrom() (original [sha256.Size]byte, edited bool) {
	if !bytes.Contains(e.Metadata, []byte(editedKey)) {
		return original, false
	}
	var metadata map[string]json.RawMessage
	var text string
	if json.Unmarshal(e.Metadata, &metadata) != nil || json.Unmarshal(metadata[editedKey], &text) != nil {
		return original, false
	}
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) != len(original) {
		return original, false
	}
	return [sha256.Size]byte(sum), true
}
