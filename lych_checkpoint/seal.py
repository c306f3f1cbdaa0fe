"""The seal: an Ed25519 signature over the manifest, which lists every byte of the checkpoint. Written last."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lych_checkpoint.errors import Damage, Refused
from lych_checkpoint.manifest import BodyLock, FileFact, Manifest
from lych_checkpoint.records import RELEASE, VERSION, canonical, digest
from lych_checkpoint.vault import write_atomic, writing

_DOMAIN = b"lych-seal-v1\0"
_UNLISTED = ("manifest.json", "seal")


def make_key(path: Path) -> None:
    """Make the signing key, readable by its owner alone; an existing one is kept."""
    if path.exists():
        load_key(path)
        return
    with writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the signing key.

    Raises:
        Refused: it is missing, unreadable, or no Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise Refused("the signing key is missing", str(path), "lych-checkpoint init", "key-missing") from error
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(f"the signing key cannot be read: {error}", str(path), "set LYCH_SIGNING_KEY",
                      "key-unreadable") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused("the signing key is no Ed25519 key", str(path), "set LYCH_SIGNING_KEY", "key-unreadable")
    return key


def seal(folder: Path, manifest: Manifest, key_path: Path) -> None:
    """Digest every file in ``folder``, write the manifest with them, and the seal over it.

    Raises:
        Refused: no key, no room, or something in the folder is neither a file nor a directory.
    """
    key = load_key(key_path)
    with writing(folder):
        files, strange = _files(folder)
        if strange:
            raise Refused("neither a plain file nor a directory, or its name is not UTF-8", f"{folder}/{strange[0]}",
                          "remove it", "strange-file")
        facts = {name: _fact(path) for name, path in files.items()}
    whole = replace(manifest, files=facts, release=RELEASE).dumps()
    write_atomic(folder / "manifest.json", whole)
    write_atomic(folder / "seal", _seal_of(whole, RELEASE, key.public_key(), key.sign(_DOMAIN + whole)))


def verify(folder: Path, key_path: Path) -> list[str]:
    """Compare every byte of a sealed checkpoint with what was sealed.

    Returns:
        Each damage in one sentence; an empty list when all is whole.

    Raises:
        Refused: the signing key cannot be read, so nothing can be said.
    """
    public = load_key(key_path).public_key()
    try:
        whole, sealed = (folder / "manifest.json").read_bytes(), (folder / "seal").read_bytes()
    except OSError as error:
        return [f"{Path(str(error.filename)).name} is missing or cannot be read: {error.strerror}"]
    try:
        manifest = Manifest.loads(whole)
    except Damage as error:
        return [f"{error.where}: {error.what}"]
    return (_seal_damages(whole, sealed, manifest.release, public) + _file_damages(folder, manifest)
            + _lock_damages(folder, manifest))


def sealed_lock(folder: Path, key_path: Path) -> BodyLock | None:
    """Return the lock of a checkpoint as it was sealed, or None; nothing else of the checkpoint is read."""
    try:
        whole, sealed, text = ((folder / name).read_bytes() for name in ("manifest.json", "seal", "lychd.lock"))
        manifest, public = Manifest.loads(whole), load_key(key_path).public_key()
        fact = FileFact(sha256=hashlib.sha256(text).hexdigest(), bytes=len(text))
        if _seal_damages(whole, sealed, manifest.release, public) or manifest.files.get("lychd.lock") != fact:
            return None
        return BodyLock.loads(text.decode())
    except (OSError, UnicodeDecodeError, Damage, Refused):
        return None


def _seal_of(whole: bytes, release: str, public: Ed25519PublicKey, signature: bytes) -> bytes:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return canonical({
        "version": VERSION, "release": release, "algorithm": "ed25519", "key": raw.hex(),
        "manifest": digest(whole), "signature": signature.hex(),
    })


def _seal_damages(whole: bytes, sealed: bytes, release: str, public: Ed25519PublicKey) -> list[str]:
    """Return what is wrong with the seal; every byte of it follows from the manifest, the key and the signature."""
    try:
        record = json.loads(sealed)
        key, named, signature = record["key"], record["manifest"], bytes.fromhex(record["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["seal is not a seal"]
    expected = json.loads(_seal_of(whole, release, public, signature))
    if key != expected["key"]:
        return [f"seal was made with another key ({str(key)[:16]})"]
    if named != expected["manifest"]:
        return ["manifest.json is not the one that was sealed"]
    if sealed != canonical(expected):
        return ["seal is not what was written"]
    try:
        public.verify(signature, _DOMAIN + whole)
    except InvalidSignature:
        return ["seal does not fit manifest.json"]
    return []


def _file_damages(folder: Path, manifest: Manifest) -> list[str]:
    damages = []
    if manifest.id != folder.name:
        damages.append(f"the directory is named {folder.name}, sealed was {manifest.id}")
    try:
        found, strange = _files(folder)
    except OSError as error:
        return [*damages, f"the directory cannot be read: {error}"]
    damages += [f"{name} was added, and is no plain file" for name in strange]
    damages += [f"{name} was added" for name in sorted(set(found) - set(manifest.files))]
    for name, fact in sorted(manifest.files.items()):
        if name not in found:
            damages.append(f"{name} is missing")
            continue
        try:
            if _fact(found[name]) != fact:
                damages.append(f"{name} was changed")
        except OSError as error:
            damages.append(f"{name} cannot be read: {error.strerror}")
    return damages


def _lock_damages(folder: Path, manifest: Manifest) -> list[str]:
    try:
        lock = BodyLock.loads((folder / "lychd.lock").read_text())
    except (OSError, UnicodeDecodeError):
        return []  # missing or changed, and named so already
    except Damage as error:
        return [f"lychd.lock: {error.what}"]
    if (lock.checkpoint, lock.signature, lock.commits) != (manifest.id, manifest.signature, manifest.repos):
        return ["lychd.lock and manifest.json speak of different bodies"]
    return []


def _files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return every file below the folder by posix path, and what else is there.

    A link or device could point out of the seal's reach; a name that is not UTF-8 has no place in a manifest.
    """
    found, strange = {}, []
    for parent, directories, names in os.walk(folder, onerror=_give_up):
        for name in [*directories, *names]:
            path = Path(parent, name)
            relative, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            readable = relative.encode(errors="surrogateescape").decode(errors="backslashreplace")
            if stat.S_ISREG(mode) and readable == relative:
                found[relative] = path
            elif not stat.S_ISDIR(mode):
                strange.append(readable)
    return {name: path for name, path in found.items() if name not in _UNLISTED}, sorted(strange)


def _give_up(error: OSError) -> None:
    raise error


def _fact(path: Path) -> FileFact:
    with path.open("rb") as file:
        return FileFact(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)
