package events_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/events"
)

func TestFingerprintIsTheSame(t *testing.T) {
	t.Parallel()
	for name, pair := range map[string][2]string{
		"key order":         {`{"a":1,"b":{"c":2,"d":3}}`, `{"b":{"d":3,"c":2},"a":1}`},
		"white space":       {`{"a":[1,2]}`, " {\n\"a\" :\t[ 1 , 2 ] } "},
		"escapes":           {`"äA\/😀"`, `"\u00e4\u0041/\ud83d\ude00"`},
		"trailing zeros":    {`[1.10,100,0]`, `[1.1,1e2,0.00]`},
		"exponents":         {`[120,0.0012,1e400]`, `[1.2E+2,12e-4,10.0e399]`},
		"negative zero":     {`-0`, `0`},
		"negative":          {`-1.50`, `-15e-1`},
		"a repeated key":    {`{"a":1,"a":2}`, `{"a":2}`},
		"zero times a lot":  {`0e999`, `0`},
		"beyond 2^53, same": {`9007199254740993`, `9007199254740993.0`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one := parsed(t, map[string]string{"event_data": pair[0]})
			other := parsed(t, map[string]string{"event_data": pair[1]})
			require.Equal(t, one.Fingerprint(), other.Fingerprint())
		})
	}
	e := parsed(t, nil)
	rewritten := e
	rewritten.CreatedAt = e.CreatedAt.Add(time.Microsecond)
	rewritten.Metadata = json.RawMessage(`{}`)
	require.Equal(t, e.Fingerprint(), rewritten.Fingerprint())
}

func TestFingerprintDiffers(t *testing.T) {
	t.Parallel()
	seen := map[[32]byte]string{}
	add := func(what string, e events.Event) {
		fingerprint := e.Fingerprint()
		require.Empty(t, seen[fingerprint], "the same as %s", what)
		seen[fingerprint] = what
	}
	for _, data := range []string{
		`null`, `true`, `false`, `"true"`, `"null"`, `""`, `[]`, `{}`, `[null]`, `[[]]`, `[[],[]]`, `[[[]]]`, `{"a":null}`,
		`1`, `"1"`, `-1`, `10`, `0`, `0.1`, `[1,2]`, `[2,1]`, `[12]`, `["1","2"]`, `["1s1:2"]`,
		`{"a":1,"b":2}`, `{"a":2,"b":1}`,
		`9007199254740993`, `9007199254740992`, `0.30000000000000004`, `0.3`, `1e400`, `1e401`, `"a"`, `"A"`,
	} {
		add(data, parsed(t, map[string]string{"event_data": data}))
	}
	for what, change := range map[string]func(*events.Event){
		"id":                func(e *events.Event) { e.ID = uuid.Max },
		"type":              func(e *events.Event) { e.Type = "Other" },
		"aggregate type":    func(e *events.Event) { e.AggregateType = "Other" },
		"aggregate id":      func(e *events.Event) { e.AggregateID = uuid.Max },
		"aggregate version": func(e *events.Event) { e.AggregateVersion++ },
		"tenant":            func(e *events.Event) { e.TenantID = uuid.Max },
		"nothing":           func(*events.Event) {},
		"bad data":          func(e *events.Event) { e.Data = json.RawMessage(`{`) },
		"other bad data":    func(e *events.Event) { e.Data = json.RawMessage(`}`) },
	} {
		e := parsed(t, nil)
		change(&e)
		add(what, e)
	}
}
