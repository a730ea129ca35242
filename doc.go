// Package worker is an event-sourcing foundation: aggregates raise events, a store keeps them, a worker publishes each of them to
// a bus and hands it to the handlers of its type, which append further events.
//
// # A program
//
// A worker's program registers its handlers, and gets all commands, among them `run`, from package service:
//
//	func main() { service.Main(register) }
//
//	func register(app *worker.App) {
//		worker.On(app, "PatientRegistered", "welcome-patient", welcomePatient)
//	}
//
//	func welcomePatient(ctx context.Context, e worker.Event, p PatientRegistered) ([]worker.Event, error) {
//		if p.Name == "" {
//			return nil, worker.Permanent(errors.New("patient has no name"))
//		}
//		return worker.Follow(e, WelcomeMessageRequested{Name: p.Name})
//	}
//
// `go run . run` works on a SQLite file and a bus inside the process; with DATABASE_URL and RABBITMQ_URL set, on Postgres and
// RabbitMQ. Package service also runs a worker inside an existing program. A program that only appends opens a [Store].
//
// # What is promised
//
// An event that was appended is published, in the order of its aggregate, and reaches each handler at least once. What a handler
// does in the store happens exactly once: the events that it returns, the SQL that it registers ([InTx]) and the record that it
// has handled its event are one transaction. An event that fails for good becomes a dead letter, which can be inspected,
// corrected and replayed.
//
// # The parts
//
//   - [Event], [Data], [Origin], [Follow]: what happened, and what it inherits from its cause.
//   - [Aggregate], [Root], [Raise], [Repository]: what decides, and how it is loaded and saved.
//   - [App], [On], [Permanent], [InTx]: handlers.
//   - [OpenStore], [Store]: to append and to read.
//   - Package workertest: tests of aggregates and handlers, without a server.
//   - Package service: to run a worker.
package worker
