/*
 * The freeze protocol: workers, coordinators, Redis, the clock and what may go wrong.
 *
 * Each d_step is one act that nothing can come between: one Redis script, one decision under the member's lock, one
 * durable write. Durations are in ticks of one heartbeat. README.md says what is modelled, and how, and what is not.
 */

#ifndef WORKERS
#define WORKERS 2           /* 1 or 2; the second is not started yet and may boot at any moment */
#endif
#ifndef COORDINATORS
#define COORDINATORS 1      /* 1 or 2; coordinator c holds the token c + 1 */
#endif
#ifndef RESTORER
#define RESTORER 0          /* the token of the coordinator that restores; 0: all create */
#endif
#ifndef FAULTS
#define FAULTS 1            /* how many faults of any kind together */
#endif
#ifndef STOPS
#define STOPS 1             /* how many workers may be told to stop */
#endif
#ifndef BOOTS
#define BOOTS 2             /* how many starts of workers may still happen */
#endif
#define LEASE 2             /* ticks a lease lasts when taken or renewed */
#define LICENCE 2           /* a worker that slept as long starts nothing before it has looked */
#ifndef TRUST
#define TRUST 3             /* how old a roster must be: a licence that is extended once, just before a sleep */
#endif

/* Seeded mistakes. Each is 0 in the true model. */
#ifndef ROSTER_BEFORE_LEASE
#define ROSTER_BEFORE_LEASE 0
#endif
#ifndef BLIND_BOOT
#define BLIND_BOOT 0
#endif
#ifndef NO_EXPIRY_AT_END
#define NO_EXPIRY_AT_END 0
#endif
#ifndef THAW_WITHOUT_TOKEN
#define THAW_WITHOUT_TOKEN 0
#endif
#ifndef RESTORE_FAILS_OPEN
#define RESTORE_FAILS_OPEN 0
#endif
#ifndef RECLOSE_FORGIVEN
#define RECLOSE_FORGIVEN 0
#endif
#ifndef LATE_NOT_LOOKED_AT
#define LATE_NOT_LOOKED_AT 0
#endif
#ifndef NO_LICENCE
#define NO_LICENCE 0
#endif
#ifndef AGE_UNCHECKED
#define AGE_UNCHECKED 0
#endif
#ifndef NO_LOOK_AFTER_CLOSING
#define NO_LOOK_AFTER_CLOSING 0
#endif
#ifndef JOURNAL_UNREAD
#define JOURNAL_UNREAD 0
#endif
#ifndef MAIN_DEAD_IS_GONE
#define MAIN_DEAD_IS_GONE 0
#endif
#ifndef RENEWAL_CREATES
#define RENEWAL_CREATES 0
#endif
#ifndef PROMISE_AFTER_ANSWER
#define PROMISE_AFTER_ANSWER 0
#endif
#ifndef AGE_CHECKED_TOO_EARLY
#define AGE_CHECKED_TOO_EARLY 0
#endif
#ifndef LAST_MOMENT_COUNTS
#define LAST_MOMENT_COUNTS 0
#endif
#ifndef STOP_TAKES_ACK_AWAY
#define STOP_TAKES_ACK_AWAY 0
#endif
#ifndef SUCCESSOR_RELEASES
#define SUCCESSOR_RELEASES 0
#endif
/* Not a mistake: what no freeze can see, see README.md. */
#ifndef UNSEEN_WORK
#define UNSEEN_WORK 0
#endif
/* Ends that must be reachable, or the properties hold of nothing. */
#ifndef REACH
#define REACH 0
#endif
#define SEALED 1
#define RESTORED 2
#define UNDONE 3
#define LATE_BOOT_SEALED 4
#define OPENED_BY_EXPIRY 5
#define REACHED(what) assert(REACH != what)

/* life of a worker */
#define OFF 0
#define GATED 1             /* passed the gate, not in the roster yet */
#define BOOTING 2           /* in the roster, consumes nothing yet */
#define RUNNING 3
#define DEAD 4              /* main process killed; a pool child may work on */
/* where a look stands */
#define IDLE 0
#define ANSWERED 1          /* the heartbeat script ran; its answer is not acted on yet */
#define ACKING 2            /* closed; the ack is not sent yet */

typedef Worker {
  unsigned life : 3;
  unsigned look : 2;
  unsigned age : 2;         /* since the process was last known to be awake */
  unsigned asked : 2;       /* since the heartbeat script was asked */
  unsigned freeze : 2;      /* token of the freeze it is in, 0 if none */
  unsigned until : 2;       /* until it opens by itself */
  unsigned seen : 2;        /* answer: token of the lease, 0 if none … */
  unsigned seen_left : 2;   /* … what it had left, as told */
  unsigned promise : 2;     /* … and what is left of that by now, on Redis's clock */
  unsigned broken : 2;      /* bit per token: opened by expiry under it */
  unsigned cause : 2;       /* ghost: token for which the barrier is closed */
  bit seen_open;            /* answer: a restore is closing or switching */
  bit seen_restored;
  bit seen_thawed;
  bit seen_reborn;
  bit reborn;               /* Redis was wiped since it last looked */
  bit closed;
  bit busy;                 /* a task of it runs */
  bit fresh;                /* looked, or tried to, in this tick */
  bit generation;
  bit left;                 /* will exit 75; what had started may end, and it goes on to look until then */
  bit asleep;
  bit cut;
  bit owed;                 /* ghost: acked a restore's freeze that nobody thawed yet */
  bit over;                 /* ghost: was closed without a lease for a whole tick, awake */
  bit booted;               /* ghost: began after the start */
  /* in Redis */
  bit listed;
  unsigned ack : 2;         /* token it acked, 0 if none */
  unsigned ack_left : 2;
  bit ack_drained;
  bit ack_broken;
};

typedef Coordinator {
  unsigned at : 5;
  unsigned expected : 2;    /* bit per worker: in the roster as it read it */
  unsigned gone : 2;        /* bit per worker: proven gone before the window */
  bit window;
  bit moved;                /* ghost: a task made progress inside the window */
  bit mine;                 /* ghost: the lease was its own without a gap */
  unsigned term : 2;        /* ghost: what its lease would have left, had nobody ended it */
};
/* where a coordinator stands */
#define NOTHING 0
#define PREPARED 1
#define TAKEN 2
#define CALLED 3
#define DRAINED 4
#define CAPTURING 5
#define CAPTURED 6
#define CONFIRMED 7
#define GIVEN_UP 8
#define ENDED 9
#define JOURNAL_CLOSING 10
#define MARKED_CLOSING 11
#define DISPLACED 12
#define SWITCHING 13
#define SWITCHED 14
#define JOURNAL_DONE 15
#define MARKED_RESTORED 16

Worker w[WORKERS];
Coordinator c[COORDINATORS];

/* Redis, besides what stands with each worker */
unsigned lease : 2;
unsigned left : 2;
unsigned born : 2 = TRUST;  /* ticks since its start or wipe, as far as it matters */
bit mark;                   /* the journal's mark: closing or switching */
bit mark_restored;
unsigned thawed : 2;        /* bit per token */
bit spoilt;                 /* an ack of this lease is broken, though its worker left the roster in order */
/* the vault and the witness */
bit journal;                /* a restore is open … */
bit journal_shut;           /* … and closing or switching */
bit live;                   /* generation of the live pair */
bit moving;                 /* ghost: between the first displacement and the end of the switch */
unsigned dropped : 2;       /* ghost, bit per token: thawed by its holder */

unsigned faults : 2 = FAULTS;
unsigned boots : 2 = BOOTS;
unsigned stops : 1 = STOPS;

#define BIT(token) (1 << ((token) - 1))
#define RESTORES(token) (RESTORER && (token) == RESTORER && !RESTORE_FAILS_OPEN)
#define IS_RESTORE(token) (RESTORER && (token) == RESTORER)
/* The lease as a heartbeat sees it: in its last moment it exists and has nothing left. */
#define VISIBLE (left > 0 -> lease : 0)
#define AWAKE(i) (!w[i].asleep)
#define LICENSED(i) (NO_LICENCE || w[i].age < LICENCE)
/* generation_stands: the journal is not shut, and no restore came since the gate */
#define STANDS(i) (!journal_shut && w[i].generation == live)

/* ---------------------------------------------------------------- properties */

inline progress() {         /* a task makes progress now: I2 */
  c[0].moved = c[0].moved | c[0].window;
#if COORDINATORS > 1
  c[1].moved = c[1].moved | c[1].window;
#endif
}

inline start_task(i) {
  assert(!moving && w[i].generation == live);                              /* I7 */
  w[i].busy = 1;
  progress()
}

inline open_barrier(i) {
  w[i].cause = 0; w[i].over = 0;
  if
  :: w[i].left
  :: else -> assert(!w[i].owed); w[i].closed = 0                           /* I3, of a restore */
  fi
}

inline lease_lost() {       /* whoever held the lease does not any more */
  c[0].mine = 0;
#if COORDINATORS > 1
  c[1].mine = 0;
#endif
}

/* ------------------------------------------------------------------- workers */

inline forget_answer(i) {
  w[i].seen = 0; w[i].seen_left = 0; w[i].promise = 0; w[i].asked = 0;
  w[i].seen_open = 0; w[i].seen_restored = 0; w[i].seen_thawed = 0; w[i].seen_reborn = 0
}

inline clear(i) {           /* nothing of this start of the process is left, its entry in Redis apart */
  w[i].look = IDLE; w[i].age = 0; w[i].freeze = 0; w[i].until = 0; w[i].broken = 0; w[i].cause = 0;
  w[i].reborn = 0; w[i].closed = 0; w[i].fresh = 0; w[i].generation = 0; w[i].left = 0; w[i].asleep = 0;
  w[i].cut = 0; w[i].owed = 0; w[i].over = 0; w[i].booted = 0;
  forget_answer(i)
}

inline strike(i) {          /* its entry is gone from the roster */
  w[i].listed = 0; w[i].ack = 0; w[i].ack_left = 0; w[i].ack_drained = 0; w[i].ack_broken = 0
}

inline end_worker(i) {      /* an end in order: one more look, then Member.end */
  if
  :: w[i].cut && w[i].listed -> clear(i); w[i].life = DEAD
  :: else ->
     spoilt = spoilt | (!STOP_TAKES_ACK_AWAY && lease && (w[i].broken & BIT(lease)));
     clear(i); strike(i); w[i].life = OFF
  fi
}

inline refresh(i) {         /* Member.tick: awake; ends no sleep that was too long */
  if :: w[i].age < LICENCE -> w[i].age = 0 :: else fi
}

inline looked(i) {          /* a look has ended well */
  w[i].look = IDLE; w[i].fresh = 1;
  if :: w[i].asked < w[i].age -> w[i].age = w[i].asked :: else fi;
  forget_answer(i);
  if
  :: w[i].life == GATED && (STANDS(i) || JOURNAL_UNREAD) -> w[i].life = (BLIND_BOOT -> RUNNING : BOOTING)
  :: w[i].life == GATED && !(STANDS(i) || JOURNAL_UNREAD) -> end_worker(i)
  :: w[i].life == BOOTING -> w[i].life = RUNNING
  :: else
  fi
}

inline leave(i) {           /* Member._go: exit 75 as soon as what runs has ended */
  if
  :: w[i].life == RUNNING -> w[i].left = 1; w[i].closed = 1; looked(i)
  :: else -> end_worker(i)
  fi
}

inline beat(i) {            /* roster._BEAT: registers, then reads the lease */
  refresh(i);
  w[i].listed = 1; w[i].asked = 0;
  w[i].seen = (BLIND_BOOT && w[i].life == GATED -> 0 : VISIBLE);
  w[i].seen_left = (w[i].seen -> left : 0); w[i].promise = w[i].seen_left;
  w[i].seen_open = mark; w[i].seen_restored = mark_restored;
  w[i].seen_thawed = (w[i].freeze && (thawed & BIT(w[i].freeze)));
  w[i].seen_reborn = w[i].reborn && w[i].life != GATED; w[i].reborn = 0;
  w[i].look = ANSWERED
}

inline close_barrier(i) {
  w[i].closed = 1; w[i].cause = w[i].seen; w[i].over = 0;
  if                        /* what it will honour is set before it acks */
  :: !PROMISE_AFTER_ANSWER -> w[i].freeze = w[i].seen; w[i].until = w[i].seen_left
  :: PROMISE_AFTER_ANSWER
  fi;
  w[i].look = ACKING
}

#define OWN_LEASE(i) (w[i].seen && (SUCCESSOR_RELEASES || w[i].seen == w[i].freeze))
#define WAITS(i) (RESTORES(w[i].freeze) && OWN_LEASE(i))

inline act(i) {             /* Member.look, after the answer */
  if
  :: w[i].seen_open && !JOURNAL_UNREAD && !WAITS(i) -> leave(i)
  :: !(w[i].seen_open && !JOURNAL_UNREAD && !WAITS(i)) ->
     if
     :: (w[i].seen_restored && !w[i].generation) || (w[i].seen_reborn && !STANDS(i)) -> leave(i)
     :: !((w[i].seen_restored && !w[i].generation) || (w[i].seen_reborn && !STANDS(i))) ->
        if
        :: RESTORES(w[i].freeze) && !OWN_LEASE(i) ->
           if
           :: w[i].seen_thawed && STANDS(i) ->
              w[i].owed = 0; w[i].freeze = 0; w[i].until = 0;
              if
              :: w[i].seen -> close_barrier(i)
              :: else -> open_barrier(i); looked(i)
              fi
           :: else -> leave(i)
           fi
        :: else ->
           if
           :: w[i].seen -> close_barrier(i)
           :: else -> w[i].freeze = 0; w[i].until = 0; open_barrier(i); looked(i)
           fi
        fi
     fi
  fi
}

inline write_ack(i) {       /* roster._ACK, as far as Redis is concerned */
  w[i].ack = w[i].seen;
  w[i].ack_left = (PROMISE_AFTER_ANSWER -> left : w[i].promise);
  w[i].ack_drained = !w[i].busy;
  w[i].ack_broken = ((w[i].broken & BIT(w[i].seen)) != 0);
  if :: IS_RESTORE(w[i].seen) -> w[i].owed = !(dropped & BIT(w[i].seen)) :: else fi
}

inline send_ack(i) {        /* Member._ack, with its answer */
  if
  :: lease == w[i].seen ->
     write_ack(i);
     if
     :: PROMISE_AFTER_ANSWER && left > 0 -> w[i].freeze = w[i].seen; w[i].until = left
     :: PROMISE_AFTER_ANSWER && left == 0 && w[i].freeze == 0 -> open_barrier(i)
     :: else
     fi
  :: lease != w[i].seen ->
     if :: PROMISE_AFTER_ANSWER && w[i].freeze == 0 -> open_barrier(i) :: else fi
  fi;
  looked(i)
}

inline look_failed(i) {     /* Redis cannot be reached: tick, then Member.overdue */
  refresh(i);
  w[i].look = IDLE; w[i].fresh = 1;
  forget_answer(i);
  if
  :: w[i].life == GATED -> end_worker(i)
  :: w[i].life != GATED ->
     if :: w[i].life == BOOTING -> w[i].life = RUNNING; w[i].closed = 1 :: else fi;
     if
     :: w[i].freeze == 0
     :: w[i].freeze != 0 && RESTORES(w[i].freeze) && w[i].until == 0 -> leave(i)
     :: w[i].freeze != 0 && !RESTORES(w[i].freeze) && w[i].until == 0 ->
        if :: RECLOSE_FORGIVEN :: else -> w[i].broken = w[i].broken | BIT(w[i].freeze) fi;
        REACHED(OPENED_BY_EXPIRY);
        w[i].freeze = 0; open_barrier(i)
     :: else
     fi
  fi
}

/* A bell makes a worker look at once; here it may look whenever that would tell it something. */
#define NEWS(i) (VISIBLE != w[i].freeze || (w[i].freeze && (w[i].ack != w[i].freeze || w[i].ack_left < left \
  || w[i].ack_drained == w[i].busy)) || (mark && !RESTORES(w[i].freeze)) || w[i].reborn || w[i].age >= LICENCE)

proctype A_worker(byte i) {
end:
  do
  :: d_step { w[i].life == OFF && boots > 0 && (!journal_shut || JOURNAL_UNREAD) ->                      /* the gate */
       boots--; w[i].life = GATED; w[i].generation = live; w[i].booted = 1; w[i].age = 0 }
  :: d_step { (AWAKE(i) && !w[i].cut && w[i].look == IDLE
              && (w[i].life == GATED || w[i].life == BOOTING || (w[i].life == RUNNING && (!w[i].fresh || NEWS(i))))) ->
       beat(i) }
  :: d_step { AWAKE(i) && w[i].look == ANSWERED -> act(i) }
  :: d_step { AWAKE(i) && w[i].look == ACKING && !w[i].cut -> send_ack(i) }
  :: d_step { (AWAKE(i) && w[i].cut && (w[i].look == ACKING || (w[i].look == IDLE && !w[i].fresh
              && (w[i].life == GATED || w[i].life == BOOTING || w[i].life == RUNNING)))) ->
       look_failed(i) }
  :: d_step { (AWAKE(i) && w[i].cut && w[i].life == RUNNING && w[i].look == IDLE && w[i].fresh
              && RESTORES(w[i].freeze) && !w[i].left) -> leave(i) }                       /* the second failed look */
  :: d_step { w[i].life == RUNNING && AWAKE(i) && !w[i].closed && !w[i].busy && LICENSED(i) -> start_task(i) }
  :: d_step { w[i].busy && AWAKE(i) -> w[i].busy = 0; progress() }
  :: d_step { stops > 0 && w[i].life == RUNNING && AWAKE(i) && !w[i].left && w[i].look == IDLE ->
       stops--; w[i].left = 1; w[i].closed = 1 }                           /* SIGTERM: a warm shutdown */
  :: d_step { w[i].left && AWAKE(i) && !w[i].busy && w[i].look == IDLE -> end_worker(i) }
  od
}

/* -------------------------------------------------------------- coordinators */

#define TOKEN (k + 1)
#define IN(mask, i) (((mask) >> (i)) & 1)
#define PROVEN_GONE(i) (w[i].life == DEAD && (MAIN_DEAD_IS_GONE || !w[i].busy))
#define WAITED_FOR(i) (IN(c[k].expected, i) && !IN(c[k].gone, i))
#define HAS_ACKED(i) (!WAITED_FOR(i) || (w[i].ack == TOKEN && w[i].ack_drained))
#define LOOKED_AT(i) ((LATE_NOT_LOOKED_AT -> IN(c[k].expected, i) : w[i].listed) && !IN(c[k].gone, i))
#define GOOD(i) (!LOOKED_AT(i) || (w[i].ack == TOKEN && w[i].ack_drained && !w[i].ack_broken \
  && (NO_EXPIRY_AT_END || w[i].ack_left > 0)))
#if WORKERS > 1
#define ALL_ACKED (HAS_ACKED(0) && HAS_ACKED(1))
#define ALL_GOOD (GOOD(0) && GOOD(1))
#else
#define ALL_ACKED HAS_ACKED(0)
#define ALL_GOOD GOOD(0)
#endif
#define OLD_ENOUGH (AGE_UNCHECKED || born >= TRUST)
#define CONFIRMS (RENEWABLE && OLD_ENOUGH && ALL_GOOD && !spoilt)
#define RENEWABLE (lease == TOKEN && (left > 0 || LAST_MOMENT_COUNTS))

inline read_roster() {
  c[k].expected = w[0].listed; c[k].gone = c[k].gone | (w[0].listed && PROVEN_GONE(0));
#if WORKERS > 1
  c[k].expected = c[k].expected | (w[1].listed << 1);
  c[k].gone = c[k].gone | ((w[1].listed && PROVEN_GONE(1)) << 1);
#endif
}

inline take() {             /* lease.TAKE */
  lease = TOKEN; left = LEASE; spoilt = 0; c[k].term = LEASE; c[k].mine = 1
}

inline drop() {             /* lease.DROP */
  if
  :: lease && (lease == TOKEN || THAW_WITHOUT_TOKEN) ->
     assert(lease == TOKEN);                                              /* I8 */
     thawed = thawed | BIT(TOKEN); dropped = dropped | BIT(TOKEN); lease = 0; left = 0; spoilt = 0;
     if :: IS_RESTORE(TOKEN) -> w[0].owed = 0; w[WORKERS - 1].owed = 0 :: else fi
  :: else
  fi;
  c[k].mine = 0; c[k].window = 0
}

inline begin_window() {
  c[k].window = 1;
  c[k].moved = (w[0].busy && AWAKE(0)) || (w[WORKERS - 1].busy && AWAKE(WORKERS - 1))
}

inline end_coordinator() {
  c[k].at = ENDED; c[k].expected = 0; c[k].gone = 0; c[k].moved = 0
}

inline undo() {             /* _Work.undo: the old pair is back, marks and journal are gone */
  live = 0; moving = 0; mark = 0; journal_shut = 0; journal = 0; c[k].at = GIVEN_UP;
  REACHED(UNDONE)
}

proctype A_coordinator(byte k) {
end:
  do
  /* prepare. A create refuses while a restore is open; there is one restore. */
  :: d_step { c[k].at == NOTHING && !journal && (!AGE_CHECKED_TOO_EARLY || born >= TRUST) ->
       if :: IS_RESTORE(TOKEN) -> journal = 1 :: else fi;
       if :: ROSTER_BEFORE_LEASE -> read_roster() :: else fi;
       c[k].at = PREPARED }
  /* freeze */
  :: d_step { c[k].at == PREPARED && !lease -> take();
       c[k].at = (ROSTER_BEFORE_LEASE -> CALLED : TAKEN) }
  :: d_step { c[k].at == TAKEN && (OLD_ENOUGH || AGE_CHECKED_TOO_EARLY) -> read_roster(); c[k].at = CALLED }
  :: d_step { c[k].at == CALLED && !ALL_ACKED && !ROSTER_BEFORE_LEASE -> c[k].at = TAKEN }
  :: d_step { c[k].at == CALLED && ALL_ACKED && RENEWABLE -> left = LEASE; c[k].term = LEASE; c[k].at = DRAINED }
  /* renewal, by a thread of its own, whenever it comes to it */
  :: d_step { (c[k].at >= TAKEN && c[k].at != GIVEN_UP && c[k].at != ENDED && c[k].at != CONFIRMED
              && RENEWABLE && left < LEASE) -> left = LEASE; c[k].term = LEASE }
  :: d_step { RENEWAL_CREATES && c[k].at >= TAKEN && c[k].at <= CAPTURED && !lease ->
       lease = TOKEN; left = LEASE; assert(c[k].mine) }                     /* I8 */
  /* a checkpoint */
  :: d_step { c[k].at == DRAINED && !IS_RESTORE(TOKEN) -> begin_window(); c[k].at = CAPTURING }
  :: d_step { c[k].at == CAPTURING -> c[k].window = 0; c[k].at = CAPTURED }
  :: d_step { c[k].at == CAPTURED && !CONFIRMS -> c[k].at = GIVEN_UP }
  :: d_step { c[k].at == CAPTURED && CONFIRMS ->
       assert(!c[k].moved);                                               /* I2 */
       assert(c[k].mine);                                                 /* I8 */
       REACHED(SEALED);
       if :: w[WORKERS - 1].booted && w[WORKERS - 1].listed && !IN(c[k].expected, WORKERS - 1) -> REACHED(LATE_BOOT_SEALED)
          :: else fi;
       c[k].at = CONFIRMED }
  :: d_step { c[k].at == CONFIRMED -> drop(); end_coordinator() }
  /* a restore */
  :: d_step { c[k].at == DRAINED && IS_RESTORE(TOKEN) -> journal_shut = 1; c[k].at = JOURNAL_CLOSING }
  :: d_step { c[k].at == JOURNAL_CLOSING -> mark = 1; c[k].at = MARKED_CLOSING }
  :: d_step { c[k].at == MARKED_CLOSING && (CONFIRMS || NO_LOOK_AFTER_CLOSING) ->
       if :: NO_LOOK_AFTER_CLOSING :: else -> assert(c[k].mine) fi;         /* I8 */
       assert(NO_LOOK_AFTER_CLOSING || !(w[0].busy && AWAKE(0) || w[WORKERS - 1].busy && AWAKE(WORKERS - 1)));
       moving = 1; c[k].at = DISPLACED }
  :: d_step { c[k].at == DISPLACED -> mark = 1; c[k].at = SWITCHING }
  :: d_step { c[k].at == SWITCHING -> live = 1; c[k].at = SWITCHED }
  :: d_step { c[k].at == SWITCHED -> journal_shut = 0; mark = 0; moving = 0; c[k].at = JOURNAL_DONE }
  :: d_step { c[k].at == JOURNAL_DONE -> mark_restored = 1; c[k].at = MARKED_RESTORED }
  :: d_step { c[k].at == MARKED_RESTORED -> journal = 0; c[k].at = GIVEN_UP; REACHED(RESTORED) }
  :: d_step { (IS_RESTORE(TOKEN) && (c[k].at >= PREPARED && c[k].at <= DRAINED
              || c[k].at >= JOURNAL_CLOSING && c[k].at <= SWITCHED)) -> undo() }
  /* whatever failed, the thaw */
  :: d_step { !IS_RESTORE(TOKEN) && c[k].at >= PREPARED && c[k].at <= CAPTURED -> c[k].at = GIVEN_UP; c[k].window = 0 }
  :: d_step { c[k].at == GIVEN_UP -> drop(); end_coordinator() }
  od
}

/* --------------------------------------------------------- clock and faults */

#define IN_TIME(i) (!(w[i].life == GATED || w[i].life == BOOTING || w[i].life == RUNNING) || w[i].asleep \
  || (w[i].look == IDLE && (w[i].fresh || w[i].life != RUNNING)))

inline older(i) {
  /* I3: awake and closed for a whole tick after the end that the lease had */
  if
  :: (w[i].life == RUNNING && !w[i].asleep && !w[i].left && w[i].closed && w[i].cause && !IS_RESTORE(w[i].cause)
     && c[w[i].cause - 1].term == 0) -> assert(!w[i].over); w[i].over = 1
  :: else -> w[i].over = 0
  fi;
  if :: w[i].ack_left > 0 -> w[i].ack_left-- :: else fi;
  if :: w[i].until > 0 -> w[i].until-- :: else fi;
  if :: w[i].promise > 0 -> w[i].promise-- :: else fi;
  if :: w[i].life >= GATED && w[i].life <= RUNNING && w[i].age < LICENCE -> w[i].age++ :: else fi;
  if :: w[i].look != IDLE && w[i].asked < LICENCE -> w[i].asked++ :: else fi;
  w[i].fresh = 0
}

inline wiped(i) {
  strike(i);
  if :: w[i].life >= GATED && w[i].life <= RUNNING -> w[i].reborn = 1 :: else fi
}

/* A task that runs where nobody can know of it, see README.md. */
#define UNSEEN_AFTER_WIPE(i) (w[i].cut || (w[i].busy && (w[i].asleep || w[i].life == DEAD)))
#define UNLISTED(i) (!w[i].listed && !UNSEEN_WORK)

proctype The_clock() {
end:
  do
  :: d_step { IN_TIME(0) && IN_TIME(WORKERS - 1) ->
       older(0);
#if WORKERS > 1
       older(1);
#endif
       if
       :: lease && left > 0 -> left--
       :: lease && left == 0 -> lease = 0; spoilt = 0; lease_lost()
       :: else
       fi;
       if :: c[0].term > 0 -> c[0].term-- :: else fi;
#if COORDINATORS > 1
       if :: c[1].term > 0 -> c[1].term-- :: else fi;
#endif
       if :: born < TRUST -> born++ :: else fi }
  od
}

#if FAULTS > 0
proctype Trouble() {
end:
  do
#ifndef NO_WIPE
  :: d_step { faults > 0 && (UNSEEN_WORK || (!UNSEEN_AFTER_WIPE(0) && !UNSEEN_AFTER_WIPE(WORKERS - 1))) ->
       faults--;
       lease = 0; left = 0; spoilt = 0; born = 0; mark = 0; mark_restored = 0; thawed = 0; lease_lost();
       wiped(0);
#if WORKERS > 1
       wiped(1);
#endif
     }
#endif
  od
}

proctype Trouble_of(byte i) {
end:
  do
#ifndef NO_PAUSE
  :: d_step { faults > 0 && w[i].life == RUNNING && AWAKE(i) && !(w[i].busy && UNLISTED(i)) ->
       faults--; w[i].asleep = 1 }
  :: d_step { faults > 0 && w[i].life == RUNNING && AWAKE(i) && !(w[i].busy && UNLISTED(i)) ->
       faults--; refresh(i); w[i].asleep = 1 }           /* after the listener's tick, before its look */
  :: d_step { w[i].asleep -> w[i].asleep = 0; if :: w[i].busy -> progress() :: else fi }
#endif
#ifndef NO_CUT
  :: d_step { faults > 0 && w[i].life >= GATED && w[i].life <= RUNNING && !w[i].cut && !UNLISTED(i) ->
       faults--; w[i].cut = 1 }
  :: d_step { faults > 0 && w[i].look == ACKING && !w[i].cut && lease == w[i].seen && !UNLISTED(i) ->
       faults--; w[i].cut = 1; write_ack(i) }            /* the script ran; its answer is lost */
  :: d_step { w[i].cut -> w[i].cut = 0 }
#endif
#ifndef NO_CRASH
  :: d_step { faults > 0 && w[i].life >= BOOTING && w[i].life <= RUNNING && !(w[i].busy && UNLISTED(i)) ->
       faults--; clear(i); w[i].life = DEAD }
#endif
  od
}
#endif

init {
  atomic {
    w[0].life = RUNNING; w[0].listed = 1;
    run The_clock();
    run A_worker(0);
#if WORKERS > 1
    run A_worker(1);
#endif
    run A_coordinator(0);
#if COORDINATORS > 1
    run A_coordinator(1);
#endif
#if FAULTS > 0
    run Trouble();
    run Trouble_of(0);
#if WORKERS > 1
    run Trouble_of(1);
#endif
#endif
  }
}
