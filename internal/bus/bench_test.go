package bus_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
)

// What the relay does for each event before it publishes it.
func BenchmarkNewMessage(b *testing.B) {
	const head = `{"event_id":"0198c9ab-0000-7000-8000-000000000001","event_type":"PatientRegistered","aggregate_type":"Patient",` +
		`"aggregate_id":"5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11","aggregate_version":1,"tenant_id":"0b9a4f3e-0c3d-4f5e-9a51-7d2c6b8e4a10",` +
		`"correlation_id":"0198c9ab-0000-7000-8000-000000000002","created_at":"2026-01-02T03:04:05.678Z","event_data":{"name":"Ana"}`
	for name, metadata := range map[string]string{
		"without metadata": "", "with metadata": `,"metadata":{"source":"` + strings.Repeat("x", 100) + `"}`,
		"traced": `,"metadata":{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`,
	} {
		body := []byte(head + metadata + "}")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NotEmpty(b, bus.NewMessage(body).UUID)
			}
		})
	}
}
