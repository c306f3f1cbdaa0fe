"""The facts of a checkpoint: what `lychd.lock` and `manifest.json` hold. Values only, no I/O.

Both name the release that wrote them, and re-encoding a manifest must give the very bytes again, so that no byte
of it is without meaning.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import tomli_w

from lych_checkpoint.errors import Damage
from lych_checkpoint.records import RELEASE, VERSION, canonical, check_version, digest, load_record, read_record

#: Facts of the manifest that its first version had not: absent means empty, so that older manifests stay whole.
_ADDED = ("unheld",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoPin:
    """One repository in ``lychd.lock``.

    ``path`` is relative to the root, posix, ``.`` for the root itself. ``captured`` is the commit that holds the raw
    working tree of a dirty repository (policy ``capture``), and then stands for the body instead of ``tree``.
    ``branch`` and ``remote`` inform only and are not signed.
    """

    path: str
    role: str
    object_format: str
    commit: str
    tree: str
    branch: str = ""
    remote: str = ""
    captured: str = ""
    captured_tree: str = ""
    lockfiles: dict[str, str] = field(default_factory=dict)

    def signed(self) -> dict[str, Any]:
        """Return what the body's signature covers: the code, not where it came from."""
        record = asdict(self)
        del record["branch"], record["remote"]
        return record


def body_signature(pins: tuple[RepoPin, ...]) -> str:
    """Return the one signature over all repositories: the same code gives the same signature."""
    ordered = sorted(pins, key=lambda pin: pin.path.encode())
    return digest(b"lychd-body-v1\0" + canonical([pin.signed() for pin in ordered]))


def witnessed(pins: Iterable[RepoPin]) -> dict[str, dict[str, str]]:
    """Return what a witness holds of a body: the commits as checked out, whatever lay on top of them."""
    return {pin.path: {"commit": pin.commit, "tree": pin.tree} for pin in pins}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the body ran with. Informs, and is not signed: the lockfiles in the pins are.

    ``postgresql`` is the major version; ``migrations`` the newest, by tool and place; ``rebuilt`` what was built.
    """

    python: str = ""
    postgresql: str = ""
    extensions: dict[str, str] = field(default_factory=dict)
    migrations: dict[str, list[str]] = field(default_factory=dict)
    rebuilt: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read back what the lock holds.

        Raises:
            TypeError: a field is unknown or misshapen.
        """
        known = cls(**record)
        texts = [known.python, known.postgresql, *known.extensions.values(), *known.rebuilt.values(),
                 *(head for heads in known.migrations.values() for head in heads)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("environment holds something other than text")
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLock:
    """``lychd.lock``: the commit of every repository and one signature over them."""

    checkpoint: str
    created_at: str
    repos: tuple[RepoPin, ...]
    environment: Environment = field(default_factory=Environment)
    release: str = RELEASE

    @property
    def signature(self) -> str:
        """The body's signature, ``sha256:…``."""
        return body_signature(self.repos)

    @property
    def commits(self) -> dict[str, str]:
        """The commit of every repository by its path; the captured one where the tree was dirty."""
        return {pin.path: pin.captured or pin.commit for pin in self.repos}

    def dumps(self) -> str:
        """Return the TOML text; one repository a table, sorted by path, empty facts left out."""
        ordered = sorted(self.repos, key=lambda pin: pin.path.encode())
        tables = [{name: value for name, value in asdict(pin).items() if value} for pin in ordered]
        around = {name: value for name, value in asdict(self.environment).items() if value}
        return tomli_w.dumps({
            "version": VERSION, "release": self.release, "checkpoint": self.checkpoint,
            "created_at": self.created_at, "signature": self.signature,
            **({"environment": around} if around else {}), "repo": tables,
        })

    @classmethod
    def loads(cls, text: str, where: str = "lychd.lock") -> Self:
        """Read the TOML text back.

        Raises:
            Damage: it is no TOML, of another version, has odd fields, or its signature is not that of its entries.
        """
        try:
            record = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Damage(f"not TOML: {error}", where, "", "malformed") from error
        check_version(record, where)
        del record["version"]
        try:
            pins = tuple(RepoPin(**entry) for entry in record.pop("repo"))
            signed = record.pop("signature")
            lock = cls(repos=pins, environment=Environment.of(record.pop("environment", {})), **record)
            same = lock.signature == signed
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Damage(f"fields are missing, unknown or misshapen: {error}", where, "", "malformed") from error
        if not same:
            raise Damage("the signature is not that of the entries", where,
                         "restore the file from a sealed checkpoint; never merge it by hand", "lock-signature")
        return lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One sequence by value: sequences are not part of any snapshot's exactness, so they travel apart."""

    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SoulFacts:
    """What was captured of the data.

    ``evidence`` is the driver's own: flat, strings, integers and booleans only; it is what ``stage`` and ``verify``
    of the same driver get back. ``writers`` names who else wrote, under the policy that allows it.
    """

    driver: str
    database: str
    server_version: int
    system_identifier: str
    generation: int
    evidence: dict[str, str | int | bool]
    sequences: tuple[Sequence, ...] = ()
    writers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read back what ``asdict`` gave."""
        plain = dict(read_record(cls, record, "manifest.json: soul"))
        plain["sequences"] = tuple(Sequence(**entry) for entry in plain["sequences"])
        plain["writers"], plain["warnings"] = tuple(plain["writers"]), tuple(plain["warnings"])
        return cls(**plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How long each part took, in milliseconds. ``hold_ms``: lease written to thaw rung."""

    hold_ms: float
    ack_ms: float
    drain_ms: float
    capture_ms: float
    thaw_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeFacts:
    """The freeze that the pair was taken in. Times are Unix seconds by Redis's clock."""

    epoch: int
    frozen_at: float
    thawed_at: float
    workers: tuple[str, ...]
    exempt: tuple[str, ...]
    gone: tuple[str, ...]
    loaded: str
    window: Window

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read back what ``asdict`` gave."""
        plain = dict(read_record(cls, record, "manifest.json: freeze"))
        for name in ("workers", "exempt", "gone"):
            plain[name] = tuple(plain[name])
        plain["window"] = Window(**read_record(Window, plain["window"], "manifest.json: window"))
        return cls(**plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """Digest and size of one file of a checkpoint."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """``manifest.json``: all facts of a checkpoint. A fact in `_ADDED` that is empty is left out.

    ``previous`` is the digest of the previous checkpoint's seal, empty for the first. ``files`` lists every other
    file of the checkpoint's directory but the manifest and the seal, by posix path. ``safety`` marks what a restore
    displaced. ``unheld`` names, by repository, the ignored files and empty directories that a captured tree lacks.
    ``release`` wrote it: a later one must re-encode the same bytes.
    """

    id: str
    federation: str
    uuid: str
    created_at: str
    signature: str
    repos: dict[str, str]
    soul: SoulFacts
    freeze: FreezeFacts
    files: dict[str, FileFact]
    previous: str = ""
    label: str = ""
    reason: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    safety: bool = False
    coalesced: int = 0
    worktree_check: str = "rescan"
    unheld: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    release: str = RELEASE

    def dumps(self) -> bytes:
        """Return the canonical JSON bytes."""
        plain = asdict(self)
        return canonical({"version": VERSION, **{name: fact for name, fact in plain.items()
                                                 if fact or name not in _ADDED}})

    @classmethod
    def loads(cls, data: bytes, where: str = "manifest.json") -> Self:
        """Read the bytes back.

        Raises:
            Damage: not JSON, of another version, odd fields, or not the canonical encoding of what it says.
        """
        plain = load_record(data, where)
        del plain["version"]
        try:
            plain = {**{name: {} for name in _ADDED}, **plain}
            read_record(cls, plain, where)
            plain["soul"] = SoulFacts.of(plain["soul"])
            plain["freeze"] = FreezeFacts.of(plain["freeze"])
            plain["files"] = {name: FileFact(**fact) for name, fact in plain["files"].items()}
            plain["warnings"] = tuple(plain["warnings"])
            plain["unheld"] = {path: tuple(names) for path, names in plain["unheld"].items()}
            manifest = cls(**plain)
            same = manifest.dumps() == data
        except (TypeError, AttributeError, ValueError) as error:
            raise Damage(f"a field has the wrong shape: {error}", where, "", "malformed") from error
        if not same:
            raise Damage("not the canonical encoding of what it says", where, "", "malformed")
        return manifest

    @property
    def bytes(self) -> int:
        """Size of all listed files."""
        return sum(fact.bytes for fact in self.files.values())

    def as_json(self) -> dict[str, Any]:
        """Return the object of `create --json` and `list --json` (without ``schema``)."""
        window = asdict(self.freeze.window)
        return {
            "id": self.id, "label": self.label or None, "state": "sealed", "signature": self.signature,
            "driver": self.soul.driver, "created_at": self.created_at, "workers": list(self.freeze.workers),
            "repos": dict(self.repos), "bytes": self.bytes, "coalesced": self.coalesced,
            "frozen_at": self.freeze.frozen_at, "thawed_at": self.freeze.thawed_at, "window": window,
            "safety": self.safety, "reason": self.reason or None, "tags": dict(self.tags),
            "warnings": [*self.warnings, *self.soul.warnings],
        }
