package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/worker"
)

const rabbitMQCheck = "rabbitmq"

type rabbitMQDoctor struct{ settings worker.Settings }

func rabbitMQChecks(s worker.Settings) []Check {
	d := rabbitMQDoctor{settings: s}
	return []Check{
		{rabbitMQCheck, settingsCheck, d.reach},
		{"topology", rabbitMQCheck, d.topology},
		{"queues", rabbitMQCheck, d.queues},
	}
}

func (d rabbitMQDoctor) reach(ctx context.Context) ([]Finding, error) {
	survey, err := amqp.Inspect(ctx, d.settings.AMQP)
	if err != nil {
		return []Finding{wrongly(oneLine(err), adviceOnRabbitMQ(err))}, nil
	}
	return []Finding{fine("%s %s", survey.Product, survey.Version)}, nil
}

func adviceOnRabbitMQ(err error) string {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case certificate:
		return "set cacertfile in RABBITMQ_URL to the CA of the broker's certificate"
	case errors.Is(err, amqp.ErrRefused):
		return "correct user, password and vhost in RABBITMQ_URL, or grant permissions: rabbitmqctl set_permissions"
	default:
		return "check whether it runs, and is reachable at this address"
	}
}

func (d rabbitMQDoctor) topology(ctx context.Context) ([]Finding, error) {
	survey, err := amqp.Inspect(ctx, d.settings.AMQP)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	var missing []string
	for _, p := range survey.Parts {
		switch {
		case p.Missing:
			missing = append(missing, p.Kind+" "+p.Name)
		case p.Err != nil:
			findings = append(findings, wrongly(oneLine(p.Err), adviceOnPart(p)))
		}
	}
	if len(missing) > 0 {
		findings = append(findings, warning("there is no "+strings.Join(missing, ", no "), "start `worker run`, which declares it"))
	}
	if len(findings) == 0 {
		findings = append(findings, fine("exchanges, queues and permissions are correct"))
	}
	return findings, nil
}

func adviceOnPart(p amqp.Part) string {
	switch {
	case strings.Contains(p.Err.Error(), "access"):
		return "grant permissions on the vhost: rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
	case p.Kind == "no exchange":
		return "run with the same --partitions as the other workers, or with --leave-partitions"
	case p.Kind == "queue":
		return "delete it when it is empty and start `worker run`, which declares it; or correct the program that declared it"
	default:
		return "delete it and start `worker run`, which declares it; or correct the program that declared it"
	}
}

func (d rabbitMQDoctor) queues(ctx context.Context) ([]Finding, error) {
	survey, err := amqp.Inspect(ctx, d.settings.AMQP)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	backlog := 0
	for _, p := range survey.Parts {
		switch {
		case p.Kind != "queue" || p.Missing:
		case p.Failed:
			if p.Messages > 0 && p.Consumers == 0 { // a worker would ingest them at once
				advice := "start `worker run`, which ingests them"
				if !d.settings.IngestDeadLetters {
					advice = "run `worker dlq ingest`"
				}
				findings = append(findings, warning(counted(p.Messages, "dead letter")+" in "+p.Name, advice))
			}
		case p.Consumed && p.Consumers == 0:
			what := fmt.Sprintf("%s has no consumer, and a backlog of %s", p.Name, counted(p.Messages, "message"))
			findings = append(findings, warning(what, "start `worker run`"))
		default:
			backlog += p.Messages
		}
	}
	if len(findings) == 0 {
		findings = append(findings, fine("backlog: %s", counted(backlog, "message")))
	}
	return findings, nil
}
