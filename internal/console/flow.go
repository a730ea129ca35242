package console

import (
	"cmp"
	"math"
	"time"

	"github.com/healz/worker/internal/text"
)

// picture is a drawing of the pipeline from append to handlers.
type picture struct {
	Class         string
	Width, Height int
	Stations      []station
	Arrows        []arrow
}

// station is a box of the picture.
type station struct {
	X, Y, W, H int
	Name       string
	// Figure is a rate or a count, and Note explains it.
	Figure, Note string
	// Title is the whole note.
	Title string
	// State is "", "warn" or "bad".
	State string
	Href  string
}

// arrow connects two stations.
type arrow struct {
	Path, Label string
	X, Y        int
	Anchor      string
	// Busy is set if events pass now, Bad if these are failed events.
	Busy, Bad bool
}

// stations returns the boxes in the order of the pipeline. The last one is the dead letters.
func stations(s Status, r rates) [6]station {
	list := [6]station{
		{Name: "Append", Figure: rate(r.Appended), Note: "by anyone", Href: "/events"},
		{Name: "Store", Figure: "lag " + known(s.Lag), Note: lagNote(s), Href: "/events"},
		{Name: "Relay", Figure: rate(r.Relayed), Note: s.Parts["relay"].State},
		{Name: "Bus", Figure: queued(s), Note: s.Parts["bus"].State},
		{Name: "Handlers", Figure: rate(r.Handled), Note: failing(r.Failed)},
		{Name: "Dead letters", Figure: known(s.Letters), Note: "waiting", Href: "/dead-letters"},
	}
	if s.LagSeconds >= lateSeconds {
		list[1].State = "warn"
	}
	for part, i := range map[string]int{"store": 1, "relay": 2, "bus": 3, "queue": 3, "consumer": 4, "dead_letters": 5} {
		if p, known := s.Parts[part]; known && !p.OK() && !p.Unknown() {
			list[i].State, list[i].Note = "bad", cmp.Or(p.State, "unknown")+", see below"
		}
	}
	if r.Failed > 0 && list[4].State == "" {
		list[4].State = "warn"
	}
	switch {
	case s.Letters > 0:
		list[5].State = "bad"
	case s.Letters == 0:
		list[5].Note = "none waiting"
	case math.IsNaN(s.Letters) && list[5].State == "":
		list[5].State, list[5].Note = "warn", "cannot be read"
	}
	for i := range list {
		list[i].Title, list[i].Note = list[i].Note, text.Cut(list[i].Note, noteLength)
	}
	return list
}

// lateSeconds is the lag from which on the store is marked.
const lateSeconds = 30

// noteLength is how many characters of a note fit in a box.
const noteLength = 21

func known(n float64) string {
	if math.IsNaN(n) {
		return "–"
	}
	return count(int(n))
}

func lagNote(s Status) string {
	switch {
	case s.Lag == 0:
		return "all published"
	case math.IsNaN(s.LagSeconds):
		return ""
	}
	return "oldest " + took(time.Duration(s.LagSeconds*float64(time.Second)))
}

func queued(s Status) string {
	if s.InProcess {
		return "in process"
	}
	return known(s.Queued) + " queued"
}

func failing(r float64) string {
	if math.IsNaN(r) {
		return ""
	}
	if r == 0 {
		return "no failed attempts"
	}
	return rate(r) + " attempts fail"
}

// wide is the horizontal picture, for screens. The dead letters are below the handlers.
func wide(s Status, r rates) picture {
	p := picture{Class: "wide", Width: 1084, Height: 260}
	for i, box := range stations(s, r) {
		box.X, box.Y, box.W, box.H = 2+228*i, 2, 168, 88
		if i == 5 {
			box.X, box.Y = 914, 170
		}
		p.Stations = append(p.Stations, box)
	}
	p.Arrows = []arrow{
		{Path: "M170 46H224", Busy: r.Appended > 0},
		{Path: "M398 46H452", Busy: r.Relayed > 0},
		{Path: "M626 46H680", Busy: r.Relayed > 0},
		{Path: "M854 46H908", Busy: r.Received > 0},
		{Path: "M1048 90V164", Label: "permanent failure", X: 1038, Y: 154, Anchor: "end", Busy: r.DeadLettered > 0, Bad: true},
		{
			Path: "M958 90V108Q958 120 946 120H326Q314 120 314 108V96", X: 557, Y: 136, Anchor: "middle", Busy: r.Handled > 0,
			Label: "follow-up events, in one transaction with the inbox record",
		},
		{Path: "M914 214H812Q800 214 800 202V96", Label: "replay", X: 790, Y: 218, Anchor: "end"},
	}
	return p
}

// tall is the vertical picture, for phones.
func tall(s Status, r rates) picture {
	p := picture{Class: "tall", Width: 340, Height: 624}
	for i, box := range stations(s, r) {
		box.X, box.Y, box.W, box.H = 60, 2+108*i, 220, 80
		p.Stations = append(p.Stations, box)
	}
	p.Arrows = []arrow{
		{Path: "M170 82V104", Busy: r.Appended > 0},
		{Path: "M170 190V212", Busy: r.Relayed > 0},
		{Path: "M170 298V320", Busy: r.Relayed > 0},
		{Path: "M170 406V428", Busy: r.Received > 0},
		{Path: "M170 514V536", Busy: r.DeadLettered > 0, Bad: true},
		{Path: "M280 474H314Q326 474 326 462V162Q326 150 314 150H286", Busy: r.Handled > 0}, // follow-up events
		{Path: "M60 582H26Q14 582 14 570V378Q14 366 26 366H54"},                             // replay
	}
	return p
}
