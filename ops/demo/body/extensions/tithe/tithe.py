"""Tithe: a random account gives a tenth of what it has to the first."""

from __future__ import annotations

import random
from typing import Any

VERSION = 1


def move(connection: Any, version: str) -> None:
    """Move a tenth of a balance to account 0; both rows then carry ``version``."""
    source = random.randint(1, 100)
    rows = connection.execute("select id, balance from accounts where id in (0, %s) order by id for update", [source])
    coins = max(0, dict(rows.fetchall())[source]) // 10
    connection.execute("update accounts set version = %s, balance = balance + %s where id = 0", [version, coins])
    connection.execute(
        "update accounts set version = %s, balance = balance - %s where id = %s", [version, coins, source]
    )
    connection.execute(
        "insert into transfers (source, target, coins, version) values (%s, 0, %s, %s)", [source, coins, version]
    )
