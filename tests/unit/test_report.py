"""What a report says, and that it says it safely."""

from __future__ import annotations

import base64
import csv as reader
import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.compare.sections import (
    ClockError,
    Curve,
    CurvePoint,
    Distrusted,
    Edge,
    MethodRow,
    Section,
    ToTarget,
)
from swarmstep.compare.statistics import Estimate
from swarmstep.report import advice, csv, markdown, page
from swarmstep.report.figures import trust
from swarmstep.report.labels import DASH, conclusion, duration, interval, ranges, value

NAN = math.nan
UNKNOWN = Estimate(NAN, NAN, NAN, 0)
NASTY = "</script><img src=x onerror=alert(1)> | `x` & \"y\" 'z'"
ODD = st.text(st.sampled_from("|\\`<>&/'\"*_=,+ ab\u2028"), min_size=1, max_size=9)
NAMES = ODD | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


def sure(mean: float, half: float = 0.0) -> Estimate:
    return Estimate(mean, mean - half, mean + half, 3)


def row(
    method: str, every: int, seconds: float, rank: int | None = 1, verdict: str = "best", **changes: Any
) -> MethodRow:
    """Return a row that took `seconds` to the target."""
    steps = sure(seconds * 10) if math.isfinite(seconds) else UNKNOWN
    to_target = ToTarget(3, 3, steps, sure(seconds * 1e6), sure(seconds))
    made = MethodRow(
        *(method, every, {"lr": "0.05"}, 4, (0, 1, 2), ()),
        *(sure(0.97, 0.01), sure(0.1, 0.02), sure(2e6), sure(200.0), to_target, rank, verdict),
    )
    return dataclasses.replace(made, **changes)


def section(*rows: MethodRow, **changes: Any) -> Section:
    """Return a section of these rows with a curve for each."""
    points = (CurvePoint(0, 0.0, 0.0, sure(0.1), sure(2.3)), CurvePoint(9, 5e5, 1.0, sure(0.97, 0.01), sure(0.1)))
    curves = tuple(Curve(one.method, one.every, points) for one in rows)
    by_n = {one.method: ((4, one.accuracy), (16, one.accuracy)) for one in rows}
    made = Section(
        *("digits mlp, 4 workers", {"workers": "4"}, "100mbit,5ms", False, "test accuracy 0.95"),
        *(rows, curves, by_n, (), (), "swarmstep compare digits", {"torch": "2.6.0"}, 9),
    )
    return dataclasses.replace(made, **changes)


SWARM = row("swarm", 64, 100.0)
DILOCO = row("diloco", 64, 120.0, 2, "behind by 20 ± 3 s")
CLOSE = row("diloco", 64, 101.0, 1, "not distinguishable from the best")
UNRANKED = row("local-sgd", 4, NAN, None, "not ranked: 1 seed")


class Page(HTMLParser):
    """What an HTML parser sees: elements, their text, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "wbr"):
            self._open.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open[-1]][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.inside["script"][0], parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (NAN, DASH),
            (math.inf, DASH),
            (0.0, "0.0 s"),
            (0.00042, "0.42 ms"),
            (0.045, "45 ms"),
            (0.9996, "1.0 s"),
        ),
        *((12.34, "12.3 s"), (59.96, "1 min"), (200, "3 min 20 s"), (3599.9, "1 h"), (7500, "2 h 5 min")),
        *((86399.0, "1 d"), (90000.0, "1 d 1 h")),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert value(seconds, "seconds") == text


@given(st.floats(1e-4, 1e7))
def test_a_duration_says_what_it_is(seconds: float) -> None:
    units = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    parts = re.findall(r"([\d.]+) (ms|s|min|h|d)", duration(seconds))
    assert sum(float(number) * units[unit] for number, unit in parts) == pytest.approx(seconds, rel=0.06)
    smaller = [float(number) * units[unit] for number, unit in parts[1:]]
    assert all(size < units[unit] for size, (_, unit) in zip(smaller, parts, strict=False))


def test_numbers_that_are_not_known_are_dashes() -> None:
    assert DASH == "\N{EN DASH}"
    assert {value(NAN, kind) for kind in ("accuracy", "loss", "steps", "bytes", "seconds")} == {DASH}
    assert interval(Estimate(0.5, NAN, NAN, 1), "accuracy") == ""
    assert interval(sure(0.5, 0.01), "accuracy") == "0.4900 to 0.5100"
    assert interval(sure(0.5, 0.00001), "accuracy") == ""  # it reads the same
    assert value(1_234_000, "bytes") == "1.2 MB"


@given(st.sets(st.integers(0, 40)))
def test_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    expanded: set[int] = set()
    for part in ranges(sorted(numbers)).split(", ") if numbers else []:
        first, _, last = part.partition(" to ")
        expanded |= set(range(int(first), int(last or first) + 1))
    assert expanded == numbers


FIRST = "First at test accuracy 0.95 over 100 Mbit/s and 5 ms"
AHEAD = f"{FIRST}: swarm, n = 64 — 1 min 40 s; diloco, n = 64 takes 1.2 times as long, beyond chance with 3 seeds"
NO_SECONDS = ToTarget(3, 3, sure(50.0), sure(1e6), UNKNOWN)
NO_SECONDS_LATER = ToTarget(3, 3, sure(100.0), sure(1e6), UNKNOWN)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            section(SWARM, DILOCO),
            AHEAD,
        ),
        (  # another n of the same method is no other method
            section(
                SWARM, dataclasses.replace(DILOCO, method="swarm", every=4), dataclasses.replace(DILOCO, rank=3)
            ),
            AHEAD,
        ),
        (
            section(SWARM, CLOSE, UNRANKED),
            f"{FIRST}: a tie — 3 seeds cannot tell swarm, n = 64 and diloco, n = 64 apart",
        ),
        (
            section(SWARM, CLOSE, dataclasses.replace(DILOCO, rank=3, every=8)),
            f"{FIRST}: a tie — 3 seeds cannot tell swarm, n = 64 and diloco, n = 64 apart; "
            "diloco, n = 8 takes 1.2 times as long",
        ),
        (section(SWARM, UNRANKED), f"{FIRST}: swarm, n = 64 — 1 min 40 s; no other one is ranked"),
        (
            section(SWARM, dataclasses.replace(UNRANKED, to_target=None)),
            f"{FIRST}: swarm, n = 64 — 1 min 40 s; the only one that reached it with all its seeds",
        ),
        (section(UNRANKED, UNRANKED), "Fewest steps to test accuracy 0.95: not ranked — 1 seed"),
        (section(), "Fewest steps to test accuracy 0.95: not ranked — no runs"),
        (
            section(
                dataclasses.replace(SWARM, to_target=NO_SECONDS),
                dataclasses.replace(DILOCO, to_target=NO_SECONDS_LATER),
            ),
            "Fewest steps to test accuracy 0.95: swarm, n = 64 — 50 steps; diloco, n = 64 takes 2 times as many, "
            "beyond chance with 3 seeds",
        ),
        (
            section(SWARM, dataclasses.replace(DILOCO, accuracy=sure(0.9)), target=""),
            "Highest test accuracy at the end: swarm, n = 64 — 0.9700; diloco, n = 64 has 0.9000, "
            "beyond chance with 3 seeds",
        ),
        (
            section(dataclasses.replace(SWARM, accuracy=UNKNOWN), target=""),
            "Test loss at the end: 0.1000 — swarm, n = 64, 3 seeds; there is nothing to compare it with",
        ),
        (
            section(dataclasses.replace(SWARM, rank=None, seeds=(0,), verdict="not ranked: 1 seed"), link=""),
            "Time to test accuracy 0.95: 1 min 40 s — swarm, n = 64, 1 seed; there is nothing to compare it with",
        ),
    ],
)
def test_the_conclusion_is_one_sentence(made: Section, text: str) -> None:
    assert str(conclusion(made)) == text


def test_a_mean_over_the_seeds_that_reached_the_target_is_not_shown_as_if_all_had() -> None:
    costs = ToTarget(2, 3, sure(777.0), sure(7.77e6), sure(7.77))
    some = row("diloco", 4, 7.77, None, "not ranked: 2 of 3 seeds reached the target", to_target=costs)
    for text in (markdown([section(SWARM, some)]), page([section(SWARM, some)], "t")):
        assert "2 of 3" in text
        assert not re.search(r"\b(777|7\.8)\b", text)
    line = list(reader.DictReader(io.StringIO(csv([section(SWARM, some)]))))[1]  # with its count beside it
    assert (line["reached"], line["of"], line["target_steps"]) == ("2", "3", "777.0")


def test_csv_has_all_numbers_raw() -> None:
    exact = dataclasses.replace(SWARM, accuracy=Estimate(0.1 + 0.2, 1 / 3, 0.7, 3))
    lines = list(reader.DictReader(io.StringIO(csv([section(exact, UNRANKED), section(DILOCO, target="")]))))
    assert [line["method"] for line in lines] == ["swarm", "local-sgd", "diloco"]
    assert [float(lines[0][f"accuracy{end}"]) for end in ("", "_low", "_high")] == [0.1 + 0.2, 1 / 3, 0.7]
    assert (lines[0]["rank"], lines[1]["rank"], lines[1]["target_seconds"]) == ("1", "", "")
    assert (lines[0]["condition_workers"], lines[0]["chosen"], lines[0]["seeds"]) == ("4", "lr=0.05", "0 1 2")
    assert csv([]) == "section\n"


def test_what_to_know_beside_the_table_is_said_everywhere() -> None:
    assert SWARM.to_target
    at_edge = dataclasses.replace(
        SWARM, edge=Edge(0.03, (0.003, 0.01, 0.03), "upwards"), to_target=SWARM.to_target._replace(interval=20.0)
    )
    needs = dataclasses.replace(DILOCO, seeds_needed={"0.5 points of accuracy": 1234, "2 % of the time": 5})
    made = section(at_edge, needs, tuned_on="validation accuracy, as the target is one")
    warning = (
        "the best rate of swarm, n = 64 lies at the edge of its grid (0.03 of 0.003, 0.01, 0.03): "
        "extend --lr-grid upwards"
    )
    expected = [
        warning,
        "seeds that tell 0.5 points of accuracy from the best, with 80 % power at 95 %: 1,234 (diloco, n = 64)",
        "seeds that tell 2 % of the time from the best, with 80 % power at 95 %: 5 (diloco, n = 64)",
        "the target was looked for every 20 steps: methods closer than that are not told apart by it",
        "tuned on the validation accuracy, as the target is one",
    ]
    assert [line[2:] for line in markdown([made]).splitlines() if line.startswith("- ")] == expected
    assert [item for item in Page(page([made], "t")).inside["li"][1:] if item.strip()] == [
        f"{text[0].upper()}{text[1:]}." for text in expected
    ]
    said = advice([made])
    assert said["tuned_on"] == [made.tuned_on]
    where = {"section": made.title, "link": made.link, "every": 64}
    assert said["edges"] == [
        {
            **where,
            "method": "swarm",
            "rate": 0.03,
            "rates": (0.003, 0.01, 0.03),
            "direction": "upwards",
            "text": warning,
        }
    ]
    assert said["seeds_needed"] == [
        {**where, "method": "diloco", "difference": "0.5 points of accuracy", "seeds": 1234},
        {**where, "method": "diloco", "difference": "2 % of the time", "seeds": 5},
    ]


def test_of_many_rows_the_notes_are_as_short() -> None:
    edge = Edge(0.003, (0.003, 0.01), "downwards")
    rows = [
        dataclasses.replace(DILOCO, method=method, edge=edge, seeds_needed={"0.5 points of accuracy": seeds})
        for method, seeds in (("a", 7), ("b", 90), ("c", 5), ("d", 12))
    ]
    assert [line for line in markdown([section(SWARM, *rows)]).splitlines() if line.startswith("- ")] == [
        "- the best rate of a, n = 64, b, n = 64, c, n = 64 and d, n = 64 lies at the edge of the grid of each "
        "(0.003 of 0.003, 0.01): extend --lr-grid downwards",
        "- seeds that tell 0.5 points of accuracy from the best, with 80 % power at 95 %: "
        "5 (c, n = 64) to 90 (b, n = 64)",
    ]


def test_where_there_is_nothing_to_know_nothing_is_said() -> None:
    plain = section(SWARM, DILOCO)
    assert "\n- " not in markdown([plain])
    assert 'class="notes"' not in page([plain], "t")
    assert advice([plain]) == {"tuned_on": [], "edges": [], "seeds_needed": []}


@given(NAMES, NAMES)
def test_names_survive_in_csv_and_cannot_break_the_tables(name: str, why: str) -> None:
    made = [section(dataclasses.replace(SWARM, method=name, verdict=why, failed=(why,)), title=why)]
    line = next(reader.DictReader(io.StringIO(csv(made), newline="")))
    assert (line["method"], line["verdict"], line["section"]) == (name, why, why)
    table = [line for line in markdown(made).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table}) == 1
    assert len(table) == 3
    parsed = Page(page(made, name))
    assert len(parsed.inside["script"]) == 2
    assert parsed.data["methods"] == [name]
    assert not {tag for tag, _ in parsed.elements} & {"img", "iframe", "link", "object", "base", "form"}


def test_markdown_has_no_columns_that_no_row_knows() -> None:
    without = dataclasses.replace(UNRANKED, seconds=UNKNOWN, accuracy=UNKNOWN)
    head = markdown([section(without)]).splitlines()[4]
    assert head == "| method | n | reached | loss | sent in all | verdict | tuned | seeds |"


def test_the_page_asks_for_nothing_and_runs_only_its_own_script() -> None:
    text = page([section(row(NASTY, 64, 100.0), title=NASTY, command=NASTY)], NASTY)
    parsed = Page(text)
    assert "<img" not in text
    links = [str(given[key]) for _, given in parsed.elements for key in ("src", "href", "action") if key in given]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not any(key.startswith("on") or key == "style" for _, given in parsed.elements for key in given)
    policy = next(given["content"] for _, given in parsed.elements if "http-equiv" in given)
    assert policy is not None
    assert "default-src 'none'" in policy
    for source, content in (("script", parsed.inside["script"][1]), ("style", parsed.inside["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{source}-src 'sha256-{digest}'" in policy
    outside = re.sub(r"http://www\.w3\.org/(2000/svg|1999/xhtml)", "", text)  # names of languages, never fetched
    assert not re.search(r"https?:|url\((?!#)|@import", outside)
    assert parsed.inside["h1"] == [NASTY]
    assert parsed.inside["code"][0] == NASTY


def test_the_page_shows_all_there_is() -> None:
    failed = row("pso-ps", 4, NAN, None, "not ranked: all runs failed", failed=("rank 1: NaN", "rank 1: NaN"))
    made = section(
        SWARM,
        CLOSE,
        dataclasses.replace(failed, accuracy=UNKNOWN, loss=UNKNOWN, bytes=UNKNOWN, seconds=UNKNOWN),
        trust=(Distrusted("swarm", 64, 7, ((4, (1,)), (6, ())), 10), Distrusted("swarm", 64, 8, (), 10)),
        clock_errors=(ClockError("swarm", 64, 200.0, 190.0, -0.05), ClockError("pso-ps", 4, 1.0, NAN, NAN)),
    )
    text = page([made, made], "All")
    parsed = Page(text)
    cells = [cell for tag in ("td", "th", "small") for cell in parsed.inside[tag]]
    assert not {"nan", "NaN", "None", "inf"} & set(cells)
    for expected in (
        "not distinguishable from the best",
        "Not ranked",
        "-5.0 %",
        "3 min 20 s",
        "4 to 6",
        "rank 1: NaN",
    ):
        assert expected in text
    assert "No worker was ever distrusted by swarm, n = 64 (seed 8)." in text
    assert "2 comparisons, 9 runs" in text  # the same runs over two links
    assert parsed.data["sections"][0]["target"] == ["accuracy", 0.95]
    assert parsed.data["sections"][0]["curves"][0]["points"][1] == [
        9,
        5e5,
        1.0,
        [0.97, 0.96, 0.98],
        [0.1, 0.1, 0.1],
    ]
    assert text == page([made, made], "All")


def test_of_many_curves_each_method_is_shown_at_its_best_n() -> None:
    rows = [row(method, every, 9.0) for every in (16, 64, 4) for method in ("a", "b", "c")]
    curves = Page(page([section(*rows)], "t")).data["sections"][0]["curves"]
    assert len(curves) == 9
    assert {(curve["method"], curve["every"]) for curve in curves if curve["shown"]} == {
        ("a", 16),
        ("b", 16),
        ("c", 16),
    }


def test_a_workload_without_accuracy_is_drawn_by_its_loss() -> None:
    rows = [dataclasses.replace(row("swarm", every, 9.0), accuracy=UNKNOWN) for every in (4, 16)]
    points = (CurvePoint(0, 0.0, NAN, UNKNOWN, Estimate(2.0, NAN, NAN, 1)),)
    made = section(*rows, target="", by_n={"swarm": ((4, UNKNOWN),)}, curves=(Curve("swarm", 4, points),))
    parsed = Page(page([made], "t"))
    assert parsed.data["sections"][0]["measure"] == "loss"
    loss = list(rows[0].loss[:3])
    assert parsed.data["sections"][0]["by_n"] == {"swarm": [[4, loss], [16, loss]]}
    assert parsed.data["sections"][0]["curves"][0]["points"] == [[0, 0.0, None, [None] * 3, [2.0, None, None]]]
    assert not [
        given for tag, given in parsed.elements if tag == "input" and given["value"] in ("accuracy", "seconds")
    ]


@given(st.lists(st.sets(st.integers(0, 3)), max_size=6), st.integers(1, 5))
def test_the_bars_of_trust_cover_exactly_the_steps_of_distrust(states: list[set[int]], apart: int) -> None:
    steps = apart * (len(states) + 1)
    changes = tuple((apart * (i + 1), tuple(sorted(ranks))) for i, ranks in enumerate(states))
    figure = trust(section(trust=(Distrusted("m", 1, 0, changes, steps),)))
    assert figure
    steps_of = {row.rank: set[int]() for row in figure.rows}
    for row in figure.rows:
        for first, last in re.findall(r"(\d+) to (\d+)", row.steps):
            steps_of[row.rank].update(range(int(first), int(last)))
    expected: dict[int, set[int]] = {}
    for begin, ranks in changes:
        for rank in ranks:
            expected.setdefault(rank, set()).update(range(begin, begin + apart))
    assert steps_of == expected
    # neighbouring spells are one bar
    bars = sum(len(row.bars) for row in figure.rows)
    assert bars == sum(step - 1 not in one for one in expected.values() for step in one)
