// Package otlp is a receiver of traces by OTLP over HTTP, for tests.
package otlp

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Receiver keeps the spans that it receives at /v1/traces. The zero value is ready. It is safe for concurrent use.
type Receiver struct {
	mu      sync.Mutex
	refusal int
	header  http.Header
	spans   []Span
	bodies  strings.Builder
}

// Span is a span with the attributes of its resource.
type Span struct {
	*trace.Span

	Resource map[string]string
}

// Refuse makes it answer with a status, and keep nothing; 0 ends that.
func (r *Receiver) Refuse(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = status
}

// Spans are the spans so far.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

// Bodies are the bodies of all requests so far.
func (r *Receiver) Bodies() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies.String()
}

// Header is the header of the last request.
func (r *Receiver) Header() http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header
}

// ServeHTTP implements [http.Handler].
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var sent collector.ExportTraceServiceRequest
	if err != nil || req.URL.Path != "/v1/traces" || proto.Unmarshal(body, &sent) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.header = req.Header
	if r.refusal != 0 {
		w.WriteHeader(r.refusal)
		return
	}
	r.bodies.Write(body)
	for _, resource := range sent.GetResourceSpans() {
		described := Attributes(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				r.spans = append(r.spans, Span{span, described})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// Attributes are those attributes that are strings.
func Attributes(all []*common.KeyValue) map[string]string {
	texts := map[string]string{}
	for _, a := range all {
		if text, ok := a.GetValue().GetValue().(*common.AnyValue_StringValue); ok {
			texts[a.GetKey()] = text.StringValue
		}
	}
	return texts
}
