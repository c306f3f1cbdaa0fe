/* A worker: lych_checkpoint/worker/member.py and the scripts of lease/roster.py that it runs. */

inline forget_answer(i) {
  w[i].seen = 0; w[i].seen_left = 0; w[i].promise = 0; w[i].asked = 0;
  w[i].seen_open = 0; w[i].seen_restored = 0; w[i].seen_thawed = 0; w[i].seen_reborn = 0
}

inline clear(i) {           /* nothing of this start of the process is left, its entry in Redis apart */
  w[i].look = IDLE; w[i].age = 0; w[i].freeze = 0; w[i].until = 0; w[i].broken = 0; w[i].cause = 0;
  w[i].reborn = 0; w[i].closed = 0; w[i].fresh = 0; w[i].generation = 0; w[i].left = 0; w[i].asleep = 0;
  w[i].cut = 0; w[i].owed = 0; w[i].over = 0; w[i].ticked = 0;
#if REACH
  w[i].booted = 0;
#endif
  forget_answer(i)
}

inline strike(i) {          /* its entry is gone from the roster */
  w[i].listed = 0; w[i].ack = 0; w[i].ack_left = 0; w[i].ack_drained = 0; w[i].ack_broken = 0;
  w[i].late = 0; w[i].late_left = 0; w[i].late_drained = 0; w[i].late_broken = 0
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
  w[i].listed = 1; w[i].asked = 0; w[i].ticked = 0;
  w[i].seen = (BLIND_BOOT && w[i].life == GATED -> 0 : VISIBLE);
  w[i].seen_left = (w[i].seen -> left : 0); w[i].promise = w[i].seen_left;
  w[i].seen_open = mark; w[i].seen_restored = mark_restored;
  w[i].seen_thawed = (RESTORES(w[i].freeze) && thawed);
  w[i].seen_reborn = w[i].reborn && w[i].life != GATED; w[i].reborn = 0;
  w[i].look = ANSWERED
}

inline close_barrier(i) {
  w[i].closed = 1; w[i].cause = w[i].seen; w[i].over = 0;
  if                        /* what it will honour is set before it acks */
  :: !PROMISE_AFTER_ANSWER -> w[i].freeze = w[i].seen; w[i].until = w[i].seen_left
  :: PROMISE_AFTER_ANSWER
  fi;
  w[i].seen_left = 0; w[i].seen_open = 0; w[i].seen_restored = 0; w[i].seen_thawed = 0; w[i].seen_reborn = 0;
  w[i].look = ACKING
}

#define OWN_LEASE(i) (w[i].seen && (SUCCESSOR_RELEASES || w[i].seen == w[i].freeze))
#define SHUT_OUT(i) (w[i].seen_open && !JOURNAL_UNREAD && !(RESTORES(w[i].freeze) && OWN_LEASE(i)))
#define OUTDATED(i) ((w[i].seen_restored && !w[i].generation) || (w[i].seen_reborn && !STANDS(i)))
#define RELEASED(i) (!RESTORES(w[i].freeze) || OWN_LEASE(i) || (w[i].seen_thawed && STANDS(i)))

inline act(i) {             /* Member.look, after the answer */
  if
  :: SHUT_OUT(i) || OUTDATED(i) || !RELEASED(i) -> leave(i)
  :: else ->
     if :: RESTORES(w[i].freeze) && !OWN_LEASE(i) -> w[i].owed = 0 :: else fi;
     if
     :: w[i].seen -> close_barrier(i)
     :: else -> w[i].freeze = 0; w[i].until = 0; open_barrier(i); looked(i)
     fi
  fi
}

inline look_again(i) {      /* it slept with the answer in hand: that is no answer */
  w[i].reborn = w[i].reborn | w[i].seen_reborn;
  w[i].look = IDLE; w[i].fresh = 0;
  forget_answer(i)
}

inline lose_ack(i) {        /* it may still arrive, or may have: then only its answer is lost */
  w[i].late = w[i].seen; w[i].late_left = w[i].promise; w[i].late_drained = !w[i].busy;
  w[i].late_broken = ((w[i].broken & BIT(w[i].seen)) != 0)
}

inline late_ack(i) {
  if
  :: lease == w[i].late ->
     w[i].ack = lease; w[i].ack_left = (PROMISE_AFTER_ANSWER -> left : w[i].late_left);
     w[i].ack_drained = w[i].late_drained; w[i].ack_broken = w[i].late_broken;
     if :: IS_RESTORE(lease) && w[i].life == RUNNING -> w[i].owed = !dropped :: else fi
  :: else
  fi;
  w[i].late = 0; w[i].late_left = 0; w[i].late_drained = 0; w[i].late_broken = 0
}

inline write_ack(i) {       /* roster._ACK, as far as Redis is concerned */
  w[i].ack = w[i].seen;
  w[i].ack_left = (PROMISE_AFTER_ANSWER -> left : w[i].promise);
  w[i].ack_drained = !w[i].busy;
  w[i].ack_broken = ((w[i].broken & BIT(w[i].seen)) != 0);
  if :: IS_RESTORE(w[i].seen) -> w[i].owed = !dropped :: else fi
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
  w[i].look = IDLE; w[i].fresh = 1; w[i].ticked = 0;
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
#define ACK_IS_OLD(i) (w[i].ack != w[i].freeze || w[i].ack_left < left || w[i].ack_drained == w[i].busy)
#define NEWS(i) (VISIBLE != w[i].freeze || (w[i].freeze && ACK_IS_OLD(i)) || (mark && !RESTORES(w[i].freeze)) \
  || (mark_restored && !w[i].generation) || w[i].reborn || w[i].age >= LICENCE)
#define ALIVE(i) (w[i].life == GATED || w[i].life == BOOTING || w[i].life == RUNNING)
#define LOOK_IS_DUE(i) (w[i].look == IDLE && ALIVE(i) && (w[i].life != RUNNING || !w[i].fresh))

proctype A_worker(byte i) {
end:
  do
  :: d_step { w[i].life == OFF && boots > 0 && (!journal_shut || JOURNAL_UNREAD) ->              /* the gate */
       boots--; w[i].life = GATED; w[i].generation = live; w[i].age = 0;
#if REACH
       w[i].booted = 1
#endif
     }
  :: d_step { (AWAKE(i) && !w[i].cut
              && (LOOK_IS_DUE(i) || (w[i].look == IDLE && w[i].life == RUNNING && NEWS(i)))) -> beat(i) }
  :: d_step { AWAKE(i) && w[i].look == ANSWERED ->
       if :: w[i].asked >= LICENCE && !OLD_ANSWER_COUNTS -> look_again(i) :: else -> act(i) fi }
  :: d_step { AWAKE(i) && w[i].look == ACKING && !w[i].cut -> send_ack(i) }
  :: d_step { AWAKE(i) && w[i].cut && (w[i].look == ACKING || LOOK_IS_DUE(i)) -> look_failed(i) }
  :: d_step { (AWAKE(i) && w[i].cut && w[i].life == RUNNING && w[i].look == IDLE && w[i].fresh
              && RESTORES(w[i].freeze) && !w[i].left) -> leave(i) }                  /* the second failed look */
  :: d_step { w[i].life == RUNNING && AWAKE(i) && !w[i].closed && !w[i].busy && LICENSED(i) -> start_task(i) }
  :: d_step { w[i].busy && AWAKE(i) -> w[i].busy = 0; progress() }
  :: d_step { stops > 0 && w[i].life == RUNNING && AWAKE(i) && !w[i].left && w[i].look == IDLE ->
       stops--; w[i].left = 1; w[i].closed = 1 }                           /* SIGTERM: a warm shutdown */
  :: d_step { w[i].left && AWAKE(i) && !w[i].busy && w[i].look == IDLE -> end_worker(i) }
  od
}
