package console

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// liveInterval is the update interval of a live page.
	liveInterval = time.Second
	// liveTimeout bounds the time in which a client reads an update.
	liveTimeout = 10 * time.Second
	// maxLive is the maximum number of open streams, and maxLiveOfOne that of one session, or of one address without a login.
	maxLive, maxLiveOfOne = 64, 8
)

// streams counts the open streams. The zero value is ready; it is safe for concurrent use.
type streams struct {
	mu  sync.Mutex
	all int
	by  map[string]int
}

// open returns whether a viewer may open another stream.
func (s *streams) open(by string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxLive || s.by[by] >= maxLiveOfOne {
		return false
	}
	if s.by == nil {
		s.by = map[string]int{}
	}
	s.all++
	s.by[by]++
	return true
}

func (s *streams) close(by string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.by[by]--; s.by[by] == 0 {
		delete(s.by, by)
	}
}

// stream sends a part of a page as server-sent events: immediately and in each [liveInterval], so that the page can tell a
// worker that does not respond, until make returns last or the viewer has signed out.
func (c *Console) stream(w http.ResponseWriter, r *http.Request, make func(context.Context) (part []byte, last bool, err error)) error {
	ctx := r.Context()
	viewer := viewerOf(ctx)
	by := viewer.Client.String()
	if viewer.LoggedIn {
		by = viewer.FormToken
	}
	if !c.live.open(by) {
		return refusal{http.StatusServiceUnavailable, "Too many live pages are open."}
	}
	defer c.live.close(by)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy must not buffer the stream
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Time{}) != nil { // the read timeout of the server would end the stream
		return nil
	}
	ticker := time.NewTicker(liveInterval)
	defer ticker.Stop()
	for c.viewer(r).Role != nobody {
		part, last, err := make(ctx)
		if err != nil {
			c.logger.WarnContext(ctx, "console: cannot update a page", "path", r.URL.Path, "error", err)
			return nil
		}
		name := "part"
		if last {
			name = "last"
		}
		if control.SetWriteDeadline(time.Now().Add(liveTimeout)) != nil || !sendEvent(w, name, part) || control.Flush() != nil || last {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		case <-c.jobs.closed():
			return nil
		}
	}
	return nil
}

// sendEvent sends HTML. It escapes carriage returns, which would end a line of the event.
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
