package console

import (
	"bytes"
	"context"
	"net/http"
	"time"
)

const (
	// liveInterval is how often what is on a page is renewed.
	liveInterval = time.Second
	// liveTimeout is how long a client may take to read an update.
	liveTimeout = 10 * time.Second
	// maxLive is how many streams there are at once.
	maxLive = 64
)

// stream sends parts of a page as server-sent events: at once, and when they have changed, as long as the viewer may see
// them. make says when the last was.
func (c *Console) stream(w http.ResponseWriter, r *http.Request, make func(context.Context) (part []byte, last bool, err error)) {
	if c.live.Add(1); c.live.Load() > maxLive {
		c.live.Add(-1)
		c.refuse(w, r, http.StatusServiceUnavailable, "Too many pages are being kept up to date.")
		return
	}
	defer c.live.Add(-1)
	ctx := r.Context()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy that collects would hold it back
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Time{}) != nil { // the server's would end the stream
		return
	}
	ticker := time.NewTicker(liveInterval)
	defer ticker.Stop()
	var sent []byte
	for c.viewer(r).Role != nobody { // who has logged out is told no more
		part, last, err := make(ctx)
		if err != nil {
			c.logger.WarnContext(ctx, "console: cannot renew a page", "path", r.URL.Path, "error", err)
			return
		}
		name := "part"
		if last {
			name = "last"
		}
		if !bytes.Equal(part, sent) || last {
			sent = part
			if control.SetWriteDeadline(time.Now().Add(liveTimeout)) != nil || !sendEvent(w, name, part) || control.Flush() != nil || last {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		case <-c.jobs.ended():
			return
		}
	}
}

// sendEvent sends HTML. A carriage return in it would end a line, and what follows be read as another field.
func sendEvent(w http.ResponseWriter, name string, data []byte) bool {
	var out bytes.Buffer
	out.WriteString("event: " + name + "\n")
	for line := range bytes.Lines(bytes.ReplaceAll(data, []byte("\r"), []byte("&#13;"))) {
		out.WriteString("data: ")
		out.Write(bytes.TrimRight(line, "\n"))
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	_, err := out.WriteTo(w)
	return err == nil
}
