/*
 * The way of events from the store to their handlers, with dead letters and replay, on two workers. Anything may crash or
 * lose its connection between any two steps, FAULTS times in all. What it shows and leaves out is in
 * docs/decisions/0035-a-model-of-delivery.md. A macro such as ACK_EARLY builds in a fault that the check must find.
 */

#ifndef EVENTS
#define EVENTS 2 /* of one aggregate: their numbers are their versions, from 1 */
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef REPLAYS
#define REPLAYS 2
#endif
#define NOBODY  2

mtype = { none, waiting, replaying, sent, handled }; /* the states of a letter */

/* The database. */
byte  appended, position;
byte  holder = NOBODY, fence;     /* of the lease of the relay */
bool  inbox[EVENTS + 1];
byte  effects[EVENTS + 1];        /* of the handler, in the transaction of its record */
mtype letter[EVENTS + 1] = none;  /* the dead-letter table */
byte  release[EVENTS + 1];        /* the number of a letter's last replay */

/* The broker. A message stays in its queue until it is acked, so that a lost consumer leaves it at its place. */
chan queue  = [8] of { byte, bool }; /* event, and whether it is a replay */
chan failed = [8] of { byte };
byte consumer = 0, session;       /* the worker that consumes, and the number of its session */

/* The world. */
byte faults, replays;
bool bad[EVENTS + 1];             /* the handler fails for good on it */
bool dead[EVENTS + 1];            /* it has been a dead letter */

#define FAULT   atomic { faults < FAULTS -> faults++ }

/* A worker crashes, and starts again without what it had in memory. */
#define CRASH(restart) if :: FAULT; goto restart :: true fi

inline publish(e, replay) {
    do
    :: queue!e, replay -> break
    :: FAULT /* the broker loses it, and does not confirm it */
#ifdef UNCONFIRMED
       -> break
#endif
    od
}

/* Puts a letter, which is confirmed. */
inline put(e) {
    atomic { failed!e; dead[e] = true }
}

inline ack() {
    atomic {
        if
        :: consumer == me && session == mine -> queue?_, _
        :: else /* the broker has closed the session: it delivers the message again */
        fi
    }
}

proctype Writer() {
    do
    :: appended < EVENTS -> appended++
    :: else -> break
    od
}

/* Gives the lease to a worker: to any if nobody holds it, and at a fault while another believes that it does. */
proctype Lease() {
    do
    :: atomic { holder == NOBODY -> fence++; if :: holder = 0 :: holder = 1 fi }
    :: atomic { holder != NOBODY && faults < FAULTS -> faults++; holder = 1 - holder; fence++ }
    od
}

proctype Relay(byte me) {
    byte next, last, mine, e, number;
    goto leads;
crashed:
    atomic { if :: holder == me && fence == mine -> holder = NOBODY :: else fi }
leads:
    do
    :: atomic { holder == me && position < appended -> mine = fence; next = position + 1; last = appended }
#ifdef POSITION_EARLY
       position = last;
       CRASH(crashed);
#endif
#ifdef BATCH_REVERSED
       e = last;
       do
       :: e >= next -> publish(e, false); e--; CRASH(crashed)
       :: else -> break
       od;
#else
       do
       :: next <= last -> publish(next, false); next++; CRASH(crashed)
       :: else -> break
       od;
#endif
       atomic {
           if
#ifdef NO_FENCE
           :: true ->
#else
           :: holder == me && fence == mine ->
#endif
               assert(last >= position); /* it never moves back */
               position = last
           :: else
           fi;
           next = 0; last = 0
       }
    :: atomic {
           holder == me && (letter[1] == replaying || letter[EVENTS] == replaying) -> mine = fence;
           if :: letter[1] == replaying -> e = 1 :: letter[EVENTS] == replaying -> e = EVENTS fi;
           number = release[e]
       }
#ifdef SENT_EARLY
       letter[e] = sent;
       CRASH(crashed);
       publish(e, true)
#else
       publish(e, true);
       CRASH(crashed);
       atomic {
           if
#ifdef SENT_OF_ANOTHER
           :: letter[e] == replaying ->
#else
           :: letter[e] == replaying && release[e] == number ->
#endif
               letter[e] = sent
           :: else
           fi;
           e = 0; number = 0
       }
#endif
    od
}

/* Moves the consumer's place to either worker: a connection is lost, or a process is frozen and goes on later. */
proctype Network() {
    do
    :: atomic {
           faults < FAULTS -> faults++;
           session++;
           if :: consumer = 0 :: consumer = 1 fi;
#ifdef REQUEUED_BEHIND
           if :: nempty(queue) -> byte e; bool replay; queue?e, replay; queue!e, replay :: empty(queue) fi
#endif
       }
    od
}

/* Handles one message of the aggregate at a time. */
proctype Consumer(byte me) {
    byte e, mine, k;
    bool replay, known;
    goto consumes;
crashed:
    atomic { if :: consumer == me -> session++; consumer = 1 - me :: else fi }
consumes:
    do
    :: atomic { consumer == me && nempty(queue) -> queue?<e, replay>; mine = session }
#ifdef ACK_EARLY
       ack();
       CRASH(crashed);
#endif
       known = inbox[e];
       if
       :: known
       :: !known && bad[e] ->
#ifdef ACK_BEFORE_LETTER
           ack();
           CRASH(crashed);
#endif
           put(e)
       :: !known && !bad[e] ->
           atomic { /* one transaction */
#ifdef NO_INBOX
               if :: true ->
#else
               if :: !inbox[e] ->
#endif
                   k = 1;
                   do
                   :: k < e -> assert(effects[k] > 0 || dead[k]); k++ /* nothing overtakes */
                   :: else -> break
                   od;
                   k = 0;
                   inbox[e] = true;
                   effects[e]++;
                   assert(effects[e] == 1)
               :: else
               fi;
               known = true
           }
       fi;
       CRASH(crashed);
#ifdef ACK_BEFORE_SETTLED
       ack();
       CRASH(crashed);
#endif
       atomic { if :: replay && known && letter[e] != none -> letter[e] = handled :: else fi }
       CRASH(crashed);
       ack();
       atomic { e = 0; replay = false; known = false; mine = 0 }
    od
}

/* Ingests the letters of the failed queue. */
proctype Ingester() {
    byte e;
consumes:
    do
    :: failed?<e>;
#ifdef INGEST_ACK_EARLY
       failed?_;
       CRASH(consumes);
#endif
       letter[e] = waiting;
       e = 0;
       CRASH(consumes);
#ifndef INGEST_ACK_EARLY
       failed?_
#endif
    od
}

/* Replays letters, mended or not. */
proctype Operator() {
    byte e;
    do
    :: atomic {
           replays < REPLAYS && (letter[1] == waiting || letter[EVENTS] == waiting) -> replays++;
           if :: letter[1] == waiting -> e = 1 :: letter[EVENTS] == waiting -> e = EVENTS fi;
           if :: bad[e] = false :: true fi;
           letter[e] = replaying;
           release[e] = replays
       }
    od
}

/* When nothing can happen any more, each event has had its effect or rests as a dead letter, and no letter is forgotten. */
proctype Judge() {
    byte e = 1;
    timeout ->
    assert(position == appended && empty(queue) && empty(failed));
    do
    :: e <= EVENTS ->
       assert(effects[e] == 1 || letter[e] == waiting);
       assert(letter[e] != replaying && letter[e] != sent);
       e++
    :: else -> break
    od
}

init {
    atomic {
        if :: bad[1] = true :: bad[EVENTS] = true :: true fi;
        run Writer(); run Lease(); run Network();
        run Relay(0); run Relay(1); run Consumer(0); run Consumer(1);
        run Ingester(); run Operator(); run Judge()
    }
}
