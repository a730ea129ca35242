package console

import (
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a page says cannot be read as a field of the stream that it is in.
func TestEventsHoldTogether(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	require.True(t, sendEvent(w, "part", []byte("<p>a\nb\revent: last\r\ndata: c\r\r</p>")))
	require.Equal(t, "event: part\ndata: <p>a\ndata: b&#13;event: last&#13;\ndata: data: c&#13;&#13;</p>\n\n", w.Body.String())
}
