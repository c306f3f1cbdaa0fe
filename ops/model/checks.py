"""What spin is asked: the true model at its bounds, ends that must be reachable, and mistakes it must find."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Number of a property in the model → its name in docs/design.md.
PROPERTIES = {2: "I2", 3: "I3", 4: "I3 restore", 7: "I7", 8: "I8"}
HOLDS = "holds"
REACHED = "reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One run of spin. ``expected`` is `HOLDS`, `REACHED`, or the name of the property that must break."""

    name: str
    expected: str
    switches: dict[str, int] = field(default_factory=dict)


def _true(name: str, **switches: int) -> Check:
    return Check(name=name, expected=HOLDS, switches=switches)


def _reach(name: str, end: int, **switches: int) -> Check:
    return Check(name=f"reach: {name}", expected=REACHED, switches={"REACH": end, **switches})


def _mistake(switch: str, expected: str, **switches: int) -> Check:
    return Check(name=f"mistake: {switch.lower().replace('_', ' ')}", expected=expected,
                 switches={switch: 1, **switches})


#: Larger bounds than these do not end in time; each row is one way to be as large as can be.
TRUE = (
    _true("restore, 2 workers, 1 fault", WORKERS=2, RESTORER=1, LATE_ACKS=0),
    _true("create, 2 workers, 1 fault", WORKERS=2, LATE_ACKS=0),
    _true("create beside restore, 1 worker, 1 fault", WORKERS=1, COORDINATORS=2, RESTORER=1),
    _true("two creates, 1 worker, 1 fault", WORKERS=1, COORDINATORS=2),
    _true("create beside restore, 2 workers, no fault", WORKERS=2, COORDINATORS=2, RESTORER=1, FAULTS=0, STOPS=0),
    _true("two creates, 2 workers, no fault", WORKERS=2, COORDINATORS=2, FAULTS=0, STOPS=0),
    _true("create, 1 worker, 3 faults", WORKERS=1, FAULTS=3),
    _true("restore, 1 worker, 3 faults", WORKERS=1, RESTORER=1, FAULTS=3),
)
#: Without these the properties could hold because nothing ever happens.
ENDS = (
    _reach("a checkpoint is sealed", 1, WORKERS=1, FAULTS=0),
    _reach("a restore ends", 2, WORKERS=1, RESTORER=1, FAULTS=0),
    _reach("a restore is undone", 3, WORKERS=1, RESTORER=1, FAULTS=0),
    _reach("sealed with a worker that booted in the window", 4, WORKERS=2, FAULTS=0),
    _reach("a worker opens by expiry", 5, WORKERS=1),
)
MISTAKES = (
    _mistake("ROSTER_BEFORE_LEASE", "I2", WORKERS=2, FAULTS=0),
    _mistake("BLIND_BOOT", "I2", WORKERS=1, FAULTS=0),
    _mistake("NO_EXPIRY_AT_END", "I2", WORKERS=1),
    _mistake("THAW_WITHOUT_TOKEN", "I8", WORKERS=1, COORDINATORS=2, FAULTS=0),
    _mistake("RESTORE_FAILS_OPEN", "I3 restore", WORKERS=1, RESTORER=1),
    _mistake("RECLOSE_FORGIVEN", "I2", WORKERS=1),
    _mistake("LATE_NOT_LOOKED_AT", "I2", WORKERS=2, LATE_ACKS=0),
    _mistake("NO_LICENCE", "I2", WORKERS=1, FAULTS=2),
    _mistake("NO_LICENCE", "I7", WORKERS=1, RESTORER=1, FAULTS=2),
    _mistake("AGE_UNCHECKED", "I2", WORKERS=1),
    _mistake("NO_LOOK_AFTER_CLOSING", "I7", WORKERS=1, RESTORER=1, FAULTS=0),
    _mistake("JOURNAL_UNREAD", "I7", WORKERS=1, RESTORER=1, FAULTS=0),
    _mistake("MAIN_DEAD_IS_GONE", "I2", WORKERS=1),
    _mistake("RENEWAL_CREATES", "I8", WORKERS=1, FAULTS=0),
    _mistake("PROMISE_AFTER_ANSWER", "I2", WORKERS=1, IGNORE=3),
    _mistake("PROMISE_AFTER_ANSWER", "I3", WORKERS=1, IGNORE=2),
    _mistake("AGE_CHECKED_TOO_EARLY", "I2", WORKERS=1),
    _mistake("TRUST_IS_LICENCE", "I2", WORKERS=1, FAULTS=2),
    _mistake("TRUST_IS_LICENCE", "I7", WORKERS=1, RESTORER=1, FAULTS=2, IGNORE=2),
    _mistake("LAST_MOMENT_COUNTS", "I2", WORKERS=1, FAULTS=0),
    _mistake("STOP_TAKES_ACK_AWAY", "I2", WORKERS=1),
    _mistake("SUCCESSOR_RELEASES", "I3 restore", WORKERS=1, COORDINATORS=2, RESTORER=1, FAULTS=0),
    _mistake("OLD_ANSWER_COUNTS", "I3", WORKERS=1, FAULTS=2),
)
#: What no freeze can see is no mistake; it is shown, so that the limit stays known.
LIMITS = (
    Check(name="limit: Redis wiped, a task unseen", expected="I2",
          switches={"UNSEEN_WORK": 1, "WORKERS": 1, "FAULTS": 2}),
    Check(name="limit: the same around a restore", expected="I7",
          switches={"UNSEEN_WORK": 1, "WORKERS": 1, "RESTORER": 1, "FAULTS": 2, "IGNORE": 2}),
)
ALL = (*TRUE, *ENDS, *MISTAKES, *LIMITS)
