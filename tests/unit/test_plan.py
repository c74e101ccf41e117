"""A plan is arithmetic on what was measured: held against the formulas by hand, and against known links."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import few
from runs import WORKLOADS
from swarmstep.cards import CARDS
from swarmstep.cli import main
from swarmstep.cli.plan import _described
from swarmstep.comm.metered import Call
from swarmstep.errors import UsageError
from swarmstep.network.collective_costs import seconds_of
from swarmstep.network.link import Link, parse
from swarmstep.planner.group import fitted
from swarmstep.planner.measure import measured
from swarmstep.planner.prices import GOAL, Plan, Price, RoundWork, Timed, Work, plan
from swarmstep.planner.settings import PlanSettings
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from whole_runs import fast_ones

MEAN, CODED = Call("mean", 4_000_000, 4), Call("gather", 250_000, 4)
WORK = Work(0.02, 1_000_000, {"": RoundWork((MEAN,), 0.01), "int8": RoundWork((CODED,), 0.03, 0.2)}, 0)
LINK = parse("100mbit,5ms")
LOOK = Call("gather", 64, 4)


def price(found: Plan, every: int, codec: str = "", late: bool = False) -> Price:
    (one,) = [p for p in found.prices[1:] if (p.every, p.codec, p.delay > 0) == (every, codec, late)]
    return one


def test_the_formulas_by_hand() -> None:
    found = plan(WORK, 4, LINK)
    sent, coded = seconds_of(MEAN, LINK), seconds_of(CODED, LINK)
    step = 0.02 + seconds_of(LOOK, LINK) / 25  # with its share of a look at all workers
    assert found.prices[0].seconds == pytest.approx(step - 0.02 * 2 / 3 + sent)  # longer than the backward pass
    assert price(found, 1).seconds == pytest.approx(step + sent + 0.01)
    assert price(found, 32).seconds == pytest.approx(step + (sent + 0.01) / 32)
    assert price(found, 32, "int8").seconds == pytest.approx(step + (coded + 0.03 + 0.2 * 0.32) / 32)
    late = price(found, 32, "int8", late=True)
    assert (late.delay - 1) * 0.02 < coded <= late.delay * 0.02
    assert late.seconds == pytest.approx(step + (0.03 + 0.2 * 0.32) / 32)
    assert price(found, 1, "int8", late=True).delay == 1  # no round waits for the one after the next
    assert price(found, 128, "int8").seconds == pytest.approx(step + (coded + 0.03 + 0.2) / 128)
    assert all(p.computing == pytest.approx(0.02 / p.seconds) for p in found.prices)


def test_ddp_hides_what_fits_into_the_backward_pass() -> None:
    fast = parse("100gbit")
    assert plan(WORK, 4, fast).prices[0].seconds == pytest.approx(0.02 + seconds_of(LOOK, fast) / 25)


def test_what_was_measured_takes_the_place_of_what_is_computed() -> None:
    rounds = {"": replace(WORK.rounds[""], timed=Timed(1.0, 0.3)), "int8": WORK.rounds["int8"]}
    work = replace(WORK, rounds=rounds, reduced=Timed(2.0, 0.1), looked=Timed(0.5, 0.0))
    found = plan(work, 4, LINK)
    step = 0.02 + 0.5 / 25
    assert found.prices[0].seconds == pytest.approx(step - 0.02 * 2 / 3 + 2.0)
    assert price(found, 1).seconds == pytest.approx(step + 1.0 + 0.01)
    assert price(found, 1, "int8").seconds == pytest.approx(step + seconds_of(CODED, LINK) + 0.032)
    (late,) = [
        p for p in plan(replace(work, rounds={"": rounds[""]}), 4, LINK).prices if p.delay and p.every == 128
    ]
    assert late.delay == 50
    assert late.seconds == pytest.approx(step + (0.3 + 0.01) / 128), "the processor's part of a call is not hidden"
    fast = plan(replace(work, reduced=Timed(0.005, 0.004)), 4, LINK).prices[0]
    assert fast.seconds == pytest.approx(step + 0.004)


def test_who_shares_cores_is_slower_in_all_it_does_itself() -> None:
    slow = WORK.slowed(0.05)
    round_ = slow.rounds["int8"]
    assert slow.step_seconds == 0.05
    assert (round_.own_seconds, round_.probe_seconds) == pytest.approx((0.03 * 2.5, 0.2 * 2.5))
    assert round_.calls == (CODED,)
    assert slow.bytes_kept == WORK.bytes_kept


def test_a_run_too_short_for_the_smallest_n() -> None:
    whole = plan(WORK, 4, LINK)
    smallest = {name: one.every for name, one in whole.smallest.items() if one}
    assert whole.advised.every == min(smallest.values())
    steps = 20 * min(smallest.values())
    assert plan(WORK, 4, LINK, steps=steps).advised == whole.advised
    short = plan(WORK, 4, LINK, steps=steps - 1)
    assert short.most == whole.advised.every - 1
    assert set(short.smallest.values()) == {None}
    each = plan(WORK, 4, LINK, every=(short.most,)).prices[1:]
    assert short.advised == min(each, key=lambda price: price.seconds)
    said = _described(short, PlanSettings("digits", link="100mbit,5ms"), steps - 1)
    assert (
        f"n = 1 to {short.most} do not reach that, and of a larger n {steps - 1:,} steps have fewer than 20"
        in said
    )


@few
@given(
    step=st.floats(1e-4, 10),
    own=st.floats(0, 1),
    rate=st.floats(1e5, 1e11),
    delay=st.floats(0, 1),
    workers=st.integers(2, 64),
)
def test_the_smallest_n_is_enough_and_one_less_is_not(
    step: float, own: float, rate: float, delay: float, workers: int
) -> None:
    rounds = {codec: RoundWork((Call("mean", 4_000_000, workers),), own) for codec in ("", "int8")}
    found = plan(Work(step, 1_000_000, rounds, 0), workers, Link(rate, delay), every=(1,))
    for name, one in found.smallest.items():
        if one is None:
            continue
        alone = found.work.step_seconds + seconds_of(Call("gather", 64, workers), found.link) / 25
        assert one.seconds * GOAL <= alone * (1 + 1e-9)
        if one.every > 1:
            codec, late = "int8" if "int8" in name else "", "overlapped" in name
            less = plan(found.work, workers, found.link, every=(one.every - 1,))
            assert price(less, one.every - 1, codec, late).seconds * GOAL > alone * (1 - 1e-9)
    reached = [p.every for p in found.smallest.values() if p]
    assert found.advised.every == (min(reached) if reached else found.most)


@pytest.mark.parametrize("spec", ["20mbit,20ms", "100mbit", "1gbit,5ms", "10gbit,1ms"])
@pytest.mark.parametrize("workers", [2, 4, 17])
def test_the_link_is_found_from_two_times(spec: str, workers: int) -> None:
    link = parse(spec)
    small, large = (
        seconds_of(call, link) for call in (Call("gather", 16, workers), Call("mean", 40_000_000, workers))
    )
    found = fitted(small, large, 10_000_000, workers)
    assert found.rate == pytest.approx(link.rate, rel=0.02)
    assert found.delay == pytest.approx(link.delay, abs=1e-4)


def mean_sent(call: Call) -> float:
    """Return the bytes that a worker sends in a call, mean over the workers: the formulas of `Metered`."""
    W, sent = call.size, call.bytes
    return {
        "mean": 2 * (W - 1) / W * (sent + 4),
        "gather": (W - 1) * sent,
        "broadcast": (W - 1) / W * sent,
        "permute": sent,
        "all_to_all": (W - 1) / W * sent,
    }[call.verb]


WITHOUT_N = ("ddp", "independent", "osp", "synchronous")
REFERENCED = ("int4", "topk:0.1", "nm:2:4", "rank:2", "sparseloco")  # codecs that not every method can have


@pytest.mark.parametrize("strategy", fast_ones(("noloco", "swarm"), sorted(CARDS.keys() - set(WITHOUT_N))))
@pytest.mark.parametrize("codec", fast_ones(("int8",), ("int8", "bfloat16", *REFERENCED)))
def test_planned_bytes_are_those_metered(strategy: str, codec: str) -> None:
    workload = WORKLOADS["classes"]()
    config = resolve(Config("classes", workers=4, strategy=strategy), workload)
    try:
        work = measured(config, workload, (codec,))
    except UsageError:
        assert codec in REFERENCED
        return
    for name, found in work.rounds.items():
        sent: list[float] = []
        for rounds in (6, 10):
            run = replace(config, steps=3 * rounds, every=3, eval_every=1000, codec=name or None, backend="sim")
            job = Job(quiet=True, keep=False)
            sent += [simulated(resolve(run, workload), workload, job)["bytes_sent_per_worker"]]
        planned = sum(map(mean_sent, found.calls))
        metered = (sent[1] - sent[0]) / 4
        if strategy == "sparta":  # whose parts differ by an element: the largest is planned
            assert metered <= planned
        else:
            assert metered == pytest.approx(planned)


@pytest.mark.parametrize("strategy", ["noloco", "gasloc"])
def test_a_round_without_a_partner_is_not_the_price(strategy: str) -> None:
    """Of three workers one has no partner in each round, now and then rank 0, whose calls are those planned."""
    config = resolve(Config("classes", workers=3, strategy=strategy), WORKLOADS["classes"]())
    roll, pair = measured(config, WORKLOADS["classes"](), ()).rounds[""].calls
    assert (roll.verb, pair.verb) == ("gather", "permute")
    assert pair.bytes > roll.bytes


@pytest.mark.parametrize("strategy", ["osp", "synchronous"])
def test_a_method_without_n_is_refused(strategy: str) -> None:
    config = resolve(Config("classes", workers=3, strategy=strategy), WORKLOADS["classes"]())
    with pytest.raises(UsageError, match=f"plan: {strategy} does not synchronize in each n-th step"):
        measured(config, WORKLOADS["classes"](), ())


def test_a_step_of_nothing_and_a_worker_alone() -> None:
    with pytest.raises(UsageError, match="expected at least 2 workers, found 1"):
        plan(WORK, 1, LINK)
    with pytest.raises(UsageError, match="expected a step of more than 0 s"):
        plan(replace(WORK, step_seconds=0.0), 4, LINK)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "digits", "--link", "100mbit,20ms", "--workers", "3", "--every", "1,16"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["work"]["parameters"] == 8970
    assert {(p["method"], p["every"]) for p in found["prices"]} == {("ddp", 1), ("swarm", 1), ("swarm", 16)}


def test_what_the_command_says() -> None:
    said = _described(plan(WORK, 4, LINK), PlanSettings("digits", link="100mbit,5ms", steps=400), 400)
    assert "1,000,000 parameters, 20 ms a step, 4 workers, each at 100 Mbit/s, 5 ms" in said
    advised = plan(WORK, 4, LINK).advised
    command = (
        f"--every {advised.every} --codec int8 --delay {advised.delay} --steps 400 --workers 4 --backend gloo"
    )
    assert f"swarmstep train digits --strategy swarm {command}" in said
    assert f"400 steps have {400 // advised.every} rounds of n = {advised.every}" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "plan: expected --link SPEC, say 100mbit,20ms, or --measure"),
        (["--link", "100mbit", "--workers", "1"], "--workers: expected 2 to 1024, found 1"),
        (["--link", "100mbit", "--every", "0"], "--every: expected numbers of steps from 1"),
        (["--link", "fast"], "link 'fast'"),
        (["--link", "100mbit", "--strategy", "ddp"], "plan: ddp has no rounds to plan"),
        (["--link", "100mbit", "--strategy", "asgrad"], "plan: asgrad has no rounds to plan"),
        (["--link", "100mbit", "--codec", "int9"], "int9"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", *options]) == UsageError.exit_code
    assert message in capsys.readouterr().err
