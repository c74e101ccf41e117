"""Each row of the threat table in docs/security.md has a test, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import swarmstep

ROOT = Path(swarmstep.__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
TABLE = PAGE.partition("## Who may do what on which wire")[2].partition("The words in bold")[0]


def test_each_claim_of_the_table_names_a_test_that_is_there() -> None:
    listed = dict(re.findall(r"^(\d+)\. (.*)$", TABLE, re.MULTILINE))
    assert {
        number for row in TABLE.splitlines() if row[:1] == "|" for number in re.findall(r"\[(\d+)\]", row)
    } == {*listed}
    for line in listed.values():
        names = re.findall(r"`(tests/\S+\.py)?::(\w+)`", line)
        assert len(names) == line.count("`") // 2 > 0
        file = ""
        for given, name in names:
            file = given or file
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), (file, name)
