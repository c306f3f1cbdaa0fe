/* The clock, and what may go wrong. */

/* An awake worker looks, or tries to, in every tick; one that boots may take any time. */
#define IN_TIME(i) (!ALIVE(i) || w[i].asleep || (w[i].look == IDLE && (w[i].fresh || w[i].life != RUNNING)))

inline older(i) {
  /* I3: awake and closed for a whole tick after the end that the lease had */
  if
  :: (w[i].life == RUNNING && !w[i].asleep && !w[i].left && w[i].closed && w[i].cause && !IS_RESTORE(w[i].cause)
     && c[w[i].cause - 1].term == 0) -> HOLDS(THAW, !w[i].over); w[i].over = 1
  :: else -> w[i].over = 0
  fi;
  if :: w[i].ack_left > 0 -> w[i].ack_left-- :: else fi;
  if :: w[i].until > 0 -> w[i].until-- :: else fi;
  if :: w[i].promise > 0 -> w[i].promise-- :: else fi;
  if :: w[i].late_left > 0 -> w[i].late_left-- :: else fi;
  if :: ALIVE(i) && w[i].age < LICENCE -> w[i].age++ :: else fi;
  if :: w[i].look != IDLE && w[i].asked < LICENCE -> w[i].asked++ :: else fi;
  w[i].fresh = 0
}

inline wiped(i) {
  strike(i);
  if :: ALIVE(i) -> w[i].reborn = 1 :: else fi
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
       :: lease && left == 0 -> lease_ends()
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
  :: d_step { faults > 0 && (UNSEEN_WORK || (!UNSEEN_AFTER_WIPE(0) && !UNSEEN_AFTER_WIPE(WORKERS - 1))) ->
       faults--;
       lease_ends(); born = 0; mark = 0; mark_restored = 0; thawed = 0;
       wiped(0);
#if WORKERS > 1
       wiped(1);
#endif
     }
  od
}

proctype Trouble_of(byte i) {
end:
  do
  :: d_step { faults > 0 && w[i].life == RUNNING && AWAKE(i) && !(w[i].busy && UNLISTED(i)) ->
       faults--; w[i].asleep = 1 }
  :: d_step { faults > 0 && w[i].life == RUNNING && AWAKE(i) && !(w[i].busy && UNLISTED(i)) && !w[i].ticked ->
       faults--; refresh(i); w[i].ticked = 1; w[i].asleep = 1 }       /* after the listener's tick, before its look */
  :: d_step { w[i].asleep -> w[i].asleep = 0; if :: w[i].busy -> progress() :: else fi }
  :: d_step { faults > 0 && ALIVE(i) && !w[i].cut && !UNLISTED(i) ->
       faults--; w[i].cut = 1 }
  :: d_step { faults > 0 && w[i].look == ACKING && !w[i].cut && lease == w[i].seen && !UNLISTED(i) ->
       faults--; w[i].cut = 1;
#if LATE_ACKS
       lose_ack(i)
#else
       write_ack(i)
#endif
     }
#if LATE_ACKS
  :: d_step { w[i].late -> late_ack(i) }
#endif
  :: d_step { w[i].cut -> w[i].cut = 0 }
  :: d_step { faults > 0 && (w[i].life == BOOTING || w[i].life == RUNNING) && !(w[i].busy && UNLISTED(i)) ->
       faults--; clear(i); w[i].life = DEAD }
  od
}
#endif
