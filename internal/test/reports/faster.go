package reports

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	// pace is by how much the rig's time is faster than that of the alerts.
	pace = 10
	// shortest and longest bound a duration at the rig's pace. The workers poll their servers each 5 s at any pace, and
	// another worker needs 5 s to become the leader; a scenario does not last a day.
	shortest, longest = 10 * time.Second, 30 * time.Second
)

// faster returns the alerts at the rig's pace: each duration and each threshold of an age is a tenth, within bounds.
func faster(alerts string) string {
	durations := regexp.MustCompile(`(for: |keep_firing_for: |\[)(\d+)([smhd])`)
	alerts = durations.ReplaceAllStringFunc(alerts, func(found string) string {
		part := durations.FindStringSubmatch(found)
		n, _ := strconv.Atoi(part[2]) // digits
		unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[part[3]]
		d := min(max(time.Duration(n)*unit/pace, shortest), longest)
		return fmt.Sprintf("%s%ds", part[1], int(d.Seconds()))
	})
	ages := regexp.MustCompile(`(worker_\w*(?:lag|in_flight)_seconds\)* *> *|process_start_time_seconds *< *)(\d+)`)
	return ages.ReplaceAllStringFunc(alerts, func(found string) string {
		part := ages.FindStringSubmatch(found)
		n, _ := strconv.Atoi(part[2]) // digits
		return part[1] + strconv.Itoa(min(n/pace, int(longest.Seconds())))
	})
}

// alertNames are the names of the alerts, in their order.
func alertNames(alerts string) (names []string) {
	for _, found := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(alerts, -1) {
		names = append(names, strings.TrimSpace(found[1]))
	}
	return names
}
