"""The vault: the directory where checkpoints live, and what is written beside them."""

from lych_checkpoint.vault.directory import Vault
from lych_checkpoint.vault.files import flush_directory, write_atomic, writing

__all__ = ["Vault", "flush_directory", "write_atomic", "writing"]
