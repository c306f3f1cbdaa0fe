"""`python -m lych_checkpoint VERB` is `lych-checkpoint VERB`."""

from lych_checkpoint.cli import main

main(prog_name="lych-checkpoint")
