package doctor

import "github.com/healz/worker/internal/bus/amqp"

// CheckTopology judges what was found on a broker.
func CheckTopology(survey amqp.Survey, r *Report) { checkTopology(survey, r) }

// JudgePublishing judges the result of a probe.
func JudgePublishing(err error, r *Report) { judgePublishing(err, r) }
