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
#ifndef LATE_ACKS
#define LATE_ACKS 1         /* 1: Redis may execute an ack long after its worker gave up on the answer; 0: at once */
#endif
#ifndef STOPS
#define STOPS 1             /* how many workers may be told to stop */
#endif
#ifndef BOOTS
#define BOOTS 2             /* how many starts of workers may still happen */
#endif
#include "mistakes.pml"

#define LEASE 2             /* ticks a lease lasts when taken or renewed */
#define LICENCE 2           /* a worker that slept as long starts nothing before it has looked */
#if TRUST_IS_LICENCE
#define TRUST LICENCE
#else
#define TRUST 3             /* how old a roster must be: a licence that is renewed once more, just before a sleep */
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
/* One property can be left out, to see whether another one breaks as well. */
#ifndef IGNORE
#define IGNORE 0
#endif
#define QUIET 2             /* I2 */
#define THAW 3              /* I3 */
#define NO_THAW 4           /* I3, of a restore */
#define GATE 7              /* I7 */
#define FENCE 8             /* I8 */
/* The last term is never true: it only names the property in what spin prints, and spin cannot fold it. */
#define HOLDS(property, claim) assert(IGNORE == property || (claim) || named == property)
hidden byte named;

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
  bit ticked;               /* the listener ticked and has not looked since */
  bit cut;
  bit owed;                 /* ghost: acked a restore's freeze that nobody thawed yet */
  bit over;                 /* ghost: was closed without a lease for a whole tick, awake */
#if REACH
  bit booted;               /* ghost: began after the start */
#endif
  /* in Redis */
  bit listed;
  unsigned ack : 2;         /* token it acked, 0 if none */
  unsigned ack_left : 2;
  bit ack_drained;
  bit ack_broken;
  /* an ack on its way to Redis that its worker gave up on */
  unsigned late : 2;        /* its token, 0 if none */
  unsigned late_left : 2;
  bit late_drained;
  bit late_broken;
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
bit thawed;                 /* the restore's freeze was thawed by its token */
bit spoilt;                 /* an ack of this lease is broken, though its worker left the roster in order */
/* the vault and the witness */
bit journal;                /* a restore is open … */
bit journal_shut;           /* … and closing or switching */
bit live;                   /* generation of the live pair */
bit moving;                 /* ghost: between the first displacement and the end of the switch */
bit dropped;                /* ghost: the restore's freeze was thawed by its holder */

unsigned faults : 2 = FAULTS;
unsigned boots : 2 = BOOTS;
unsigned stops : 1 = STOPS;

#define BIT(token) (1 << ((token) - 1))
#define RESTORES(token) (RESTORER && (token) == RESTORER && !RESTORE_FAILS_OPEN)
#define IS_RESTORE(token) (RESTORER && (token) == RESTORER)
/* The lease as a heartbeat sees it: in its last moment it exists and has nothing left. */
#define VISIBLE (left > 0 -> lease : 0)
#define AWAKE(i) (!w[i].asleep)
#define AT_WORK(i) (w[i].busy && AWAKE(i))
#define LICENSED(i) (NO_LICENCE || w[i].age < LICENCE)
/* generation_stands: the journal is not shut, and no restore came since the gate */
#define STANDS(i) (!journal_shut && w[i].generation == live)

/* ---------------------------------------------------------------- properties */

inline progress() {         /* a task makes progress now */
  c[0].moved = c[0].moved | c[0].window;
  c[COORDINATORS - 1].moved = c[COORDINATORS - 1].moved | c[COORDINATORS - 1].window
}

inline start_task(i) {
  HOLDS(GATE, !moving && w[i].generation == live);
  w[i].busy = 1;
  progress()
}

inline open_barrier(i) {
  w[i].cause = 0; w[i].over = 0;
  if
  :: w[i].left
  :: else -> HOLDS(NO_THAW, !w[i].owed); w[i].closed = 0
  fi
}

inline lease_ends() {       /* nobody reads the acks of a lease that is gone: no token comes back */
  lease = 0; left = 0; spoilt = 0;
  w[0].ack = 0; w[0].ack_left = 0; w[0].ack_drained = 0; w[0].ack_broken = 0;
  w[WORKERS - 1].ack = 0; w[WORKERS - 1].ack_left = 0;
  w[WORKERS - 1].ack_drained = 0; w[WORKERS - 1].ack_broken = 0;
  c[0].mine = 0;
  c[COORDINATORS - 1].mine = 0
}

#include "worker.pml"
#include "coordinator.pml"
#include "trouble.pml"

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
