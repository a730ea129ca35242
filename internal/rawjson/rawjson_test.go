package rawjson_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/rawjson"
)

func ExampleMembers() {
	for name, value := range rawjson.Members([]byte(`{"id": 7, "data": {"a": [1, "}"]}, "ok": true}`)) {
		fmt.Printf("%s is %s\n", name, value)
	}
	// Output:
	// id is 7
	// data is {"a": [1, "}"]}
	// ok is true
}

func ExampleElements() {
	elements, err := rawjson.Elements([]byte(`[1, "a,b", {"c": [2]}]`))
	fmt.Printf("%s %v", elements, err)
	// Output:
	// [1 "a,b" {"c": [2]}] <nil>
}

func ExamplePrintable() {
	fmt.Printf("%s", rawjson.Printable([]byte("{\"é\":\"a\u202eb\U000e0001\"}")))
	// Output: {"é":"a\u202eb\udb40\udc01"}
}

func TestText(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{`"a"`: "a", `""`: "", `"ü"`: "ü", `"a\nb"`: "-", `7`: "-", `"`: "-", ``: "-"} {
		text, ok := rawjson.Text([]byte(value))
		require.Equal(t, want != "-", ok, value)
		if ok {
			require.Equal(t, want, text)
		}
	}
}

func TestWhatIsNoJSONEndsEarly(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":"`, `{"a":{"`, `{"a":[`, `[1`, `null`, `{a:1}`, `{,}`, `}`, `{"a" 1}`, `{:1}`} {
		for name, value := range rawjson.Members([]byte(text)) {
			t.Errorf("%s: %s is %s", text, name, value)
		}
	}
}

func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, ` { "a" : [ 1 , { "b" : "}" } ] , "c" : "\"" } `, `{"a":1,"a":2}`, `[1]`, `{"a":"\\"}`, `{"":-1.5e3}`, `{"a"`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := map[string]json.RawMessage{}
		for name, value := range rawjson.Members(text) {
			var key string
			if json.Unmarshal([]byte(`"`+string(name)+`"`), &key) == nil {
				got[key] = value
			}
		}
		var want map[string]json.RawMessage
		if json.Unmarshal(text, &want) == nil && want != nil {
			require.Equal(t, want, got)
		}
	})
}

func FuzzElements(f *testing.F) {
	for _, seed := range []string{`[]`, `[1]`, ` [ 1 , "a]" , [ 2 ] ] `, `[{"a":[]},null]`, `[`, `{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := rawjson.Elements(text)
		var want []json.RawMessage
		if json.Unmarshal(text, &want) == nil && want != nil {
			require.NoError(t, err)
			require.Len(t, got, len(want))
			for i, element := range want {
				require.Equal(t, []byte(element), got[i])
			}
		}
	})
}

func TestAnArrayThatIsNoneIsAnError(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "[", "]", "[1", "[1,", "[1,]", "[1]]", "[1],", "[1 2]", `["a]`, "[{]", "{}", "null", "1"} {
		_, err := rawjson.Elements([]byte(text))
		require.Error(t, err, text)
	}
}
