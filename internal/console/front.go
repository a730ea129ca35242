package console

import (
	"net/http"
	"sync/atomic"
)

// Front stands where a console is to be served, before there is one and also if none is. The zero value is ready; it is
// safe for concurrent use.
type Front struct{ handler atomic.Pointer[http.Handler] }

// Serve lets c answer from now on.
func (f *Front) Serve(c *Console) {
	var h http.Handler = c
	f.handler.Store(&h)
}

// Refuse lets the front say why there is no console.
func (f *Front) Refuse(reason error) {
	h := http.Handler(say(http.StatusNotFound, reason.Error()))
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
		http.Error(w, text, status)
	}
}
