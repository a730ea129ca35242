package mutants

// mutant is one fault: a text of a source file that is replaced by another, and the tests that must fail then.
type mutant struct {
	name     string
	file     string
	from, to string
	pkg, run string
}

// all are faults by which events would be lost, doubled, reordered or mixed, or take memory without bound.
func all() []mutant {
	return []mutant{
		{
			name: "a message is acked when it is delivered to the router, before it is handled",
			file: "internal/bus/amqp/subscriber.go",
			from: "\t\t\ts.tasks.Go(func() { s.await(next, m) })\n",
			to:   "\t\t\tm.Ack()\n\t\t\ts.tasks.Go(func() { s.await(next, m) })\n",
			pkg:  "./internal/bus/amqp", run: "TestSubscriber|TestNothingIsLostOverKilledConnections",
		},
		{
			name: "two messages of an aggregate are in flight at once",
			file: "internal/bus/amqp/subscriber.go",
			from: "\t\tkey = bus.KeyOf(m)\n", to: "\t\tkey = m.UUID\n",
			pkg: "./internal/bus/amqp", run: "TestSubscriberKeepsTheOrderOfEachAggregate",
		},
		{
			name: "a nacked message goes behind the later ones of its aggregate",
			file: "internal/bus/amqp/subscriber.go",
			from: "\t\ts.queued.Again(d.key, d)\n\t\treturn\n", to: "\t\ts.queued.Done(d.key)\n\t\ts.queued.Add(d.key, d)\n\t\treturn\n",
			pkg: "./internal/bus/amqp", run: "TestSubscriberKeepsTheOrderOverNacks",
		},
		{
			name: "a batch counts as published before its confirms",
			file: "internal/bus/amqp/publisher.go",
			from: "\t\t\treceive = nil\n", to: "",
			pkg: "./internal/bus/amqp", run: "TestPublish",
		},
		{
			name: "a message that reaches no queue counts as published",
			file: "internal/bus/amqp/publisher.go",
			from: "o.exchange, o.key, !o.unwanted, false, o.message", to: "o.exchange, o.key, false, false, o.message",
			pkg: "./internal/bus/amqp", run: "TestPublishSaysWhatWasNotTaken",
		},
		{
			name: "letters are acked before they are in the table",
			file: "internal/bus/amqp/intake.go",
			from: "\t\tif err = t.write(ctx, letters, t.table.Ingest); err == nil {\n\t\t\treturn t.settle(ctx, letters)\n\t\t}\n",
			to:   "\t\tif err = t.settle(ctx, letters); err == nil {\n\t\t\treturn t.write(ctx, letters, t.table.Ingest)\n\t\t}\n",
			pkg:  "./internal/bus/amqp", run: "TestIngest",
		},
		{
			name: "a letter that comes twice is two letters",
			file: "internal/deadletter/ingest.go",
			from: "\tcase a.Event.ID != uuid.Nil:\n", to: "\tcase false:\n",
			pkg: "./internal/deadletter", run: "Ingest",
		},
		{
			name: "the position moves before the batch is published",
			file: "internal/relay/relay.go",
			from: "\topen, published := r.publish(held, bodies)\n",
			to:   "\t_ = r.move(ctx, batch.Position)\n\topen, published := r.publish(held, bodies)\n",
			pkg:  "./internal/relay", run: "TestRelayGivesUpTheBatchInHandWhenTheGracePeriodEnds",
		},
		{
			name: "the position moves behind what is in flight in the process",
			file: "internal/relay/relay.go",
			from: "\t\tf.open = unconfirmed(f.open)\n", to: "\t\tf.open = nil\n",
			pkg: "./internal/relay", run: "TestWhatIsInFlightComesAgainAfterAStop",
		},
		{
			name: "a former leader can move the position",
			file: "internal/store/postgres/statements/move.sql",
			from: " AND holder = $3 AND fence = $4 FOR SHARE", to: " AND ($3, $4) IS NOT NULL FOR SHARE",
			pkg: "./internal/store/postgres", run: "Tail|Lease",
		},
		{
			name: "the tail passes over what running transactions can still commit",
			file: "internal/store/postgres/statements/tail.sql",
			from: "        AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())\n", to: "",
			pkg: "./internal/store/postgres", run: "TestLateCommitIsNotSkipped",
		},
		{
			name: "versions reach the bus in the order of their transactions",
			file: "internal/store/postgres/statements/tail.sql",
			from: "    ORDER BY turn, aggregate_version\n", to: "    ORDER BY place NULLS LAST\n",
			pkg: "./internal/store/postgres", run: "Order",
		},
		{
			name: "a handler runs again on a message that comes twice",
			file: "internal/handlers/dispatch.go",
			from: "if slices.Contains(handled, h.name) {", to: "if slices.Contains(handled, \"\") {",
			pkg: "./internal/handlers", run: "TestHandlersRunInOrderAndTakeEffectOnce",
		},
		{
			name: "what a second handling returns is appended",
			file: "internal/store/postgres/statements/write.sql",
			from: "    FROM batches\n    WHERE unit NOT IN (SELECT unit FROM refused)\n", to: "    FROM batches\n",
			pkg: "./internal/store/postgres", run: "TestStore/Inbox",
		},
		{
			name: "an event of another tenant continues an aggregate",
			file: "internal/store/postgres/statements/write.sql",
			from: " AND tenant_id = first.tenant_id\n", to: "\n",
			pkg: "./internal/store/postgres", run: "TestStore/Append",
		},
		{
			name: "a failed message is acked though no queue has its letter",
			file: "internal/middleware/poison_queue.go",
			from: "\t\ttimer := time.NewTimer(waits.NextBackOff())\n",
			to:   "\t\tif err != nil {\n\t\t\treturn wait, nil\n\t\t}\n\t\ttimer := time.NewTimer(waits.NextBackOff())\n",
			pkg:  "./internal/middleware", run: "TestPoisonQueue",
		},
		{
			name: "a replay sends a letter to every handler",
			file: "internal/handlers/registry.go",
			from: "wanted == \"\" || ", to: "true || ",
			pkg: "./internal/handlers", run: "Replay",
		},
		{
			name: "the consumer holds 256 MiB of bodies",
			file: "internal/bus/amqp/bytelimit.go",
			from: "maxReceivedBytes = 64 << 20", to: "maxReceivedBytes = 256 << 20",
			pkg: "./internal/bus/amqp", run: "TestMemoryUnderLargeMessages",
		},
		{
			name: "a read of Postgres is not bounded by bytes",
			file: "internal/store/postgres/read.go",
			from: "maxBytes > 0 && size > maxBytes && len(list) > 0", to: "false",
			pkg: "./internal/store/postgres", run: "TestMemoryOfReadingLargeEvents",
		},
		{
			name: "a read of SQLite is not bounded by bytes",
			file: "internal/store/sqlite/read.go",
			from: "maxBytes > 0 && size > maxBytes && len(found) > 0", to: "false",
			pkg: "./internal/store/sqlite", run: "TestMemoryOfReadingLargeEvents",
		},
		{
			name: "pages have 512 MiB",
			file: "internal/store/store.go",
			from: "PageBytes = 8 << 20", to: "PageBytes = 512 << 20",
			pkg: "./internal/store/sqlite", run: "TestMemoryOfReadingLargeEvents",
		},
		{
			name: "a batch of append is bounded by its lines only",
			file: "internal/intake/intake.go",
			from: "len(batch) > 0 && bytes+d.bytes > store.PageBytes && ", to: "false && ",
			pkg: "./internal/intake", run: "TestBatchesAreBoundedByBytes",
		},
	}
}
