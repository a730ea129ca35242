package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/worker"
)

const rabbitMQCheck = "rabbitmq"

// rabbitMQDoctor looks at a broker.
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

// adviceOnRabbitMQ is what to do about a connection that cannot be made.
func adviceOnRabbitMQ(err error) string {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case certificate:
		return "name the authority of the broker's certificate as cacertfile in RABBITMQ_URL"
	case errors.Is(err, amqp.ErrRefused):
		return "correct user, password and vhost in RABBITMQ_URL, or give the user rights: rabbitmqctl set_permissions"
	default:
		return "look whether it runs, and can be reached from here under that address"
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
		findings = append(findings, warning("there is no "+strings.Join(missing, ", no "), "start `worker run`, which makes it"))
	}
	if len(findings) == 0 {
		findings = append(findings, fine("exchanges, queues and the rights to declare, bind and publish are as they should be"))
	}
	return findings, nil
}

// adviceOnPart is what to do about a part that is not as it should be.
func adviceOnPart(p amqp.Part) string {
	switch {
	case strings.Contains(p.Err.Error(), "access"):
		return "give the user rights on the vhost: rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
	case p.Kind == "no exchange":
		return "run with the --partitions of the others, or leave them: --leave-partitions"
	case p.Kind == "queue":
		return "when it is empty, delete it and start `worker run`, which makes it anew; or correct the program that made it"
	default:
		return "delete it and start `worker run`, which makes it anew; or correct the program that made it"
	}
}

func (d rabbitMQDoctor) queues(ctx context.Context) ([]Finding, error) {
	survey, err := amqp.Inspect(ctx, d.settings.AMQP)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	waiting := 0
	for _, p := range survey.Parts {
		switch {
		case p.Kind != "queue" || p.Missing:
		case p.Failed:
			if p.Messages > 0 && p.Consumers == 0 { // which a worker would take into the table at once
				advice := "start `worker run`: it takes them into the store"
				if !d.settings.IngestDeadLetters {
					advice = "`worker dlq ingest` takes them into the store"
				}
				findings = append(findings, warning(counted(p.Messages, "dead letter", "dead letters")+" in "+p.Name, advice))
			}
		case p.Consumed && p.Consumers == 0:
			what := "nobody consumes " + p.Name + ", in which " + counted(p.Messages, "message waits", "messages wait")
			findings = append(findings, warning(what, "start `worker run`"))
		default:
			waiting += p.Messages
		}
	}
	if len(findings) == 0 {
		findings = append(findings, fine("%s to be handled", counted(waiting, "message waits", "messages wait")))
	}
	return findings, nil
}
