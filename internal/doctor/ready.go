package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// readyTimeout is longer than a worker takes to check its parts.
	readyTimeout = 5 * time.Second
	// aliveTimeout is shorter than what the health check of the image has.
	aliveTimeout = 2 * time.Second
)

// WorkerCheck reads /readyz of the worker at an address: what only a running worker knows, as that the failed queue refuses
// its dead letters.
func WorkerCheck(httpAddr string) Check {
	causes := []string{postgresCheck, fileCheck, diskCheck, rabbitMQCheck, publishingCheck, horizonCheck}
	return Check{Name: "worker", Causes: causes, Run: func(ctx context.Context, r *Report) error {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		health, err := readHealth(ctx, httpAddr)
		if ctx.Err() != nil {
			r.warn(fmt.Sprintf("the worker at --http-addr %s does not answer within %s", httpAddr, readyTimeout), "see whether it is frozen")
			return nil
		}
		if err != nil {
			r.unknown(fmt.Sprintf("no worker answers at --http-addr %s: %s", httpAddr, oneLine(err)), "")
			return nil
		}
		const advice = "see the log of that worker"
		for _, part := range slices.Sorted(maps.Keys(health.Parts)) {
			state := health.Parts[part]
			switch {
			case state == "ok" || strings.HasPrefix(state, "ok ("):
			case strings.HasPrefix(state, "unknown"): // another part tells why
			case strings.HasPrefix(state, "degraded"): // it can work
				r.warn(part+" "+state, advice)
			default:
				r.wrong(part+": "+state, advice)
			}
		}
		r.otherwise("the worker at %s is ready", httpAddr)
		return nil
	}}
}

// readiness is what /readyz says.
type readiness struct {
	Parts map[string]string `json:"parts"`
}

// Alive is nil if a worker answers /healthz at an address within 2 seconds.
func Alive(ctx context.Context, httpAddr string) error {
	ctx, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	response, err := get(ctx, httpAddr, "/healthz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answers with status %d", response.StatusCode)
	}
	return nil
}

func readHealth(ctx context.Context, httpAddr string) (health readiness, err error) {
	response, err := get(ctx, httpAddr, "/readyz")
	if err != nil {
		return health, err
	}
	defer response.Body.Close()
	if err = json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&health); err == nil && len(health.Parts) == 0 {
		err = errors.New("it is no worker")
	}
	return health, err
}

// get dials the address on which a worker listens: to dial all addresses, as 0.0.0.0 or none, is to dial this machine.
func get(ctx context.Context, httpAddr, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, httpAddr)
		},
	}}
	response, err := client.Do(request)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // it names the address, and not the URL
	}
	return response, err
}
