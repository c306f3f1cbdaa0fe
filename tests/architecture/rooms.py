"""The rooms of the package, read from its source: who imports whom, and how long each file is."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import lych_checkpoint

PACKAGE = "lych_checkpoint"
ROOT = Path(lych_checkpoint.__file__).parent


@dataclass(frozen=True, slots=True)
class Import:
    """One import, at module level or inside a function."""

    file: str
    line: int
    module: str

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def files(root: Path = ROOT) -> list[Path]:
    """Return every module's file."""
    return sorted(root.rglob("*.py"))


def room_of_file(file: str) -> str:
    """Return the room a file belongs to: its folder below the package, or its own name."""
    return file.partition("/")[0].removesuffix(".py")


def room_of_module(module: str) -> str:
    """Return the room a module of the package belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path, root: Path = ROOT) -> str:
    """Return a file's dotted module name."""
    inside = path.relative_to(root).with_suffix("").parts
    return ".".join([PACKAGE, *inside]).removesuffix(".__init__")


def imports(root: Path = ROOT) -> list[Import]:
    """Return every import of every file; ``from package import room`` counts as an import of the room."""
    modules = {name_of(path, root) for path in files(root)}
    found = []
    for path in files(root):
        file = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found += [Import(file, node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}:{node.lineno}: relative imports hide which room is meant"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found.append(Import(file, node.lineno, full if full in modules else str(node.module)))
    return found
