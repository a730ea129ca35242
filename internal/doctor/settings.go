package doctor

import (
	"context"
	"net"
	"net/url"
	"strings"

	"github.com/healz/worker/internal/worker"
)

const settingsCheck = "settings"

func settingsChecks(s worker.Settings) []Check {
	return []Check{{Name: settingsCheck, Run: func(context.Context) ([]Finding, error) { return checkSettings(s), nil }}}
}

func checkSettings(s worker.Settings) []Finding {
	var findings []Finding
	if err := s.Check(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			findings = append(findings, wrongly(line, "see `worker run --help`"))
		}
		return findings
	}
	findings = append(findings, fine("store %s, bus %s", s.StoreName(), s.BusName()))
	if s.AMQP.URL != "" {
		u, err := url.Parse(s.AMQP.URL)
		if err == nil && u.Scheme == "amqp" && !isLocal(u.Hostname()) {
			findings = append(findings, warning("patient data is sent to RabbitMQ unencrypted", "use amqps:// in RABBITMQ_URL"))
		}
	}
	if s.Embedded() && s.AMQP.URL != "" {
		findings = append(findings, warning("the store is a file of this machine, but the bus is shared",
			"set DATABASE_URL, unless there is only one worker"))
	}
	return findings
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasPrefix(host, "/") || ip != nil && ip.IsLoopback()
}
