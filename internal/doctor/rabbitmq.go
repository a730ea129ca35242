package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/healz/worker/internal/bus/amqp"
	"github.com/healz/worker/internal/worker"
)

const (
	rabbitMQCheck   = "rabbitmq"
	publishingCheck = "publishing"
)

// probeTimeout is how long the broker may take to confirm a message of the doctor.
const probeTimeout = 5 * time.Second

func rabbitMQChecks(s worker.Settings) (broker, others []Check) {
	check := func(name string, run func(amqp.Survey, *Report)) Check {
		return Check{Name: name, Needs: rabbitMQCheck, Run: func(ctx context.Context, r *Report) error {
			survey, err := amqp.Inspect(ctx, s.AMQP)
			if err == nil {
				run(survey, r)
			}
			return err
		}}
	}
	broker = []Check{
		{Name: rabbitMQCheck, Needs: settingsCheck, Run: func(ctx context.Context, r *Report) error {
			survey, err := amqp.Inspect(ctx, s.AMQP)
			if err != nil {
				r.wrong(oneLine(err), adviceOnRabbitMQ(err))
			} else {
				r.fine("%s %s", survey.Product, survey.Version)
			}
			return nil
		}},
		{Name: publishingCheck, Needs: rabbitMQCheck, Run: func(ctx context.Context, r *Report) error {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			judgePublishing(amqp.ProbePublishing(ctx, s.AMQP), r)
			return nil
		}},
	}
	return broker, []Check{
		check("topology", checkTopology),
		{Name: "bindings", Needs: rabbitMQCheck, Run: func(ctx context.Context, r *Report) error {
			ctx, cancel := context.WithTimeout(ctx, inFlightTimeout)
			defer cancel()
			checkBindings(ctx, s.AMQP, r)
			return nil
		}},
		{Name: "policies", Needs: rabbitMQCheck, Run: func(ctx context.Context, r *Report) error {
			checkPolicies(ctx, s, r)
			return nil
		}},
		{Name: "queues", Needs: rabbitMQCheck, Causes: []string{publishingCheck}, Run: func(ctx context.Context, r *Report) error {
			survey, err := amqp.Inspect(ctx, s.AMQP)
			if err != nil {
				return err
			}
			asking, cancel := context.WithTimeout(ctx, inFlightTimeout)
			defer cancel()
			checkQueues(asking, survey, amqp.InFlight(asking, s.AMQP), s, r)
			return nil
		}},
	}
}

// checkBindings names what the workers' queue gets for nothing, and what it does not get.
func checkBindings(ctx context.Context, c amqp.Config, r *Report) {
	b, err := amqp.InspectBindings(ctx, c)
	if err != nil {
		r.unknown("the event types that "+c.Queue()+" gets are not known: "+oneLine(err), "see `rabbitmqctl list_bindings -p VHOST`")
		return
	}
	if len(b.Missing) > 0 {
		r.warn(c.Queue()+" does not get the events of "+strings.Join(b.Missing, ", "), "start `worker run`, which binds it, or bind it to the exchange")
	}
	if len(b.Unneeded) > 0 {
		r.warn(c.Queue()+" is bound to event types that this program does not need: "+strings.Join(b.Unneeded, ", "), amqp.AdviceOnUnneeded)
	}
	r.otherwise("%s gets the events that handlers are for", c.Queue())
}

// inFlightTimeout bounds the requests to the management API for the messages in flight.
const inFlightTimeout = 3 * time.Second

// judgePublishing says whether the broker takes messages.
func judgePublishing(err error, r *Report) {
	switch {
	case err == nil:
		r.fine("RabbitMQ takes messages")
	case errors.Is(err, amqp.ErrBlocked):
		r.wrong(oneLine(err)+"; no event is published meanwhile",
			"free memory or disk space of the broker, or raise its limits: see `rabbitmq-diagnostics alarms`")
	case errors.Is(err, amqp.ErrRefused):
		r.unknown("whether RabbitMQ takes messages is not known: the user may not publish to the default exchange",
			"see `rabbitmq-diagnostics alarms`")
	default:
		r.warn("whether RabbitMQ takes messages is not known: "+oneLine(err), "see `rabbitmq-diagnostics alarms` and the log of the broker")
	}
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

func checkTopology(survey amqp.Survey, r *Report) {
	var missing []string
	for _, p := range survey.Parts {
		switch {
		case p.Missing:
			missing = append(missing, p.Kind+" "+p.Name)
		case p.Err != nil && p.Optional:
			r.warn("the user lacks the right "+p.Right+": the worker uses what exists, and cannot restore or verify it",
				"grant it, or keep this in mind when something is deleted")
		case p.Err != nil && p.Right != "":
			r.wrong("the user lacks the right "+p.Right, adviceOnPart(p))
		case p.Err != nil:
			r.wrong(oneLine(p.Err), adviceOnPart(p))
		case p.OtherLimit:
			r.warn("quorum queue "+p.Name+" has another delivery-limit than the worker's: the broker may drop or dead-letter what "+
				"returns to it often, as when workers stop", amqp.AdviceOnLimits)
		}
	}
	if len(missing) > 0 {
		r.warn("there is no "+strings.Join(missing, ", no "), "start `worker run`, which declares it")
	}
	r.otherwise("exchanges, queues and permissions are correct")
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

// policiesTimeout leaves time to report that the management API does not answer.
const policiesTimeout = Timeout - 2*time.Second

// checkPolicies names what the broker may do to messages by itself. Whoever does not let the management API be asked is not
// warned each time.
func checkPolicies(ctx context.Context, s worker.Settings, r *Report) {
	ctx, cancel := context.WithTimeout(ctx, policiesTimeout)
	defer cancel()
	limits, err := amqp.QueueLimits(ctx, s.AMQP)
	for _, limit := range limits {
		r.warn(limit, amqp.AdviceOnLimits)
	}
	if err != nil {
		r.unknown(oneLine(err), "grant the user the tag management, set --rabbitmq-management-url, or see `rabbitmqctl list_queues -p VHOST "+
			"name type arguments policy operator_policy effective_policy_definition`")
	}
	r.otherwise("no limit by which the broker drops or dead-letters messages by itself")
}

func checkQueues(ctx context.Context, survey amqp.Survey, inFlight map[string]int, s worker.Settings, r *Report) {
	backlog, flying := 0, 0
	for _, p := range survey.Parts {
		switch {
		case p.Kind != "queue" || p.Missing:
		case p.Abandoned:
			r.warn(fmt.Sprintf("%s has no consumer and keeps all events, now %s", p.Name, counted(p.Messages, "message")),
				"start the workers that have no service name, or delete it if there are none and no other program needs it")
		case p.Failed:
			if p.Messages > 0 && p.Consumers == 0 { // a worker would ingest them at once
				advice := "start `worker run`, which ingests them"
				if !s.IngestDeadLetters {
					advice = "run `worker dlq ingest`"
				}
				r.warn(counted(p.Messages, "dead letter")+" in "+p.Name, advice)
			}
		case p.Consumed && p.Consumers == 0:
			r.warn(p.Name+" has no consumer, and a backlog of "+counted(p.Messages, "message"), "start `worker run`")
		default:
			backlog += p.Messages
			flying += inFlight[p.Name]
		}
		if p.Consumed && s.AMQP.Partitions == 0 && !s.AMQP.Competing {
			checkConsumers(ctx, p, survey.Alone, s, r)
		}
	}
	if !slices.ContainsFunc(*r, func(f Finding) bool { return f.Status != OK }) {
		text := "backlog: " + counted(backlog, "message") + " ready"
		switch {
		case inFlight == nil:
			text += "; those in flight are not known, as the management API does not say"
		case backlog == 0 && flying > 0:
			text = counted(flying, "message") + " in flight, none ready"
		default:
			text += fmt.Sprintf(", %d in flight", flying)
		}
		r.fine("%s", text)
	}
}

// checkConsumers checks that there is none besides the worker that has the queue alone.
func checkConsumers(ctx context.Context, p amqp.Part, alone bool, s worker.Settings, r *Report) {
	others := p.Consumers
	if alone && others > 0 {
		others--
	}
	if names, err := amqp.Strangers(ctx, s.AMQP); err == nil { // a stranger may consume in place of the worker
		others = max(others, len(names))
	}
	if others > 0 {
		r.warn(oneLine(amqp.SplitBetween(ctx, s.AMQP, others)), amqp.AdviceOnSplit)
	} else if alone {
		r.fine("one worker consumes %s, any others are on standby; set --partitions to share the load", p.Name)
	}
}
