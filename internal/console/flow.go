package console

import (
	"fmt"
	"math"
	"time"
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

// Sizes of the pictures.
const (
	boxWidth, boxHeight = 168, 88
	boxGap              = 60
	rowTwo              = 170
	tallWidth, tallBox  = 340, 220
	tallHeight, tallGap = 74, 34
	margin              = 2
)

// stations returns the boxes in the order of the pipeline. The last one is the dead letters.
func stations(s Status, r rates) [6]station {
	list := [6]station{
		{Name: "Append", Figure: rate(r.Appended), Note: "by anyone", Href: "/events"},
		{Name: "Store", Figure: "lag " + known(s.Lag), Note: lagNote(s), Href: "/events"},
		{Name: "Relay", Figure: rate(r.Relayed), Note: s.Parts["relay"]},
		{Name: "Bus", Figure: queued(s.Queued), Note: s.Parts["bus"]},
		{Name: "Handlers", Figure: rate(r.Handled), Note: failing(r.Failed)},
		{Name: "Dead letters", Figure: known(s.Letters), Note: "waiting", Href: "/dead-letters"},
	}
	if s.LagSeconds >= lateSeconds {
		list[1].State = "warn"
	}
	for i, part := range map[int]string{1: "store", 2: "relay", 3: "bus", 4: "consumer"} {
		if text := s.Parts[part]; text != "" && !healthy(text) {
			list[i].State, list[i].Note = "bad", "see below"
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
	}
	return list
}

// lateSeconds is the lag from which on the store is marked.
const lateSeconds = 30

func healthy(part string) bool { return len(part) >= 2 && part[:2] == "ok" }

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

func queued(n float64) string {
	if math.IsNaN(n) {
		return "in process"
	}
	return count(int(n)) + " queued"
}

func failing(r float64) string {
	if math.IsNaN(r) || r == 0 {
		return "no failed attempts"
	}
	return rate(r) + " attempts fail"
}

// wide is the horizontal picture, for screens.
func wide(s Status, r rates) picture {
	p := picture{Class: "wide", Width: 5*boxWidth + 4*boxGap + 2*margin, Height: rowTwo + boxHeight + margin}
	list := stations(s, r)
	for i := range list {
		box := &list[i]
		box.X, box.Y, box.W, box.H = margin+i*(boxWidth+boxGap), margin, boxWidth, boxHeight
	}
	letters := &list[5]
	letters.X, letters.Y = list[4].X, rowTwo
	p.Stations = list[:]
	middle := margin + boxHeight/2
	for i, busy := range []float64{r.Appended, r.Relayed, r.Relayed, r.Received} {
		from := list[i].X + boxWidth
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dH%d", from, middle, from+boxGap-6), Busy: busy > 0})
	}
	bottom, down := margin+boxHeight, list[4].X+boxWidth/2
	p.Arrows = append(
		p.Arrows,
		arrow{
			Path:  fmt.Sprintf("M%d %dV%d", down+50, bottom, rowTwo-6),
			Label: "permanent failure", X: down + 40, Y: rowTwo - 16, Anchor: "end", Busy: r.DeadLettered > 0, Bad: true,
		},
		arrow{
			Path: fmt.Sprintf("M%d %dV%dQ%d %d %d %dH%dQ%d %d %d %dV%d", down-40, bottom, bottom+18, down-40, bottom+30, down-52,
				bottom+30, list[1].X+boxWidth/2+12, list[1].X+boxWidth/2, bottom+30, list[1].X+boxWidth/2, bottom+18, bottom+6),
			Label: "follow-up events, in one transaction with the inbox record", X: (list[1].X + boxWidth/2 + list[3].X + boxWidth/2 + 30) / 2, Y: bottom + 46,
			Anchor: "middle", Busy: r.Handled > 0,
		},
		arrow{
			Path: fmt.Sprintf("M%d %dH%dQ%d %d %d %dV%d", letters.X, rowTwo+boxHeight/2, list[3].X+boxWidth/2+42,
				list[3].X+boxWidth/2+30, rowTwo+boxHeight/2, list[3].X+boxWidth/2+30, rowTwo+boxHeight/2-12, bottom+6),
			Label: "replay", X: list[3].X + boxWidth/2 + 20, Y: rowTwo + boxHeight/2 + 4, Anchor: "end",
		},
	)
	return p
}

// tall is the vertical picture, for phones.
func tall(s Status, r rates) picture {
	p := picture{Class: "tall", Width: tallWidth, Height: 6*tallHeight + 5*tallGap + 2*margin}
	list := stations(s, r)
	for i := range list {
		box := &list[i]
		box.X, box.Y, box.W, box.H = (tallWidth-tallBox)/2, margin+i*(tallHeight+tallGap), tallBox, tallHeight
	}
	p.Stations = list[:]
	for i, busy := range []float64{r.Appended, r.Relayed, r.Relayed, r.Received, r.DeadLettered} {
		from := list[i].Y + tallHeight
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dV%d", tallWidth/2, from, from+tallGap-6), Busy: busy > 0, Bad: i == 4})
	}
	side := func(from, to, edge, x int, busy bool) arrow {
		y1, y2 := list[from].Y+tallHeight/2, list[to].Y+tallHeight/2
		in := 12
		if x > edge {
			in = -12
		}
		return arrow{Path: fmt.Sprintf("M%d %dH%dQ%d %d %d %dV%dQ%d %d %d %dH%d", edge, y1, x+in, x, y1, x, y1-12, y2+12, x, y2, x+in, y2,
			edge+sign(x-edge)*6), Busy: busy}
	}
	right, left := list[0].X+tallBox, list[0].X
	p.Arrows = append(p.Arrows, side(4, 1, right, tallWidth-14, r.Handled > 0), side(5, 3, left, 14, false))
	return p
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}
