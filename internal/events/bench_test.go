package events_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func BenchmarkParse(b *testing.B) {
	for name, data := range map[string]string{
		"small": `{"name":"Ana","born":"1990-01-01"}`,
		"64KiB": `{"notes":["` + strings.Repeat(`0123456789abcde\n`, 4<<10) + `",1.10]}`,
	} {
		body := withData(data)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				_, err := events.Parse(body)
				require.NoError(b, err)
			}
		})
	}
}

func BenchmarkMarshalJSON(b *testing.B) {
	e, err := events.Parse(withData(`{"name":"Ana","born":"1990-01-01"}`))
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_, err := e.MarshalJSON()
		require.NoError(b, err)
	}
}
