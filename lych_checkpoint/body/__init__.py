"""The body: all repositories of a federation, scanned, pinned, bundled, switched and compared as one."""

from lych_checkpoint.body.area import PLACE
from lych_checkpoint.body.checking import Standing, fingerprint, is_shallow, lockfiles, pins, relation, survey, verify
from lych_checkpoint.body.comparing import Comparison, Uncommitted, compare, present, uncommitted
from lych_checkpoint.body.dirt import Policy
from lych_checkpoint.body.displacing import bundle_lock, displace, unheld, weight_bytes
from lych_checkpoint.body.members import Member, discover, find, strays
from lych_checkpoint.body.pinning import bundle, lock_of, pin, pinned, unpin
from lych_checkpoint.body.scans import Scan, recheck, scan, scanning
from lych_checkpoint.body.staging import is_staged, lacking, make_root, stage, unstage
from lych_checkpoint.body.switching import clear_locks, switch, switch_back
from lych_checkpoint.repository.command import git_version, is_old
from lych_checkpoint.repository.objects import Verdict
from lych_checkpoint.repository.scratch import sweep

__all__ = [
    "PLACE", "Comparison", "Member", "Policy", "Scan", "Standing", "Uncommitted", "Verdict", "bundle", "bundle_lock",
    "clear_locks", "compare", "discover", "displace", "find", "fingerprint", "git_version", "is_old", "is_shallow",
    "is_staged", "lacking", "lock_of", "lockfiles", "make_root", "pin", "pinned", "pins", "present", "recheck",
    "relation", "scan", "scanning", "stage", "strays", "survey", "sweep", "switch", "switch_back", "uncommitted",
    "unheld", "unpin", "unstage", "verify", "weight_bytes",
]
