"""The facts of a checkpoint survive a round trip, and nothing else passes for them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lych_checkpoint.errors import Damage
from lych_checkpoint.manifest import BodyLock, Environment, Manifest, RepoPin, body_signature
from lych_checkpoint.records import canonical
from tests.fixtures.sealed import some_lock, some_manifest

# No surrogates: neither TOML nor UTF-8 can hold them.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
HEX = st.text("0123456789abcdef", min_size=40, max_size=40)
PINS = st.builds(
    RepoPin, path=WORDS, role=st.sampled_from(["core", "extension"]),
    object_format=st.sampled_from(["sha1", "sha256"]), commit=HEX, tree=HEX,
    branch=WORDS | st.just(""), remote=WORDS | st.just(""), captured=HEX | st.just(""),
    lockfiles=st.dictionaries(WORDS, WORDS, max_size=2),
)
ENVIRONMENTS = st.builds(Environment, python=WORDS | st.just(""), postgresql=WORDS | st.just(""),
                         extensions=st.dictionaries(WORDS, WORDS, max_size=2),
                         migrations=st.dictionaries(WORDS, st.lists(WORDS, max_size=2), max_size=2),
                         rebuilt=st.dictionaries(WORDS, HEX, max_size=2))
LOCKS = st.builds(BodyLock, checkpoint=WORDS, created_at=WORDS, environment=ENVIRONMENTS,
                  repos=st.lists(PINS, max_size=4, unique_by=lambda pin: pin.path).map(tuple))


@given(LOCKS)
def test_a_lock_comes_back_as_it_was(lock: BodyLock) -> None:
    again = BodyLock.loads(lock.dumps())
    assert again.signature.startswith("sha256:")
    assert again.environment == lock.environment
    assert (again.signature, again.commits, again.dumps()) == (lock.signature, lock.commits, lock.dumps())


@given(LOCKS, st.randoms())
def test_the_signature_knows_no_order(lock: BodyLock, random: object) -> None:
    pins = list(lock.repos)
    random.shuffle(pins)  # type: ignore[attr-defined]
    assert body_signature(tuple(pins)) == lock.signature
    assert replace(lock, repos=tuple(pins)).dumps() == lock.dumps()


def test_the_signature_is_of_the_code_and_not_of_where_it_came_from() -> None:
    lock = some_lock("1")
    one, two = lock.repos
    assert body_signature((replace(one, branch="other", remote="elsewhere"), two)) == lock.signature
    around = Environment(python="3.99", migrations={"alembic public": ["a1"]})
    assert replace(lock, checkpoint="2", created_at="later", environment=around).signature == lock.signature
    for changed in ({"commit": "e" * 40}, {"tree": "e" * 40}, {"path": "x"}, {"role": "core"}, {"captured": "e" * 40},
                    {"object_format": "sha256"}, {"lockfiles": {"a": "b"}}):
        assert body_signature((replace(one, **changed), two)) != lock.signature
    assert body_signature((one,)) != lock.signature


def test_the_captured_commit_stands_for_a_dirty_repository() -> None:
    one, two = some_lock("1").repos
    lock = BodyLock(checkpoint="1", created_at="", repos=(replace(one, captured="f" * 40), two))
    assert lock.commits == {"extensions/a": "f" * 40, "core": "a" * 40}


@pytest.mark.parametrize(("old", "new"), [
    ("a" * 40, "f" * 40), ("sha256:", "sha512:"), ("version = 1", "version = 2"), ("version = 1", "version = true"),
    ("version = 1\n", ""), ("checkpoint", "chekpoint"), ("role = ", "rule = "), ("[[repo]]", "[repo]"),
    ("[[repo]]", "[[repos]]"), ('path = "core"', "path = 7"), ('path = "core"', "path = 2020-01-01"),
    ("created_at", "extra = 1\ncreated_at"), ("= ", "=\x00"),
])
def test_a_changed_lock_is_damage(old: str, new: str) -> None:
    text = some_lock("1").dumps()
    assert old in text
    with pytest.raises(Damage, match=r"root/lychd\.lock"):
        BodyLock.loads(text.replace(old, new), "root/lychd.lock")


def test_a_merge_conflict_is_no_lock() -> None:
    with pytest.raises(Damage):
        BodyLock.loads("<<<<<<< ours\n" + some_lock("1").dumps())


def test_a_manifest_comes_back_as_it_was() -> None:
    manifest = some_manifest("1", some_lock("1"), label="before", coalesced=2, safety=True)
    assert Manifest.loads(manifest.dumps()) == manifest


@given(WORDS, st.dictionaries(WORDS, WORDS, max_size=3), st.floats(0, 1e10))
def test_any_words_survive(word: str, tags: dict[str, str], moment: float) -> None:
    lock = some_lock("1")
    manifest = some_manifest("1", lock, reason=word, tags=tags)
    manifest = replace(manifest, freeze=replace(manifest.freeze, frozen_at=moment))
    again = Manifest.loads(manifest.dumps())
    assert again == manifest
    assert again.dumps() == manifest.dumps()


def test_only_the_canonical_bytes_count() -> None:
    data = some_manifest("1", some_lock("1")).dumps()
    for other in (data + b"\n", b" " + data, data.replace(b'","', b'", "', 1), data.decode().encode("utf-16")):
        with pytest.raises(Damage):
            Manifest.loads(other)


def test_the_create_document_has_what_scripts_rely_on() -> None:
    document = some_manifest("1", some_lock("1")).as_json()
    assert document["state"] == "sealed"
    assert document["label"] is None
    assert set(document) >= {"id", "label", "state", "signature", "driver", "created_at", "workers", "repos", "bytes",
                             "coalesced", "frozen_at", "thawed_at", "window"}
    assert set(document["window"]) == {"hold_ms", "ack_ms", "drain_ms", "capture_ms", "thaw_ms"}
    assert document["warnings"] == ["fsync is off"]


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": 1, "a": ["é"]}) == '{"a":["é"],"b":1}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_a_manifest_from_before_a_fact_was_added_is_whole() -> None:
    manifest = some_manifest("1", some_lock("1"), unheld={})
    assert b"unheld" not in manifest.dumps()
    assert Manifest.loads(manifest.dumps()) == manifest
    with pytest.raises(Damage, match="canonical"):
        Manifest.loads(canonical({**json.loads(manifest.dumps()), "unheld": {}}))


def test_a_lock_from_before_the_environment_was_read_is_whole() -> None:
    assert "environment" not in some_lock("1").dumps()
    assert BodyLock.loads(some_lock("1").dumps()).environment == Environment()
