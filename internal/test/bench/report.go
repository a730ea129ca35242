package bench

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// Files that a result is written to.
const (
	jsonFile  = "performance.json"
	chartFile = "performance.svg"
	pageFile  = "performance.md"
)

// The table's place in the page.
const (
	tableBegins = "<!-- The table is written by `make bench`. -->\n"
	tableEnds   = "<!-- End of the table. -->\n"
)

// Write prints the result as a Markdown table and, if there is a folder, keeps it there: as JSON, as a chart, and in the
// page that tells of it, if that is there. Rows that were kept there and that this run has not measured stay.
func (r *Result) Write(out io.Writer, folder string) error {
	if _, err := io.WriteString(out, r.table()); err != nil || folder == "" {
		return err
	}
	if err := r.takeOver(folder); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	chart, err := r.chart()
	if err != nil {
		return fmt.Errorf("draw the result: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, jsonFile), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(folder, chartFile), chart, 0o644),
		replaceTable(filepath.Join(folder, pageFile), r.table()),
	)
}

// Read reads what [Result.Write] has kept.
func Read(folder string) (*Result, error) {
	text, err := os.ReadFile(filepath.Join(folder, jsonFile))
	if err != nil {
		return nil, err
	}
	var r Result
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", jsonFile, err)
	}
	return &r, nil
}

// takeOver adds the rows that only an earlier run has, in their places.
func (r *Result) takeOver(folder string) error {
	earlier, err := Read(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for i, row := range earlier.Rows {
		if !slices.ContainsFunc(r.Rows, func(own *Row) bool { return own.Name == row.Name }) {
			r.Rows = slices.Insert(r.Rows, min(i, len(r.Rows)), row)
		}
	}
	return nil
}

// table is the result in Markdown.
func (r *Result) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d CPUs, %s, Postgres %s (fsync %s), RabbitMQ %s; medians of %d rounds of about %s, %s in all; "+
		"load when it began: %s.\n\n", r.Date, r.CPUs, r.Go, r.Postgres, r.Fsync, r.RabbitMQ, r.Rounds, r.Turn, r.Took, r.Load)
	b.WriteString("| what | raw | stock | ours | | ours ÷ raw (least–greatest) | to be reached | | CPU |\n")
	b.WriteString("| --- | ---: | ---: | ---: | --- | --- | --- | --- | --- |\n")
	for _, row := range r.Rows {
		what := row.What
		if row.Against != "" {
			what += ", and (raw) " + row.Against
		}
		if row.Date != r.Date {
			what += " (on " + row.Date + ")"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", what, Figure(row.Raw), Figure(row.Stock),
			Figure(row.Ours), row.Unit, row.Spread(), row.Goal(), row.Verdict(), row.Work())
	}
	return b.String()
}

// replaceTable puts the table into the page, if there is one with a place for it.
func replaceTable(page, table string) error {
	text, err := os.ReadFile(page)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(text), tableBegins)
	_, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		return nil
	}
	return os.WriteFile(page, []byte(before+tableBegins+table+tableEnds+after), 0o644)
}

//go:embed chart.svg.tmpl
var chartTemplate string

// Measures of the chart, in pixels.
const (
	chartWidth  = 960
	chartTop    = 84
	barsLeft    = 370
	barsWidth   = 400
	lineHeight  = 46
	panelHeight = 44
	// chartMost is the greatest ratio that is drawn to scale.
	chartMost = 2.5
)

// panel is a part of the chart, in which more is better or less.
type panel struct {
	Title string
	Y     int
	Lines []chartLine
}

// chartLine is a row, drawn in relation to the raw client.
type chartLine struct {
	Y           int
	What        string
	Ours, Stock bar
	Raw         string
	Reach       float64 // where it is on the chart; 0: nowhere
	Met         string
}

// bar is a contender's.
type bar struct {
	Width float64
	Label string
}

// chart draws the rows that are compared with the raw client.
func (r *Result) chart() ([]byte, error) {
	panels := []*panel{{Title: "Events per second: longer is better"}, {Title: "Time: shorter is better"}}
	for _, row := range r.Rows {
		if len(row.Raw) == 0 || row.Against != "" {
			continue
		}
		into := panels[0]
		if row.LessIsBetter {
			into = panels[1]
		}
		l := chartLine{
			What: row.What, Raw: Figure(row.Raw), Met: row.Verdict(),
			Ours: row.bar(row.Ours), Stock: row.bar(row.Stock), Reach: barsLeft + row.Reach*barsWidth/chartMost,
		}
		if row.Reach == 0 {
			l.Reach = 0
		}
		into.Lines = append(into.Lines, l)
	}
	y := chartTop
	var drawn []*panel
	for _, p := range panels {
		if len(p.Lines) == 0 {
			continue
		}
		p.Y = y
		y += panelHeight
		for i := range p.Lines {
			p.Lines[i].Y = y
			y += lineHeight
		}
		drawn = append(drawn, p)
	}
	chart, err := template.New("chart").Funcs(template.FuncMap{
		"add": func(a, b int) int { return a + b },
	}).Parse(chartTemplate)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = chart.Execute(&b, map[string]any{
		"Width": chartWidth, "Height": y + 12, "Left": barsLeft, "One": barsLeft + barsWidth/chartMost,
		"Right": barsLeft + barsWidth + 16, "Panels": drawn,
		"Result": r,
	})
	return b.Bytes(), err
}

// bar is the median ratio to raw.
func (r *Row) bar(s Series) bar {
	if len(s) == 0 {
		return bar{}
	}
	ratio := ratios(s, r.Raw).Median()
	unit := "/s"
	if r.LessIsBetter {
		unit = "\u202f" + r.Unit
	}
	return bar{
		Width: min(ratio, chartMost) * barsWidth / chartMost,
		Label: fmt.Sprintf("%s%s, %.2f\u202f×", Figure(s), unit, ratio),
	}
}
