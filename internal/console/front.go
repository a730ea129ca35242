package console

import (
	"net/http"
	"strconv"
	"sync/atomic"
)

// Front is the handler of a console that may not be open yet, or never. The zero value is ready; it is safe for concurrent
// use.
type Front struct{ handler atomic.Pointer[http.Handler] }

// Serve sets the console.
func (f *Front) Serve(c *Console) {
	var h http.Handler = c
	f.handler.Store(&h)
}

// Refuse makes the front respond with the reason why there is no console.
func (f *Front) Refuse(reason error) {
	h := http.Handler(say(http.StatusNotFound, reason.Error()))
	f.handler.Store(&h)
}

// Stop makes the front respond that the worker is stopping.
func (f *Front) Stop() {
	h := http.Handler(say(http.StatusServiceUnavailable, "the worker is stopping"))
	f.handler.Store(&h)
}

// ServeHTTP implements [http.Handler].
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := f.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	say(http.StatusServiceUnavailable, "the worker is starting")(w, r)
}

func say(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Refresh", strconv.Itoa(retrySeconds))
		}
		http.Error(w, text, status)
	}
}
