package doctor

import "github.com/healz/worker/internal/bus/amqp"

// CheckTopology judges what was found on a broker.
func CheckTopology(survey amqp.Survey, r *Report) { checkTopology(survey, r) }
