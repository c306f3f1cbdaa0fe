"""Points on the shelf: copies that share a base and its WAL, and have only the last segment to themselves.

`base-<name>` is a backup of PGDATA, closed; `wal-<name>` holds whole segments since, each written once. A point holds
the segment in which it lies, cut there, and `point.json`, which names the rest. Each base has WAL of its own, for two
histories that a restore parted may call their segments the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from lych_checkpoint import progress
from lych_checkpoint.drivers import kernel, trees
from lych_checkpoint.drivers.clones import Clones, Tree, cut

_POINT, _BASE, _WAL = "point.json", "base-", "wal-"
_HISTORY = re.compile(r"[0-9A-F]{8}\.history")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a copy needs: a base, whole segments since then by file name in order, and its own last one."""

    base: str
    segments: tuple[str, ...]
    last: str


@dataclass(frozen=True, slots=True)
class Archive:
    """Bases, their WAL and points among the copies on ``shelf``, where displaced data lie whole."""

    shelf: Clones

    def live_bytes(self) -> int:
        """Return how many bytes PGDATA holds, its WAL included."""
        with kernel.directory(self.shelf.pgdata) as top:
            return trees.size_bytes(top)

    def take_base(self, base: str) -> None:
        """Copy a live PGDATA, in backup mode, as the base of that name, with the timelines known so far."""
        with (
            self.shelf.opened() as shelf,
            progress.told("the base", lambda: trees.held_bytes(_BASE + base, shelf), self.live_bytes()),
        ):
            self.shelf.take(_BASE + base)
        with self.shelf.opened() as shelf, kernel.directory(_BASE + base, inside=shelf) as top:
            with trees.made(_WAL + base, shelf, os.fstat(top)):
                pass
            self._take_histories(top)

    def close_base(self, base: str, label: str) -> int:
        """Give the base its backup_label, and close it; durable when it returns. Returns how many bytes it holds."""
        self.shelf.write(_BASE + base, "backup_label", label.encode())
        self.shelf.close(_BASE + base, read_only=True)
        with self.shelf.opened() as shelf:
            return trees.held_bytes(_BASE + base, shelf)

    def remove_base(self, base: str) -> None:
        """Remove a base and its WAL; gone already is gone."""
        self.shelf.remove(_BASE + base)
        self.shelf.remove(_WAL + base)

    def digest(self, segment: str, length: int) -> str:
        """Return a digest of the first bytes of a live segment, which no other history shares; empty if it went."""
        seen = hashlib.sha256()
        try:
            with kernel.directory(self.shelf.pgdata) as live, kernel.directory("pg_wal", inside=live) as wal:
                opened = os.open(segment, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=wal)
        except FileNotFoundError:
            return ""
        with os.fdopen(opened, "rb") as file:
            while piece := file.read(min(_PIECE_BYTES, length)):
                seen.update(piece)
                length -= len(piece)
        return "" if length else seen.hexdigest()

    def take_segments(self, point: Point, segment_bytes: int, proven_below: str) -> None:
        """Add to the base's WAL what it lacks of the point's whole segments, from the live server.

        Args:
            point: see there.
            segment_bytes: the server's wal_segment_size.
            proven_below: the segment below which this WAL is known to be of the server's own history. What lies
                there from it on was left by a try that failed, and is taken anew.

        Raises:
            Damage: one is gone.
        """
        with self.shelf.opened() as shelf, kernel.directory(_WAL + point.base, inside=shelf) as kept:
            for name in os.listdir(kept):
                if name >= proven_below:
                    os.unlink(name, dir_fd=kept)
            for segment in sorted({*point.segments} - {*os.listdir(kept)}):
                self.shelf.take_segment(segment, kept, segment_bytes, begun := f"{segment}.new")
                kernel.sync(kept)
                os.rename(begun, segment, src_dir_fd=kept, dst_dir_fd=kept)

    def take_point(self, name: str, point: Point, segment_bytes: int, cut_at: int) -> None:
        """Write the point ``name``, with the live segment in which it lies up to there.

        Raises:
            Damage: the segment is gone.
        """
        with self.shelf.opened() as shelf, kernel.directory(_BASE + point.base, inside=shelf) as like, \
                trees.made(name, shelf, os.fstat(like)) as top:
            self.shelf.take_segment(point.last, top, segment_bytes)
            cut(point.last, top, cut_at)
        self.shelf.write(name, _POINT, json.dumps(asdict(point)).encode())

    def point(self, name: str) -> Point | None:
        """Return what the copy ``name`` needs, or None if it is whole, or not there."""
        try:
            with self.shelf.opened() as shelf, kernel.directory(name, inside=shelf) as top:
                opened = os.open(_POINT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except FileNotFoundError:
            return None
        with os.fdopen(opened) as file:
            said = json.load(file)
        return Point(base=said["base"], segments=tuple(said["segments"]), last=said["last"])

    def bytes_of(self, name: str) -> int:
        """Return at most how many bytes a copy of ``name`` would hold, shared ones included."""
        point = self.point(name)
        names = [name] if point is None else [_BASE + point.base, _WAL + point.base, name]
        with self.shelf.opened() as shelf:
            total = 0
            for each in names:
                with kernel.directory(each, inside=shelf) as top:
                    total += trees.size_bytes(top)
            return total

    def lacking(self, name: str) -> list[str]:
        """Return what a point needs that is not there, by path below the shelf."""
        point = self.point(name)
        if point is None:
            return []
        wanted = [f"{_BASE}{point.base}/backup_label", *(f"{_WAL}{point.base}/{one}" for one in point.segments),
                  f"{name}/{point.last}"]
        return [one for one in wanted if not (self.shelf.path / one).is_file()]

    def generation(self, name: str) -> int:
        """Return a digest of every file's name, inode, size, owner, mode and times, in a point's base and WAL too.

        Raises:
            OSError: something is `lacking`.
        """
        point = self.point(name)
        if point is None:
            return self.shelf.generation(name)
        return trees.number([*self._looks(point.base, point.segments), str(self.shelf.generation(name)).encode()])

    def state(self, base: str, below: str) -> int:
        """Return a digest as of `generation` of a base and its WAL below that segment; 0 if one is gone."""
        try:
            with self.shelf.opened() as shelf, kernel.directory(_WAL + base, inside=shelf) as kept:
                segments = sorted(name for name in os.listdir(kept) if name < below)
            return trees.number(self._looks(base, segments))
        except FileNotFoundError:
            return 0

    def unfold(self, name: str, writable: str) -> Tree:
        """Copy ``name`` writable; of a point its base with all WAL up to it, ready to recover to a target."""
        point = self.point(name)
        if point is None:
            return self.shelf.unfold(name, writable)
        found = self.shelf.unfold(_BASE + point.base, writable)
        with self.shelf.opened() as shelf, kernel.directory(writable, inside=shelf) as top, \
                kernel.directory("pg_wal", inside=top) as target:
            with kernel.directory(_WAL + point.base, inside=shelf) as kept:
                for segment in point.segments:
                    trees.duplicate(segment, kept, target)
            with kernel.directory(name, inside=shelf) as own:
                trees.duplicate(point.last, own, target)
            self._take_histories(top)  # what follows the restore must be called by no name that was given before
        self.shelf.write(writable, "recovery.signal", b"")
        self.shelf.sync()
        return found

    def is_needed(self, base: str) -> bool:
        """Whether a point needs that base."""
        return any(point.base == base for point in self._points())

    def sweep(self, keep: str) -> set[str]:
        """Remove bases that no point needs, but ``keep``, and WAL behind the last point. Returns the bases left."""
        needed: dict[str, set[str]] = {}
        names = [path.name for path in self.shelf.path.iterdir() if path.is_dir()]
        for point in self._points():
            needed.setdefault(point.base, set()).update(point.segments)
        bases = {name.removeprefix(prefix) for prefix in (_BASE, _WAL) for name in names if name.startswith(prefix)}
        for base in bases - {keep}:
            if base not in needed:
                self.remove_base(base)
                continue
            with self.shelf.opened() as shelf, kernel.directory(_WAL + base, inside=shelf) as kept:
                for segment in set(os.listdir(kept)) - needed[base]:
                    os.unlink(segment, dir_fd=kept)
        return bases & {keep, *needed}

    def _points(self) -> list[Point]:
        names = [path.name for path in self.shelf.path.iterdir() if path.is_dir()]
        return [point for point in map(self.point, names) if point is not None]

    def _looks(self, base: str, segments: Iterable[str]) -> list[bytes]:
        with self.shelf.opened() as shelf, kernel.directory(_WAL + base, inside=shelf) as kept:
            looks = [trees.look(one, os.stat(one, dir_fd=kept, follow_symlinks=False)) for one in segments]
        return [*looks, str(self.shelf.generation(_BASE + base)).encode()]

    def _take_histories(self, top: int) -> None:
        with kernel.directory(self.shelf.pgdata) as live, kernel.directory("pg_wal", inside=live) as source, \
                kernel.directory("pg_wal", inside=top) as target:
            for name in set(os.listdir(source)) - set(os.listdir(target)):
                if _HISTORY.fullmatch(name):
                    trees.duplicate(name, source, target)
