"""The plan of a restore: what goes and what comes, in commits and rows, and how long earlier restores took."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.fixtures.client import wait_until
from tests.fixtures.federation import commit, git
from tests.fixtures.workers import Lych


def test_the_plan_counts_what_goes_and_what_comes(lych: Lych, federation_root: Path, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute('create table "Odd name" as select generate_series(1, 10) as id')
        connection.execute("create table calm as select 1 as id")
    assert lych("init").code == 0
    made = lych("create", "--here", "--json").json["id"]
    core = federation_root / "core"
    back = git(core, "rev-parse", "HEAD")
    ahead = [commit(core, {"README": f"{number}\n"}, f"Number {number}") for number in range(3)]
    with psycopg.connect(database) as connection:
        connection.execute('insert into "Odd name" values (11), (12)')
        connection.execute('update "Odd name" set id = -id where id <= 3')
        connection.execute('delete from "Odd name" where id = 12')
    rows = {'public."Odd name"': {"inserted": 2, "updated": 3, "deleted": 1}}
    wait_until(lambda: lych("restore", made, "--dry-run", "--json").json["rows"] == rows)  # statistics come late
    (core / "loose").write_bytes(b"x" * 3_000_000)
    plan = lych("restore", made, "--dry-run", "--json").json
    assert plan["repos"]["core"]["uncommitted"] == {"count": 1, "named": ["loose (untracked)"],
                                                    "size_bytes": 3_000_000}
    assert plan["repos"]["extensions/beta"]["uncommitted"]["count"] == 0
    assert 6_000_000 < plan["safety"]["needed_bytes"] < 7_000_000  # its raw bytes, and their bundle
    assert plan["neighbours"] == []  # dump brings one database back
    planned = plan["repos"]["core"]
    assert (planned["from"], planned["to"], planned["relation"]) == (ahead[-1], back, "behind")
    assert (planned["goes"]["count"], planned["comes"]["count"]) == (3, 0)
    assert planned["goes"]["named"][0] == [ahead[-1], "Number 2"]
    assert plan["expected"] is None
    text = lych("restore", made, "--dry-run").out
    for part in ('public."Odd name"  2         3        1', "3           0", "is not known: none ran here",
                 "uncommitted work goes too: 1 in core, such as loose (untracked)",
                 "how many messages wait is not known"):
        assert part in text, text
    assert git(core, "rev-parse", "HEAD") == ahead[-1]

    assert lych("restore", made, "--yes").code == 0
    again = lych("restore", "--undo", "--dry-run", "--json").json
    assert again["rows"] is None  # these data count anew
    assert again["expected"]["runs"] == 1
    assert 0 < again["expected"]["still_s"] < again["expected"]["total_s"]
    assert (again["repos"]["core"]["comes"]["count"], again["repos"]["core"]["goes"]["count"]) == (3, 0)
    assert "how many rows changed since is not known" in lych("restore", "--undo", "--dry-run").out


@pytest.mark.parametrize("soul", ["pitr"], indirect=True)
def test_the_plan_names_the_other_databases_of_a_cluster(
    soul: dict[str, str], lych_environment: dict[str, str], lych: Lych
) -> None:
    lych_environment.update(soul)
    with psycopg.connect(soul["LYCH_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("create database neighbour")
    assert lych("init").code == 0
    assert lych("create", "--here").code == 0
    assert lych("restore", "latest", "--dry-run", "--json").json["neighbours"] == ["neighbour"]
    assert "so these databases too: neighbour" in lych("restore", "latest", "--dry-run").out
