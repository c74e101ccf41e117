"""What cells say: estimates and ranks against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from made_results import made_cell, made_results
from swarmstep.compare import results as results_module
from swarmstep.compare.analysis import analyse
from swarmstep.compare.results import Cell, Point, Results, key_of
from swarmstep.compare.sections import Edge, MethodRow, Section
from swarmstep.errors import UsageError
from swarmstep.network import link as links
from swarmstep.network.virtual_clock import VirtualClock
from swarmstep.report.markdown import markdown
from swarmstep.report.table import csv

SLOW = "10mbit,5ms"


def cell(method: str, seed: int, accuracies: Sequence[float], every: int = 4, **changes: Any) -> Cell:
    """A cell with a point each 10 steps, from 10 on; loss 1 - accuracy, 100 bytes a step."""
    points = tuple(
        Point(10 * i, math.nan, 1e3 * i, 0.0, 0.0, 1.0 - accuracy, accuracy)
        for i, accuracy in enumerate(accuracies, start=1)
    )
    return made_cell(method, every, seed, **{"points": points, **changes})


def results(*cells: Cell, **about: Any) -> Results:
    return Results({"command": "swarmstep compare mnist", **about}, cells)


def only(*cells: Cell, **about: Any) -> Section:
    (section,) = analyse([results(*cells, **about)])
    return section


def ending(method: str, finals: Sequence[float], **changes: Any) -> list[Cell]:
    return [cell(method, seed, [0.1, final], **changes) for seed, final in enumerate(finals)]


def verdicts(section: Section) -> list[tuple[str, int | None, str]]:
    return [(row.method, row.rank, row.verdict) for row in section.rows]


def test_ranks_by_the_accuracy_at_the_end_in_pairs_of_seeds() -> None:
    section = only(
        *ending("swarm", [0.92, 0.94, 0.90]),
        *ending(
            "bmuf", [0.90, 0.91, 0.86]
        ),  # 0.02, 0.03, 0.04 behind: t = 4.3027, 4.3027 * 0.01 / sqrt(3) = 0.025
        *ending("diloco", [0.91, 0.92, 0.87]),  # 0.01, 0.02, 0.03 behind: the interval begins at -0.005
        *ending("papa", [0.85, 0.87, 0.83]),  # 0.07 behind with each seed
    )
    assert verdicts(section) == [
        ("swarm", 1, "best"),
        ("diloco", 1, "not distinguishable from the best"),
        ("bmuf", 3, "behind by 0.030 ± 0.025"),
        ("papa", 4, "behind by 0.07 ± 0"),
    ]
    # 0.92 is odds of 11.5; the standard error 0.02 / sqrt(3) times 4.3027 is 0.049683, and that over 0.92 * 0.08
    # is 0.675 in the logarithm of the odds: between 11.5 / 1.9642 = 5.855 and 11.5 * 1.9642 = 22.588.
    best = section.rows[0].accuracy
    assert best == pytest.approx((0.92, 5.855 / 6.855, 22.588 / 23.588, 3), abs=1e-4)


def test_means_alone_do_not_put_a_method_behind() -> None:
    """Means 0.04 apart; one seed of three sees it the other way around."""
    section = only(*ending("swarm", [0.95, 0.95, 0.80]), *ending("diloco", [0.85, 0.86, 0.87]))
    assert [row.rank for row in section.rows] == [1, 1]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_not_ranked(seeds: int) -> None:
    section = only(*ending("swarm", [0.8, 0.8][:seeds]), *ending("diloco", [0.9, 0.9][:seeds]))
    verdict = f"not ranked: {seeds} seed{'s' * (seeds > 1)}"
    assert verdicts(section) == [("diloco", None, verdict), ("swarm", None, verdict)]
    assert math.isnan(section.rows[0].accuracy.low) == (seeds == 1)


def test_a_row_with_too_few_seeds_is_last_however_good() -> None:
    section = only(*ending("swarm", [0.8, 0.8, 0.8]), *ending("diloco", [0.99]))
    assert verdicts(section) == [("swarm", 1, "best"), ("diloco", None, "not ranked: 1 seed")]


def test_too_few_seeds_in_common_with_the_best() -> None:
    cells = [cell("swarm", seed, [0.9]) for seed in (0, 1, 2)] + [cell("papa", seed, [0.8]) for seed in (2, 3, 4)]
    assert verdicts(only(*cells))[1] == ("papa", None, "not ranked: 1 seed in common with the best")


def test_two_seeds_in_common_are_too_few_however_alike() -> None:
    cells = [cell("swarm", seed, [0.9]) for seed in (0, 1, 2)] + [cell("papa", seed, [0.8]) for seed in (1, 2, 3)]
    assert verdicts(only(*cells))[1] == ("papa", None, "not ranked: 2 seeds in common with the best")


def test_a_lead_of_one_evaluation_is_none() -> None:
    """A target is reached somewhere between two evaluations: one of them apart may be nothing."""
    swarm = [cell("swarm", seed, [0.1, 0.9, 0.9, 0.9]) for seed in range(3)]
    for later, verdict in ((1, "not distinguishable from the best"), (2, "behind by 20 ± 0 steps")):
        papa = [cell("papa", seed, [*[0.1] * (1 + later), 0.9, 0.9]) for seed in range(3)]
        assert verdicts(only(*swarm, *papa, target=TARGET))[1][2] == verdict


NOISY = [0.93, 0.95, 0.94, 0.96]
STEADY = [0.91, 0.94, 0.92, 0.93]  # 0.02, 0.01, 0.02, 0.03 behind: standard deviation 0.0081650


def test_how_many_seeds_a_difference_needs() -> None:
    section = only(*ending("swarm", NOISY), *ending("papa", STEADY), *ending("bmuf", [0.9, 0.9]))
    best, papa, bmuf = section.rows
    # (1.959964 + 0.841621)**2 * (0.0081650 / 0.005)**2 + 1.959964**2 / 2 = 22.85 (Guenther, 1981)
    assert papa.seeds_needed == {"0.5 points of accuracy": 23}
    assert (best.seeds_needed, bmuf.seeds_needed) == ({}, {})


def test_with_a_target_also_of_what_it_took_to_reach_it() -> None:
    swarm, papa = ending_fast("swarm", [80, 80, 80]), ending_fast("papa", [110, 130, 130])
    needed = {"accuracy": 0.8}, {"loss": 0.2}
    for target, metric in zip(needed, ("0.5 points of accuracy", "2 % of the loss"), strict=True):
        row = next(row for row in only(*swarm, *papa, target=target).rows if row.method == "papa")
        assert set(row.seeds_needed) == {metric, "2 % of the steps to the target"}
        # The swarm takes 80 steps, so 1.6 are of interest; papa takes 30, 50 and 50 more: the spread is 11.547.
        about = ((1.959964 + 0.841621) * (20 / math.sqrt(3)) / 1.6) ** 2 + 1.959964**2 / 2  # Guenther, 1981
        assert row.seeds_needed["2 % of the steps to the target"] == pytest.approx(about, abs=1)


def ending_fast(method: str, reaching: Sequence[int], **changes: Any) -> list[Cell]:
    """Cells with a point each step; at the given ones the test accuracy rises to 0.9."""
    return [cell(method, seed, [0.9], points=_steps(first), **changes) for seed, first in enumerate(reaching)]


def _steps(first: int) -> tuple[Point, ...]:
    accuracies = {step: 0.9 + first / 1e4 if step >= first else 0.1 for step in range(1, 151)}
    return tuple(Point(step, math.nan, 0.0, 0.0, 0.0, 1 - right, right) for step, right in accuracies.items())


def test_what_is_closer_than_two_evaluations_no_number_of_seeds_tells() -> None:
    swarm = [cell("swarm", seed, [0.1, 0.9, 0.9, 0.9]) for seed in range(3)]
    papa = [cell("papa", seed, [0.1, 0.1, *[0.1] * (seed > 0), 0.9, 0.9]) for seed in range(3)]
    assert set(only(*swarm, *papa, target=TARGET).rows[1].seeds_needed) == {"0.5 points of accuracy"}


def test_runs_that_stop_at_the_target_say_nothing_of_the_accuracy_at_the_end() -> None:
    cells = [
        cell
        for method, reaching in (("swarm", [80, 80, 80]), ("papa", [110, 130, 130]))
        for cell in ending_fast(method, reaching, until_accuracy=0.8)
    ]
    assert set(only(*cells, target=TARGET).rows[1].seeds_needed) == {"2 % of the steps to the target"}


@pytest.mark.parametrize(
    ("rates", "chosen", "direction"),
    [
        ((0.003, 0.01, 0.03), 0.03, "upwards"),
        ((0.003, 0.01, 0.03), 0.003, "downwards"),
        ((0.003, 0.01, 0.03), 0.01, None),
        ((0.003, 0.01, 0.03, 0.09), 0.03, None),  # the further trial beyond it was worse
        ((0.03,), 0.03, None),
        ((), 0.03, None),
    ],
)
def test_a_rate_at_the_edge_of_its_grid(rates: Sequence[float], chosen: float, direction: str | None) -> None:
    trials = [made_cell("swarm", 4, 99, purpose="tune", lr=lr) for lr in rates]
    others = [made_cell("diloco", 4, 99, purpose="tune", lr=lr) for lr in (0.001, 1.0)]
    row = only(*ending("swarm", [0.9], lr=chosen), *trials, *others).rows[0]
    assert row.edge == (Edge(chosen, tuple(rates), direction) if direction else None)


def test_what_trials_were_judged_by_is_told_where_something_was_tuned() -> None:
    about = {"tuned_on": {"mnist": "validation accuracy, as the target is one", "digits": "validation loss"}}
    trials = [made_cell("swarm", 4, 99, purpose="tune", lr=lr) for lr in (0.01, 0.05)]
    assert only(*ending("swarm", [0.9]), *trials, **about).tuned_on == about["tuned_on"]["mnist"]
    assert only(*ending("swarm", [0.9]), **about).tuned_on == ""
    assert only(*ending("swarm", [0.9]), *trials).tuned_on == "", "results of an earlier version"


def test_the_target_is_known_to_one_evaluation() -> None:
    costs = only(*[cell("swarm", seed, [0.1, 0.9, 0.9]) for seed in range(3)], target=TARGET).rows[0].to_target
    assert costs
    assert costs.interval == 10


def test_without_accuracies_the_loss_ranks() -> None:
    def blind(method: str, losses: Sequence[float]) -> list[Cell]:
        cells = ending(method, [1.0 - loss for loss in losses])
        points = [tuple(point._replace(test_accuracy=math.nan) for point in one.points) for one in cells]
        return [dataclasses.replace(one, points=new) for one, new in zip(cells, points, strict=True)]

    section = only(*blind("swarm", [0.30, 0.32, 0.34]), *blind("papa", [0.20, 0.22, 0.24]))
    assert verdicts(section) == [("papa", 1, "best"), ("swarm", 2, "behind by 0.1 ± 0 in loss")]
    assert math.isnan(section.rows[0].accuracy.mean)
    assert section.rows[0].loss.mean == pytest.approx(0.22)


def test_a_seed_whose_loss_is_not_finite_keeps_a_row_from_a_rank() -> None:
    cells = ending("swarm", [0.9, 0.9, math.nan])
    assert verdicts(only(*cells, *ending("papa", [0.5, 0.5, 0.5])))[1] == (
        "swarm",
        None,
        "not ranked: a seed without a finite value",
    )


TARGET = {"accuracy": 0.8}


def test_the_target_is_reached_at_the_first_point_that_is_good_enough() -> None:
    section = only(
        *[cell("swarm", seed, [0.1, 0.8, 0.7, 0.9]) for seed in range(3)],
        *[cell("papa", seed, [0.1] * (2 + seed) + [0.81, 0.9]) for seed in range(3)],
        target=TARGET,
    )
    assert section.target == "test accuracy 0.8"
    # papa: 30, 40, 50 steps; 10, 20, 30 more than the swarm: 20 and 4.3027 * 10 / sqrt(3) = 24.8, which holds 0
    assert verdicts(section) == [("swarm", 1, "best"), ("papa", 1, "not distinguishable from the best")]
    swarm, papa = (row.to_target for row in section.rows)
    assert swarm
    assert papa
    assert (swarm.reached, swarm.count, swarm.steps) == (3, 3, (20.0, 20.0, 20.0, 3))
    assert papa.steps.mean == 40.0
    assert papa.bytes.mean == pytest.approx((3e3 + 4e3 + 5e3) / 3)
    assert math.isnan(papa.seconds.mean)


def test_only_rows_whose_seeds_all_reached_the_target_are_ranked() -> None:
    section = only(
        *[cell("swarm", seed, [0.1, 0.2, 0.3, 0.8]) for seed in range(3)],
        *[cell("papa", seed, [0.9 if seed else 0.7, 0.7]) for seed in range(3)],
        *[cell("bmuf", seed, [0.1, 0.79]) for seed in range(3)],
        target=TARGET,
    )
    assert verdicts(section) == [
        ("swarm", 1, "best"),
        ("papa", None, "not ranked: 2 of 3 seeds reached the target"),
        ("bmuf", None, "not ranked: 0 of 3 seeds reached the target"),
    ]
    papa, bmuf = section.rows[1].to_target, section.rows[2].to_target
    assert papa
    assert bmuf
    assert (papa.reached, papa.count, papa.steps.mean, papa.steps.count) == (2, 3, 10.0, 2)
    assert bmuf.reached == 0
    assert math.isnan(bmuf.steps.mean)


def test_a_loss_may_be_the_target() -> None:
    cells = [cell("swarm", seed, [0.25, 0.75, 0.875]) for seed in range(3)]
    section = only(*cells, target={"loss": 0.25})
    costs = section.rows[0].to_target
    assert costs
    assert section.target == "test loss 0.25"
    assert costs.steps.mean == 20.0


def test_failed_runs_are_told_and_have_not_reached_the_target() -> None:
    lost = made_cell("swarm", 4, 3, failed="a peer died")
    gone = [made_cell("papa", 4, seed, failed="NaN") for seed in range(2)]
    cells = [*[cell("swarm", seed, [0.9]) for seed in range(3)], lost, *gone]
    section = only(*cells, target=TARGET)
    assert verdicts(section) == [
        ("swarm", None, "not ranked: 3 of 4 seeds reached the target; 1 of 4 runs failed"),
        ("papa", None, "not ranked: all runs failed"),
    ]
    assert [row.failed for row in section.rows] == [("a peer died",), ("NaN", "NaN")]
    assert [row.seeds for row in section.rows] == [(0, 1, 2), ()]
    assert [curve.method for curve in section.curves] == ["swarm"]
    assert list(section.by_n) == ["swarm"]
    assert section.cells == 6
    assert verdicts(only(*cells))[0] == ("swarm", 1, "best; 1 of 4 runs failed")


def test_what_failed_altogether_is_last_also_after_what_diverged() -> None:
    diverged = ending("swarm", [math.nan] * 3)
    gone = [made_cell("bmuf", 4, seed, failed="NaN") for seed in range(3)]
    assert [row.method for row in only(*diverged, *gone).rows] == ["swarm", "bmuf"]


def test_a_run_that_was_never_evaluated_has_failed() -> None:
    section = only(dataclasses.replace(cell("swarm", 0, [0.9]), points=()))
    assert section.rows[0].failed == ("it was never evaluated",)


def test_a_cell_in_two_results_counts_once_and_a_finished_one_more_than_a_failed() -> None:
    cells = ending("swarm", [0.8, 0.9, 0.85])
    failed = dataclasses.replace(cells[0], points=(), failed="out of memory")
    (once,) = analyse([results(*cells)])
    assert analyse([results(*cells), results(*cells)]) == [once]
    for both in ([results(failed), results(*cells)], [results(*cells), results(failed)]):
        assert repr(analyse(both)) == repr([once])


def test_results_add_up_where_they_ask_the_same_and_are_apart_where_not() -> None:
    a, b = ending("swarm", [0.9, 0.9, 0.9]), ending("papa", [0.8, 0.8, 0.8])
    (merged,) = analyse([results(*a), Results({"command": "another\nswarmstep compare mnist"}, tuple(b))])
    assert [row.method for row in merged.rows] == ["swarm", "papa"]
    assert merged.command == "swarmstep compare mnist\nanother"
    apart = analyse([results(*a), results(*b, target=TARGET)])
    assert [[row.method for row in section.rows] for section in apart] == [["swarm"], ["papa"]]


def test_no_results_no_sections() -> None:
    assert analyse([]) == []
    assert analyse([results()]) == []
    assert analyse([results(made_cell("swarm", 4, 0, purpose="tune"))]) == []


def test_each_condition_has_a_section_in_the_order_of_the_results() -> None:
    later = cell("swarm", 0, [0.9], workers=2)
    first = cell("swarm", 0, [0.9], workers=8, fault="sign:1", shards="seldp")
    titles = [section.title for section in analyse([results(first), results(later)])]
    assert titles == ["mnist lenet5, 8 workers, shards seldp, sign:1", "mnist lenet5, 2 workers"]
    one = only(cell("swarm", 0, [0.9], workload="tasks/my_task.py:make", workers=1))
    assert one.title == "my_task lenet5, 1 worker"
    assert one.condition["workload"] == "my_task"


def test_synchronous_training_is_one_row_at_n_1() -> None:
    cells = [cell("synchronous", seed, [0.9 - n / 1e6], every=n) for seed in range(3) for n in (16, 4)]
    cells += ending("swarm", [0.9, 0.9, 0.9], every=16)
    section = only(*cells)
    assert repr(only(*reversed(cells))) == repr(section)
    assert [(row.method, row.every, row.seeds) for row in section.rows] == [
        ("swarm", 16, (0, 1, 2)),
        ("synchronous", 1, (0, 1, 2)),
    ]
    assert [n for n, _ in section.by_n["synchronous"]] == [1]
    assert section.cells == 6


def test_what_tuning_chose_and_out_of_how_many() -> None:
    trials = [made_cell("swarm", 4, 99, purpose="tune", lr=lr, steps=80) for lr in (0.01, 0.05, 0.25)]
    others = [
        made_cell("swarm", 16, 99, purpose="tune"),
        made_cell("diloco", 4, 99, purpose="tune", fault="sign:1"),
    ]
    runs = ending("swarm", [0.9], lr=0.25, settings={"inertia": "0.5"})
    section = only(*trials, *others, *runs)
    assert section.rows[0].chosen == {"lr": "0.25", "inertia": "0.5"}
    assert section.rows[0].tried == 3
    assert section.cells == 5


def test_several_settings_of_a_method_are_rows_of_their_own() -> None:
    section = only(*ending("swarm", [0.9] * 3), *ending("swarm", [0.8] * 3, lr=0.1, steps=80, checkpoint_every=80))
    assert [row.method for row in section.rows] == ["swarm (lr 0.05, steps 640)", "swarm (lr 0.1, steps 80)"]
    assert [row.chosen for row in section.rows] == [{"lr": "0.05", "steps": "640"}, {"lr": "0.1", "steps": "80"}]
    assert "steps" not in section.condition
    assert section.condition["batch"] == "32"


def test_curves_are_at_the_steps_that_all_seeds_have() -> None:
    long, short = cell("swarm", 0, [0.1, 0.3, 0.5]), cell("swarm", 1, [0.2, 0.5])
    (curve,) = only(long, short).curves
    assert [point.step for point in curve.points] == [10, 20]
    assert [point.accuracy.mean for point in curve.points] == pytest.approx([0.15, 0.4])
    assert [point.bytes for point in curve.points] == [1e3, 2e3]
    # Two seeds 0.2 apart: standard error 0.1, t for one degree of freedom 12.7062, on the scale of the logit.
    shift = 1.27062 / (0.4 * 0.6)
    assert curve.points[1].accuracy.high == pytest.approx(special.expit(special.logit(0.4) + shift))


def test_by_n_holds_the_accuracy_at_the_end() -> None:
    cells = [cell("swarm", seed, [0.1, 0.9 - n / 1000], every=n) for n in (64, 4, 16) for seed in range(2)]
    by_n = only(*cells).by_n["swarm"]
    assert [n for n, _ in by_n] == [4, 16, 64]
    assert [accuracy.mean for _, accuracy in by_n] == pytest.approx([0.896, 0.884, 0.836])


def test_trust_is_told_of_swarms_and_of_who_distrusts() -> None:
    cells = [
        cell("swarm", 1, [0.9, 0.9], trust=[[4, [3]], [8, []]]),
        cell("swarm+codec=int8", 0, [0.9]),
        cell("median", 0, [0.9], trust=[[4, []]]),
        cell("papa", 0, [0.9], trust=[[4, [1, 2]]]),
    ]
    trust = only(*cells).trust
    assert [(one.method, one.seed, one.changes, one.steps) for one in trust] == [
        ("papa", 0, ((4, (1, 2)),), 10),
        ("swarm", 1, ((4, (3,)), (8, ())), 20),
        ("swarm+codec=int8", 0, (), 10),
    ]


def test_the_environment_names_all_versions_and_seeds() -> None:
    machines = [{"torch": "2.6.0", "cpus": 2, "command": ["x"]}, {"torch": "2.7.0", "cpus": 2}]
    cells = [cell("swarm", 10 - i, [0.9], environment=machine) for i, machine in enumerate(machines)]
    assert only(*cells).environment == {"cpus": "2", "torch": "2.6.0, 2.7.0", "seeds": "9, 10"}


def seconds_of(row: MethodRow) -> float:
    return row.seconds.mean


def test_without_links_simulated_runs_have_no_seconds() -> None:
    section = only(*[made_cell("swarm", 16, seed) for seed in range(3)])
    assert (section.link, section.real) == ("", False)
    assert math.isnan(seconds_of(section.rows[0]))
    assert all(math.isnan(point.seconds) for point in section.curves[0].points)


def test_the_virtual_clock_prices_the_runs_for_each_link() -> None:
    cells = [made_cell(method, 16, seed) for method in ("swarm", "local-sgd") for seed in range(3)]
    sections = analyse([results(*cells, links=[SLOW, "1gbit"])])
    assert [section.link for section in sections] == [SLOW, "1gbit"]
    compute = float(np.median([one.compute_seconds for one in cells]))
    for section in sections:
        for row in section.rows:
            of_method = [one for one in cells if one.method == row.method]
            clock = VirtualClock(links.parse(section.link), 4, compute, of_method[0].round_seconds)
            expected = [clock.seconds(one.rounds(), 640, one.probe_seconds)[640] for one in of_method]
            assert seconds_of(row) == pytest.approx(np.mean(expected))
    assert seconds_of(sections[0].rows[0]) > seconds_of(sections[1].rows[0])


def test_the_machine_that_simulated_favours_no_method() -> None:
    """The same trace takes the same time, also where a method was simulated while the machine was busy."""
    cells = [made_cell("local-sgd", 16, seed, compute_seconds=0.01) for seed in range(3)]
    cells += [made_cell("papa", 16, seed, compute_seconds=0.5, points=cells[0].points) for seed in range(2)]
    section = only(*cells, links=[SLOW])
    assert len({row.seconds.mean for row in section.rows}) == 1


def test_options_of_the_clock_reach_it_and_draw_by_the_cells_seed() -> None:
    cells = [made_cell("local-sgd", 16, seed) for seed in range(3)]
    options = {"compute": 0.1, "stragglers": "lognormal:0.5", "failures": None}
    section = only(*cells, links=[SLOW], clock=options)
    seconds = [
        VirtualClock(links.parse(SLOW), 4, 0.1, 0.001, stragglers="lognormal:0.5", seed=seed).seconds(
            one.rounds(), 640
        )[-1]
        for seed, one in enumerate(cells)
    ]
    assert seconds_of(section.rows[0]) == pytest.approx(np.mean(seconds))
    assert len(set(seconds)) == 3


def test_where_no_step_was_timed_there_are_no_virtual_seconds() -> None:
    section = only(made_cell("swarm", 16, 0, compute_seconds=math.nan), links=[SLOW])
    assert math.isnan(seconds_of(section.rows[0]))


def test_with_seconds_the_target_is_ranked_by_them() -> None:
    """Synchronous training takes the fewest steps, and the most seconds on a slow link."""
    cells = [made_cell(method, 64, seed) for method in ("synchronous", "swarm") for seed in range(3)]
    with_link, without = only(*cells, links=[SLOW], target=TARGET), only(*cells, target={"accuracy": 0.97})
    assert with_link.rows[0].method == "swarm"
    assert with_link.rows[1].verdict.endswith(" s")
    assert without.rows[0].method == "synchronous"
    assert without.rows[1].verdict == "not distinguishable from the best", "they are one evaluation apart"


def test_a_wrong_link_is_refused() -> None:
    with pytest.raises(UsageError, match="fast"):
        analyse([results(made_cell("swarm", 16, 0), links=["fast"])])


def real_cells(**changes: Any) -> list[Cell]:
    place = {"backend": "gloo", "link": SLOW, **changes}
    alone = [made_cell("independent", 1, 0, points=(Point(640, 32.0, 0.0, 1.0, 0.5, 1.0, 0.5),), **place)]
    return alone + [made_cell(name, 64, seed, **place) for name in ("ddp", "local-sgd") for seed in range(2)]


def test_real_processes_tell_how_wrong_the_virtual_clock_is() -> None:
    cells = real_cells()
    section = only(*cells, links=["1gbit"])
    assert (section.real, section.link) == (True, SLOW)
    assert section.title == "mnist lenet5, 4 workers, in real processes, at 10 Mbit/s and 5 ms"
    (error,) = section.clock_errors
    assert (error.method, error.every) == ("local-sgd", 64)
    runs = [one for one in cells if one.method == "local-sgd"]
    virtual = [VirtualClock(links.parse(SLOW), 4, 0.05).seconds(one.rounds(), 640)[640] for one in runs]
    real = [one.points[-1].seconds for one in runs]
    assert error.real == pytest.approx(np.mean(real))
    assert error.virtual == pytest.approx(np.mean(virtual))
    errors = [v / r - 1 for v, r in zip(virtual, real, strict=True)]
    assert error.error == pytest.approx(max(errors, key=abs))


def test_a_simulated_twin_tells_what_a_round_takes_by_itself() -> None:
    twin = made_cell("local-sgd", 64, 0, round_seconds=0.7)
    trial = dataclasses.replace(twin, purpose="tune", round_seconds=9.0)
    bare, with_twin = only(*real_cells()), analyse([results(*real_cells(), twin, trial)])[0]
    assert with_twin.real
    gap = with_twin.clock_errors[0].virtual - bare.clock_errors[0].virtual
    assert gap == pytest.approx(0.7 * (640 // 64))


def test_without_a_link_or_a_run_without_communication_there_are_no_clock_errors() -> None:
    assert only(*real_cells(link=None)).clock_errors == ()
    assert only(*real_cells()[1:]).clock_errors == ()


def test_the_made_results_have_all_that_a_report_shows() -> None:
    clean, gigabit, faulty, *_ = simulated = analyse([made_results()])
    assert len(simulated) == 6
    assert (clean.title, clean.link, gigabit.link) == ("mnist lenet5, 4 workers", "100mbit,5ms", "1gbit")
    assert {row.tried for row in clean.rows} == {0, 3}
    assert clean.rows[0].rank == 1
    assert any(row.failed for row in faulty.rows)
    assert any(one.changes for one in faulty.trust)
    (real,) = analyse([made_results(real=True)])
    assert len(real.clock_errors) == 7


MADE = made_results()
MIXED = [*MADE.cells[:25], *MADE.cells[-14:]]  # tuning, failed cells and trust among them
FORTH = repr(analyse([results(*MIXED, target=TARGET)]))


@given(st.permutations(MIXED))
def test_the_order_of_the_cells_changes_nothing(cells: list[Cell]) -> None:
    assert repr(analyse([results(*cells, target=TARGET)])) == FORTH


finals = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3)


@given(st.dictionaries(st.sampled_from(["bmuf", "diloco", "papa", "swarm", "median"]), finals, min_size=1))
def test_ranks_follow_means_and_the_best_is_first(accuracies: dict[str, list[float]]) -> None:
    rows = only(*[one for method, values in accuracies.items() for one in ending(method, values)]).rows
    assert rows[0].verdict == "best"
    assert rows[0].accuracy.mean == max(row.accuracy.mean for row in rows)
    ranks = [row.rank for row in rows]
    assert ranks == sorted(rank for rank in ranks if rank is not None)
    for rank in {1, *ranks}:
        means = [row.accuracy.mean for row in rows if row.rank == rank]
        assert means == sorted(means, reverse=True)


def test_a_field_that_is_new_tells_no_older_cells_apart() -> None:
    older = {"backend": "sim", "lr": 0.1, "steps": 5}
    newer = {**older, "balance": "off", "speeds": None}
    assert key_of("run", "swarm", newer, None) == key_of("run", "swarm", older, None)
    assert key_of("run", "swarm", {**newer, "balance": "steps"}, None) != key_of("run", "swarm", older, None)


def test_a_metric_of_the_workload_stands_in_the_place_of_the_accuracy() -> None:
    def judged(method: str, seed: int, aucs: Sequence[float]) -> Cell:
        points = tuple(
            Point(10 * i, math.nan, 0.0, 0.0, math.nan, 1.0, math.nan, 0.5, value)
            for i, value in enumerate(aucs, start=1)
        )
        return made_cell(method, 4, seed, points=points, metric="auc")

    runs = [judged(method, seed, aucs) for method, aucs in (("swarm", (0.8, 0.95)), ("bmuf", (0.7, 0.8)))
            for seed in range(3)]  # fmt: skip
    section = only(*runs)
    assert section.score == "auc"
    assert [(row.method, row.rank, row.accuracy.mean) for row in section.rows] == [
        ("swarm", 1, pytest.approx(0.95)),
        ("bmuf", 2, pytest.approx(0.8)),
    ]
    text = markdown([section])
    assert "Highest test auc at the end: swarm" in text
    assert "| auc |" in text
    assert "accuracy" not in text
    assert csv([section]).splitlines()[0].count(",auc,auc_low") == 1
    at_target = only(*runs, target={"auc": 0.9})
    assert at_target.target == "test auc 0.9"
    assert [(row.method, row.to_target and row.to_target.reached) for row in at_target.rows] == [
        ("swarm", 3),
        ("bmuf", 0),
    ]
    loaded = results_module.from_json(results_module.to_json(runs[0]), "here")
    assert (loaded.metric, [point[-2:] for point in loaded.points]) == ("auc", [(0.5, 0.8), (0.5, 0.95)])
