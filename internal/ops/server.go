package ops

import (
	"log/slog"
	"net/http"
	"time"
)

const (
	readHeaderTimeout = 5 * time.Second
	// readTimeout bounds the time until a request is here, and ends the context of one that is answered later, unless its
	// handler lifts it.
	readTimeout = 30 * time.Second
	// writeTimeout bounds the time until the answer is on its way.
	writeTimeout = 2 * time.Minute
	idleTimeout  = 2 * time.Minute
	// maxHeader bounds the header of a request, in bytes.
	maxHeader = 32 << 10
)

// Server serves pages to whomever: who sends slowly, or nothing, or does not read, is left before long. What it finds wrong
// with connections it logs.
func Server(pages http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler: pages, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
	}
}
