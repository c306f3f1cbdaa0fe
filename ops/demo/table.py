"""What the demo says: each step as it happens, with what it proves, and the table of times at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Story:
    """Prints phases and claims and remembers how long each phase took."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._phases: list[tuple[str, float]] = []
        self._claims = 0
        self._began_s = time.monotonic()

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Time the body as one phase."""
        self._console.print(f"\n[bold]{escape(title)}[/bold]")
        began_s = time.monotonic()
        yield
        self._phases.append((title, time.monotonic() - began_s))

    def note(self, text: str) -> None:
        """Say a fact."""
        self._console.print(f"   {escape(text)}")

    def quote(self, text: str) -> None:
        """Show what a program printed."""
        for line in text.splitlines():
            self._console.print(f"   [dim]|[/dim] {escape(line)}", soft_wrap=True)

    def proven(self, claim: str) -> None:
        """Say what was just shown to hold; the caller has checked it."""
        self._claims += 1
        self._console.print(f"   [green]✓[/green] {escape(claim)}")

    def failed(self, text: str) -> None:
        """Say why the demo ends here."""
        self._console.print(f"\n[bold red]✗ {escape(text)}[/bold red]", soft_wrap=True)

    def end(self, freezes: list[dict[str, Any]]) -> None:
        """Print the tables: phases, and every freeze with its parts in milliseconds."""
        phases = Table(title="How long each phase took")
        phases.add_column("phase")
        phases.add_column("seconds", justify="right")
        for title, took_s in self._phases:
            phases.add_row(title, f"{took_s:.2f}")
        phases.add_section()
        phases.add_row("all", f"{time.monotonic() - self._began_s:.2f}")
        windows = Table(title="How long workers stood still, in ms")
        for column in ("checkpoint", "acks", "drain", "capture", "thaw", "hold"):
            windows.add_column(column, justify="left" if column == "checkpoint" else "right")
        for one in freezes:
            window = one["window"]
            parts = (window[f"{part}_ms"] for part in ("ack", "drain", "capture", "thaw", "hold"))
            windows.add_row(one["label"] or one["id"], *(f"{part:.1f}" for part in parts))
        self._console.print()
        self._console.print(phases)
        self._console.print(windows)
        self._console.print(f"\n[bold green]{self._claims} claims, each checked.[/bold green]")
