package doctor

import (
	"context"
	"net"
	"net/url"
	"strings"

	"github.com/healz/worker/internal/worker"
)

const settingsCheck = "settings"

func settingsChecks(s worker.Settings, handlers int) []Check {
	return []Check{{Name: settingsCheck, Run: func(_ context.Context, r *Report) error {
		checkSettings(s, handlers, r)
		return nil
	}}}
}

func checkSettings(s worker.Settings, handlers int, r *Report) {
	if err := s.Check(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			r.wrong(line, "see `worker run --help`")
		}
		return
	}
	if err := s.CheckBus(); err != nil {
		r.wrong(oneLine(err), "see `worker run --help`")
		return
	}
	r.fine("store %s, bus %s", s.StoreName(), s.BusName())
	if s.AMQP.URL == "" {
		return
	}
	if u, err := url.Parse(s.AMQP.URL); err == nil && u.Scheme == "amqp" && !isLocal(u.Hostname()) {
		r.warn("patient data is sent to RabbitMQ unencrypted", "use amqps:// in RABBITMQ_URL")
	}
	if problem := s.Tuning.OutlastsConsumerTimeout(handlers); problem != "" {
		r.warn(problem, worker.AdviceOnConsumerTimeout)
	}
	if s.Embedded() {
		r.warn("the store is a file of this machine, but the bus is shared", "set DATABASE_URL, unless there is only one worker")
	}
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasPrefix(host, "/") || ip != nil && ip.IsLoopback()
}
