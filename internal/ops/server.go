package ops

import (
	"log/slog"
	"net/http"
	"time"
)

const (
	readHeaderTimeout = 5 * time.Second
	// readTimeout bounds the time to receive a request. It also ends the context of a request that takes longer, unless the
	// handler resets the deadline.
	readTimeout = 30 * time.Second
	// writeTimeout bounds the time to send the response.
	writeTimeout = 2 * time.Minute
	idleTimeout  = 2 * time.Minute
	// maxHeader is the size limit of the header of a request, in bytes.
	maxHeader = 32 << 10
)

// Server returns a server with timeouts and limits against slow clients. It logs errors of connections.
func Server(pages http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler: pages, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
	}
}
