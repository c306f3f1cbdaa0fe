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

from lych_checkpoint.errors import CheckpointError, Refused
from lych_checkpoint.manifest import RELEASE, VERSION, BodyLock, FileFact, Manifest, canonical, digest
from lych_checkpoint.vault.files import write_atomic, writing

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
        whole = replace(manifest, files={name: _fact(path) for name, path in _files(folder).items()}).dumps()
    write_atomic(folder / "manifest.json", whole)
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    write_atomic(folder / "seal", canonical({
        "version": VERSION, "release": RELEASE, "algorithm": "ed25519", "key": public.hex(),
        "manifest": digest(whole), "signature": key.sign(_DOMAIN + whole).hex(),
    }))


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
    damages = _signature_damages(whole, sealed, public)
    try:
        manifest = Manifest.loads(whole)
        damages += _file_damages(folder, manifest) + _lock_damages(folder, manifest)
    except CheckpointError as error:
        damages.append(f"{error.where}: {error.what}")
    return damages


def _signature_damages(whole: bytes, sealed: bytes, public: Ed25519PublicKey) -> list[str]:
    try:
        record = json.loads(sealed)
        signature = bytes.fromhex(record["signature"])
        named = (record["algorithm"], record["manifest"], record["version"], record["key"])
    except (ValueError, KeyError, TypeError):
        return ["seal is not a seal"]
    if canonical(record) != sealed or len(record) != len(named) + 2:
        return ["seal is not the canonical encoding of what it says"]
    ours = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    if record["key"] != ours:
        return [f"seal was made with another key ({str(record['key'])[:16]})"]
    if named[:3] != ("ed25519", digest(whole), VERSION) or record["release"] != RELEASE:
        return ["manifest.json is not the one that was sealed"]
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
        found = _files(folder)
    except (OSError, Refused) as error:
        return [*damages, f"the directory cannot be read: {error}"]
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
    except CheckpointError as error:
        return [f"lychd.lock: {error.what}"]
    if (lock.checkpoint, lock.signature, lock.commits) != (manifest.id, manifest.signature, manifest.repos):
        return ["lychd.lock and manifest.json speak of different bodies"]
    return []


def _files(folder: Path) -> dict[str, Path]:
    """Return every file below the folder by posix path; a link or device could point out of the seal's reach."""
    found = {}
    for parent, directories, names in os.walk(folder):
        for name in [*directories, *names]:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise Refused("neither a file nor a directory", str(path), "remove it", "strange-file")
    return {name: path for name, path in found.items() if name not in _UNLISTED}


def _fact(path: Path) -> FileFact:
    with path.open("rb") as file:
        return FileFact(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)
