package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/healz/worker/internal/deadletter"
	"github.com/healz/worker/internal/events"
	"github.com/healz/worker/internal/store"
	"github.com/healz/worker/internal/text"
)

// parsePages parses a template per page, each with the common layout.
func parsePages(assets map[string]asset) (map[string]*template.Template, error) {
	layout, err := template.New("layout").Funcs(template.FuncMap{
		"link": link, "masked": masked, "asset": func(name string) string { return "/assets/" + name + "?v=" + assets[name].version }, "fields": appendFields, "hidden": func() []string { return []string{"group", "correlation"} }, "title": title, "ago": ago, "clock": clock, "visible": visible, "stamp": stamp, "machine": machine, "short": short, "took": took, "count": count, "rate": rate,
		"aggregatePath": aggregatePath, "letterPath": letterPath, "query": url.QueryEscape, "plural": plural, "nonzero": func(id uuid.UUID) bool { return id != uuid.Nil },
		"badge": badge, "waits": func(s deadletter.State) bool { return s == deadletter.Waiting }, "pretty": pretty, "since": func(from, to time.Time) string { return offset(to.Sub(from)) }, "dict": dict,
	}).ParseFS(templateFiles, "templates/layout/*.html")
	if err != nil {
		return nil, err
	}
	files, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, err
	}
	pages := make(map[string]*template.Template, len(files))
	for _, file := range files {
		p, err := layout.Clone()
		if err == nil {
			p, err = p.ParseFS(templateFiles, file)
		}
		if err != nil {
			return nil, err
		}
		pages[strings.TrimSuffix(path.Base(file), ".html")] = p
	}
	return pages, nil
}

// dict returns the argument of a nested template from names and values.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict of %d arguments", len(pairs))
	}
	d := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		d[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return d, nil
}

// link returns an address with an encoded query. In a template, the query alone would be encoded again.
func link(path, query string) string { return path + "?" + query }

func stamp(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return events.FormatTime(t, "2006-01-02 15:04:05.000")
}

// title is a word with a capital.
func title(word string) string { return strings.ToUpper(word[:1]) + word[1:] }

func clock(t time.Time) string { return events.FormatTime(t, "15:04:05") }

// visible returns text as it can be shown: an invisible character, or one that reverses the text after it, is a dot.
func visible(s string) string {
	shown := text.Printable(s)
	if s != "" && strings.TrimSpace(shown) == "" {
		return "(blank)"
	}
	return shown
}

func machine(t time.Time) string { return events.FormatTime(t, time.RFC3339Nano) }

func ago(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	d := time.Since(t)
	if d < 0 {
		return "in " + rough(d.Abs())
	}
	if d < time.Second {
		return "just now"
	}
	return rough(d) + " ago"
}

func rough(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d d", int(d.Hours()/24))
	}
}

// took formats a short duration exactly, and a long one roughly. The difference of two times may be the least duration
// there is, which has no negative.
func took(d time.Duration) string {
	switch {
	case d < 0:
		return "–" + took(d.Abs())
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	default:
		return rough(d)
	}
}

// short returns the end of an id. UUIDs v7 and ULIDs of the same time differ there.
func short(id any) string {
	s := fmt.Sprint(id)
	if len(s) <= 12 {
		return s
	}
	return "…" + s[len(s)-8:]
}

func count(n any) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// badge formats the number of dead letters, which is counted up to [store.MaxCount]; "" for none, "?" if it is unknown.
func badge(n int) string {
	switch {
	case n == unknownCount:
		return "?"
	case n <= 0:
		return ""
	case n >= store.MaxCount:
		return count(store.MaxCount) + "+"
	default:
		return count(n)
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return count(n) + " " + one
	}
	return count(n) + " " + many
}

// rate formats a number per second, "–" if it is unknown.
func rate(r float64) string {
	switch {
	case math.IsNaN(r):
		return "–"
	case r == 0:
		return "0/s"
	case r < 10:
		return strconv.FormatFloat(r, 'f', 1, 64) + "/s"
	default:
		return count(int(math.Round(r))) + "/s"
	}
}

func aggregatePath(aggregateType string, id uuid.UUID) string {
	return "/aggregates/" + url.PathEscape(aggregateType) + "/" + id.String()
}

func letterPath(id string) string { return "/dead-letters/letter/" + url.PathEscape(id) }

func pretty(raw json.RawMessage) string {
	var out bytes.Buffer
	if json.Indent(&out, raw, "", "  ") != nil {
		return string(raw)
	}
	return out.String()
}
