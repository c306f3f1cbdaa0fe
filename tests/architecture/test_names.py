"""Names say what a thing is; and nothing of this machine or of how the code was made stands in a committed file."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

from tests.architecture import rooms

CHECKOUT = rooms.ROOT.parent
#: Names that gather what has no place. `helper` is a program here, LYCH_HELPER.
SHAPELESS = re.compile(r"(^|_)(utils?|helpers|common|mixins?|misc|compat|base_?class|shared|tools|stuff)($|_)")
#: Words for which the project has another one.
OTHER_WORDS = re.compile(r"(^|_)(pause|suspend|resume|unfreeze|unpause)(d|s|_|$)")


def test_no_file_gathers_what_has_no_place() -> None:
    parts = {part for path in rooms.files() for part in path.relative_to(rooms.ROOT).with_suffix("").parts}
    assert {part for part in parts if SHAPELESS.search(part)} == set()


def test_no_class_is_a_mixin_and_inheritance_is_shallow() -> None:
    classes = {}
    for path in rooms.files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    assert not [name for name in classes if "mixin" in name.lower()]

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in classes.get(name, []) if base in classes), default=0)

    assert {name for name in classes if depth(name) > 2} == set()


def test_freeze_and_thaw_have_no_other_words() -> None:
    defined = {
        node.name for path in rooms.files() for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    # `resume` takes up a restore whose process died: no word for a thaw.
    assert {name for name in defined if OTHER_WORDS.search(name)} <= {"resume"}


def test_no_module_keeps_state() -> None:
    """A `global` statement is a module that remembers."""
    found = [
        f"{path.name}:{node.lineno}" for path in rooms.files() for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Global)
    ]
    assert found == []


def test_committed_files_name_no_place_of_their_making() -> None:
    listed = subprocess.run(["git", "-C", CHECKOUT, "ls-files", "-z"], check=False, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive has no list; its package is looked at all the same
        names = [str(path.relative_to(CHECKOUT)) for path in rooms.files()]
    else:
        names = [name for name in listed.stdout.split("\0") if name]
    # Put together here, so that this file does not hold what it looks for.
    parts = [r"(?<![\w/.])/" + r"work/(main|shared)", "pypi" + r"\.org", "files.python" + "hosted"]
    found_here = re.compile("|".join(parts))
    wrong = []
    for name in names:
        path = Path(CHECKOUT, name)
        if path.is_file():
            text = path.read_bytes().decode(errors="replace")
            wrong += [f"{name}: {match[0]}" for match in found_here.finditer(text)]
    assert wrong == []
