package middleware_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/bus"
	"github.com/healz/worker/internal/middleware"
)

func TestCorrelation(t *testing.T) {
	t.Parallel()
	const given = "0198c9f0-7d1b-7c4e-a0f4-5a1f6f0f3b11"
	for name, test := range map[string]struct{ header, want string }{
		"propagated":                {given, given},
		"prefixed":                  {"import-" + given, given},
		"generated":                 {"", ""},
		"generated for what is odd": {"7", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := message.NewMessage("1", nil)
			m.SetContext(t.Context())
			if test.header != "" {
				m.Metadata.Set(bus.CorrelationIDKey, test.header)
			}
			bus.Complete(m)
			_, err := middleware.Correlation(func(m *message.Message) ([]*message.Message, error) {
				got := middleware.CorrelationID(m.Context())
				require.Len(t, got, 36)
				if test.want != "" {
					require.Equal(t, test.want, got)
				}
				return nil, nil
			})(m)
			require.NoError(t, err)
		})
	}
}
