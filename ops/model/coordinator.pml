/* A coordinator, of a create or of a restore: lych_checkpoint/freeze.py, restore.py and lease/lease.py. */

#define TOKEN (k + 1)
#define TERM (IS_RESTORE(TOKEN) -> 0 : LEASE)
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

#define LATE_BOOT (w[WORKERS - 1].booted && w[WORKERS - 1].listed && !IN(c[k].expected, WORKERS - 1))

inline read_roster() {
  c[k].expected = w[0].listed; c[k].gone = c[k].gone | (w[0].listed && PROVEN_GONE(0));
#if WORKERS > 1
  c[k].expected = c[k].expected | (w[1].listed << 1);
  c[k].gone = c[k].gone | ((w[1].listed && PROVEN_GONE(1)) << 1);
#endif
}

inline take() {             /* lease.TAKE */
  lease = TOKEN; left = LEASE; c[k].term = TERM; c[k].mine = 1
}

inline drop() {             /* lease.DROP */
  if
  :: lease && (lease == TOKEN || THAW_WITHOUT_TOKEN) ->
     HOLDS(FENCE, lease == TOKEN);
     if :: IS_RESTORE(TOKEN) -> thawed = 1; dropped = 1; w[0].owed = 0; w[WORKERS - 1].owed = 0 :: else fi;
     lease_ends()
  :: else
  fi;
  c[k].mine = 0; c[k].window = 0
}

inline begin_window() {
  c[k].window = 1;
  c[k].moved = AT_WORK(0) || AT_WORK(WORKERS - 1)
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
  :: d_step { c[k].at == CALLED && ALL_ACKED && RENEWABLE -> left = LEASE; c[k].term = TERM; c[k].at = DRAINED }
  /* renewal, by a thread of its own, whenever it comes to it */
  :: d_step { (c[k].at >= TAKEN && c[k].at != GIVEN_UP && c[k].at != ENDED && c[k].at != CONFIRMED
              && RENEWABLE && left < LEASE) -> left = LEASE; c[k].term = TERM }
  :: d_step { RENEWAL_CREATES && c[k].at >= TAKEN && c[k].at <= CAPTURED && !lease ->
       lease = TOKEN; left = LEASE; HOLDS(FENCE, c[k].mine) }
  /* a checkpoint */
  :: d_step { c[k].at == DRAINED && !IS_RESTORE(TOKEN) -> begin_window(); c[k].at = CAPTURING }
  :: d_step { c[k].at == CAPTURING -> c[k].window = 0; c[k].at = CAPTURED }
  :: d_step { c[k].at == CAPTURED && !CONFIRMS -> c[k].at = GIVEN_UP }
  :: d_step { c[k].at == CAPTURED && CONFIRMS ->
       HOLDS(QUIET, !c[k].moved);
       HOLDS(FENCE, c[k].mine);
       REACHED(SEALED);
#if REACH
       if :: LATE_BOOT -> REACHED(LATE_BOOT_SEALED) :: else fi;
#endif
       c[k].at = CONFIRMED }
  :: d_step { c[k].at == CONFIRMED -> drop(); end_coordinator() }
  /* a restore */
  :: d_step { c[k].at == DRAINED && IS_RESTORE(TOKEN) -> journal_shut = 1; c[k].at = JOURNAL_CLOSING }
  :: d_step { c[k].at == JOURNAL_CLOSING -> mark = 1; c[k].at = MARKED_CLOSING }
  :: d_step { c[k].at == MARKED_CLOSING && (CONFIRMS || NO_LOOK_AFTER_CLOSING) ->
       HOLDS(FENCE, c[k].mine || NO_LOOK_AFTER_CLOSING);
       HOLDS(QUIET, !AT_WORK(0) && !AT_WORK(WORKERS - 1));
       c[k].expected = 0; c[k].gone = 0; c[k].mine = 0; moving = 1; c[k].at = DISPLACED }
  :: d_step { c[k].at == DISPLACED -> mark = 1; c[k].at = SWITCHING }
  :: d_step { c[k].at == SWITCHING -> live = 1; c[k].at = SWITCHED }
  :: d_step { c[k].at == SWITCHED -> journal_shut = 0; mark = 0; moving = 0; c[k].at = JOURNAL_DONE }
  :: d_step { c[k].at == JOURNAL_DONE -> mark_restored = 1; c[k].at = MARKED_RESTORED }
  :: d_step { c[k].at == MARKED_RESTORED -> journal = 0; c[k].at = GIVEN_UP; REACHED(RESTORED) }
  :: d_step { (IS_RESTORE(TOKEN) && (c[k].at >= PREPARED && c[k].at <= DRAINED
              || c[k].at >= JOURNAL_CLOSING && c[k].at <= SWITCHED)) -> undo() }
  /* whatever failed, the thaw */
  :: d_step { !IS_RESTORE(TOKEN) && c[k].at >= PREPARED && c[k].at <= CAPTURED ->
       c[k].at = GIVEN_UP; c[k].window = 0 }
  :: d_step { c[k].at == GIVEN_UP -> drop(); end_coordinator() }
  od
}
