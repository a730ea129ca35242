package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Result is what a run has measured.
type Result struct {
	Date     string `json:"date"`
	CPUs     int    `json:"cpus"`
	Go       string `json:"go"`
	Postgres string `json:"postgres"`
	Fsync    string `json:"fsync"`
	RabbitMQ string `json:"rabbitmq"`
	Rounds   int    `json:"rounds"`
	Turn     string `json:"turn"`
	Took     string `json:"took"`
	// Load is the machine's load average of the last minute when the run began: what others do there.
	Load string `json:"load"`
	Rows []*Row `json:"rows"`
}

// Row is one thing that was measured.
type Row struct {
	Name string `json:"name"`
	What string `json:"what"`
	Unit string `json:"unit"`
	// Date is when it was measured.
	Date string `json:"date"`
	// Against is what ours is compared with, where it is not the raw client.
	Against string `json:"against,omitempty"`
	// LessIsBetter tells that the figures are a cost rather than a yield.
	LessIsBetter bool `json:"less_is_better,omitempty"`
	// Reach is the ratio of ours to raw that is to be reached, at least, or at the most where less is better; 0: none.
	Reach float64 `json:"reach,omitempty"`
	// Limit is the least that ours is to be, or the most where less is better, in the unit; 0: no limit.
	Limit float64 `json:"limit,omitempty"`
	Raw   Series  `json:"raw,omitempty"`
	Stock Series  `json:"stock,omitempty"`
	Ours  Series  `json:"ours"`
	// CPU is what an event has cost of the processors, client and servers together, in microseconds.
	CPU struct {
		Raw   Series `json:"raw,omitempty"`
		Stock Series `json:"stock,omitempty"`
		Ours  Series `json:"ours,omitempty"`
	} `json:"cpu,omitzero"`
}

// Series are the figures of a contender, one a round.
type Series []float64

// Median is the middle one.
func (s Series) Median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// Ratios are ours to raw, round by round.
func (r *Row) Ratios() Series { return ratios(r.Ours, r.Raw) }

func ratios(a, b Series) Series {
	var s Series
	for i := range min(len(a), len(b)) {
		s = append(s, a[i]/b[i])
	}
	return s
}

// Met tells whether what is to be reached is reached; known is false where nothing is.
func (r *Row) Met() (met, known bool) {
	met = true
	if r.Reach > 0 {
		known = true
		ratio := r.Ratios().Median()
		met = ratio >= r.Reach
		if r.LessIsBetter {
			met = ratio <= r.Reach
		}
	}
	if r.Limit > 0 {
		known = true
		ours := r.Ours.Median()
		met = met && (r.LessIsBetter && ours <= r.Limit || !r.LessIsBetter && ours >= r.Limit)
	}
	return met, known
}

// Goal says what is to be reached.
func (r *Row) Goal() string {
	var goals []string
	sign := "≥"
	if r.LessIsBetter {
		sign = "≤"
	}
	if r.Reach > 0 {
		goals = append(goals, fmt.Sprintf("%s %.4g × %s", sign, r.Reach, cmp.Or(r.Against, "raw")))
	}
	if r.Limit > 0 {
		goals = append(goals, fmt.Sprintf("%s %g %s", sign, r.Limit, r.Unit))
	}
	return strings.Join(goals, ", ")
}

// Verdict is the answer to the goal.
func (r *Row) Verdict() string {
	switch met, known := r.Met(); {
	case !known:
		return ""
	case met:
		return "met"
	default:
		return "not met"
	}
}

// Spread is the ratio's median, and its least and greatest in any round.
func (r *Row) Spread() string {
	s := r.Ratios()
	if len(s) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Median(), slices.Min(s), slices.Max(s))
}

// Figure is a median as it is read.
func Figure(s Series) string {
	switch m := s.Median(); {
	case len(s) == 0:
		return "–"
	case m < 100:
		return strconv.FormatFloat(m, 'f', 1, 64)
	default:
		return thousands(int64(math.Round(m)))
	}
}

// thousands groups the digits of a number that is not negative.
func thousands(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}

// Work is how many times the processors' time of raw ours takes.
func (r *Row) Work() string {
	s := ratios(r.CPU.Ours, r.CPU.Raw)
	if len(s) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", s.Median())
}

func (r *Row) String() string {
	return fmt.Sprintf("%-16s raw %9s  stock %9s  ours %9s %-8s  ratio %-18s %s %s; CPU %s/%s/%s µs",
		r.Name, Figure(r.Raw), Figure(r.Stock), Figure(r.Ours), r.Unit, r.Spread(), r.Goal(), r.Verdict(),
		Figure(r.CPU.Raw), Figure(r.CPU.Stock), Figure(r.CPU.Ours))
}
