/* Seeded mistakes, each a switch that is 0 in the true model. README.md says what each one is. */

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
#ifndef TRUST_IS_LICENCE
#define TRUST_IS_LICENCE 0
#endif
#ifndef LAST_MOMENT_COUNTS
#define LAST_MOMENT_COUNTS 0
#endif
#ifndef STOP_TAKES_ACK_AWAY
#define STOP_TAKES_ACK_AWAY 0
#endif
#ifndef OLD_ANSWER_COUNTS
#define OLD_ANSWER_COUNTS 0
#endif
#ifndef SUCCESSOR_RELEASES
#define SUCCESSOR_RELEASES 0
#endif

/* Not a mistake: lets tasks run where no freeze can see them, to show that limit. */
#ifndef UNSEEN_WORK
#define UNSEEN_WORK 0
#endif
