"""Other programs: the only room that starts any."""

from lych_checkpoint.process.conversation import Conversation, conversing
from lych_checkpoint.process.identity import Identity
from lych_checkpoint.process.running import Owner, Running, ended_within, run, run_kept, spawned, start_again

__all__ = [
    "Conversation", "Identity", "Owner", "Running", "conversing", "ended_within", "run", "run_kept", "spawned",
    "start_again",
]
