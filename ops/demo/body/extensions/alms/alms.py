"""Alms: a random account gives a little to another."""

from __future__ import annotations

import random
from typing import Any

VERSION = 1


def move(connection: Any, version: str) -> None:
    """Move one to nine coins; both rows then carry ``version``."""
    source, target = random.sample(range(1, 101), 2)
    connection.execute("select from accounts where id in (%s, %s) order by id for update", [source, target])
    connection.execute(
        "update accounts set version = %s, balance = balance + case id when %s then -%s else %s end"
        " where id in (%s, %s)",
        [version, source, coins := random.randint(1, 9), coins, source, target],
    )
    connection.execute(
        "insert into transfers (source, target, coins, version) values (%s, %s, %s, %s)",
        [source, target, coins, version],
    )
