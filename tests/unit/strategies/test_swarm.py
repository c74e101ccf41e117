"""The informed swarm against its equations, and leave-one-out trust against a sequential test in NumPy."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, mean_square, play, squares, weighted
from swarmstep import Independent, InformedSwarm, LocalSGD
from swarmstep.errors import NotFinite, UsageError
from swarmstep.strategies.parts import trust
from whole_runs import fast_ones


def loss(v: Array) -> float:
    """The probe of `rounds`."""
    return float((v**2).mean())


class Trust:
    """The sequential test, written from docs/methods/swarm.md."""

    def __init__(self, workers: int, beta: float = 0.9, k: float = 4.0) -> None:
        self.e, self.var, self.out = np.zeros(workers), np.zeros(workers), np.zeros(workers, dtype=bool)
        self.h = np.zeros((workers, 16))
        self.t, self.beta, self.k = 0, beta, k

    def test(self, examples: Array, here: Array) -> None:
        """`examples` [W, n] are what the loss of each loses without each worker."""
        self.t += 1
        q = examples.mean(axis=1)
        b = min(self.beta, 1 - 1 / self.t)
        typical = np.sort(np.abs(q))[(len(q) - 1) // 2]
        z = np.clip(q / typical, -3, 3)
        for i in np.flatnonzero(here):
            groups = np.array_split(examples[i] - q[i], 16)
            ratio = min(1 / typical, 3 / abs(q[i]))
            g = np.array([group.sum() / examples.shape[1] * ratio for group in groups])
            self.h[i] += (1 - b) * (np.clip(g, -3, 3) - self.h[i])
        d = np.where(here, z - self.e, 0.0)
        self.e = self.e + (1 - b) * d
        self.var = b * (self.var + (1 - b) * d * d)
        middle = np.sort(self.var)[(len(q) - 1) // 2]
        between = (middle + 1 / self.t) / min(self.t, (1 + self.beta) / (1 - self.beta))
        se = np.sqrt(between + (self.h**2).sum(axis=1))
        if self.t >= 3:
            good = np.where(self.out, self.e >= se, self.e >= -self.k * se)
            best = np.argsort(-self.e, kind="stable")[: math.ceil(len(q) / 2)]
            good[best] = True
            self.out = ~good


def leave_one_out(x: Array, included: Array, here: Array, weights: Array) -> tuple[Array, Array]:
    """What each example of the mean loses without each worker, for a whole step of that worker's, [W, n].

    Without i the mean moves by a fraction a_i / (S - a_i) of the way from x_i to it.
    """

    def mean(among: Array) -> Array:
        return np.average(x[among], axis=0, weights=weights[among])

    base, q = mean(included) ** 2, np.zeros(x.shape)
    for i in range(len(x)):
        other = included.copy()
        other[i] = not included[i]
        if here[i] and other.any():
            small, large = sorted([weights[included].sum(), weights[other].sum()])
            fraction = weights[i] / (small if included[i] else large)
            change = mean(other) ** 2 - base
            q[i] = (change if included[i] else -change) / fraction
    return q, base


class Reach:
    """How far the step goes beyond the consensus, written from docs/methods/swarm.md."""

    def __init__(self) -> None:
        self.r = 1.0

    def share(self, d: Array, u: Array, target: Array, spread: float) -> float:
        """Return t by bisection, for what leads to `target` from the old weights."""
        lengths = np.linalg.norm(d) * np.linalg.norm(u)
        self.r = np.clip(self.r * math.exp((d @ u / lengths if lengths else 0.0) - 0.95), 1, 10)
        k, low, high = target - d, 0.0, 1.0
        limit = max(self.r * math.sqrt(spread), float(np.linalg.norm(d)))
        if np.linalg.norm(target) <= limit:
            return 1.0
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if np.linalg.norm(d + t * k) <= limit else (low, t)
        return low


def oracle(
    g: Game,
    s: float = 0.7,
    w: float = 0.7,
    look_ahead: bool = True,
    tests: bool = True,
    measured: bool = True,
    known: bool = False,
) -> Array:
    """`known`: the probe says what each example has lost."""
    x, u, history, trust = g.start.copy(), np.zeros(len(g.start)), [], Trust(g.workers)
    usual, reach, n = math.inf, Reach(), len(g.start) - g.buffers
    for r, drift in enumerate(g.drift):
        here = np.array([not g.absent(r, i) for i in range(g.workers)])
        positions = x + np.where(here[:, None], drift, 0.0)
        lengths = np.linalg.norm((positions - x)[:, : len(x) - g.buffers], axis=1)
        middle = np.sort(lengths[here])[(here.sum() - 1) // 2]
        tame = (lengths <= 20 * middle) | (not tests)
        shares = 10 * middle / np.maximum(lengths, 10 * middle)
        parameters = np.arange(len(x)) < len(x) - g.buffers
        positions = np.where(parameters, x + shares[:, None] * (positions - x), positions)
        included = here & ~trust.out & tame
        if tests:
            examples, losses = leave_one_out(positions, included, here, g.weights[r])
            q, base = examples.mean(axis=1), losses.mean()
            trust.test(examples if known else q[:, None], here)
            out = trust.out | ~tame
            suspects = (q < 0) & (q <= -10 * usual) & (base > loss(x)) & (q <= loss(x) - base)
            if known:
                groups = [[part.sum() for part in np.array_split(examples[i] - q[i], 16)] for i in range(len(q))]
                suspects &= q <= -4 * np.sqrt(np.square(groups).sum(axis=1)) / examples.shape[1]
            if (~(out | suspects)).sum() >= math.ceil(g.workers / 2):
                out = out | suspects
            if trust.t >= 3 and not suspects.any():
                usual = np.sort(np.abs(q))[(g.workers - 1) // 2]
            included = here & ~out
        agreed = g.mean(r, positions, included)
        d = agreed - x
        v = w * u + d
        move = s * (d + w * v if look_ahead else v)
        own = lengths[included]
        cut = np.minimum(own, 2 * np.sort(own)[(len(own) - 1) // 2])
        spread = float(np.average(cut**2, weights=g.weights[r][included]))
        t = reach.share(d[:n], u[:n], move[:n], spread) if measured else 1.0
        x, u = x + d + t * (move - d), t * v
        if g.buffers:
            x[-g.buffers :] = agreed[-g.buffers :]
        history.append(x)
    return np.stack(history)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize(("s", "w", "look_ahead"), [(0.7, 0.9, True), (1.0, 0.5, False), (0.3, 0.0, True)])
@pytest.mark.parametrize("finished", [{}, {0: 3}])
@pytest.mark.parametrize("reach", ["measured", "fixed"])
def test_oracle_uniform(
    workers: int, s: float, w: float, look_ahead: bool, finished: dict[int, int], reach: str
) -> None:
    g = weighted(game(workers, finished=finished, buffers=2))
    strategy = InformedSwarm(trust="uniform", social=s, inertia=w, look_ahead=look_ahead, reach=reach)
    played, expected = play(strategy, g), oracle(g, s, w, look_ahead, tests=False, measured=reach == "measured")
    for i in range(workers):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-11)
        np.testing.assert_allclose(played.results[i], expected[-1], atol=1e-11)


CALM = functools.partial(InformedSwarm, inertia=0.3)  # so that no round goes past the optimum


def bad_game(kind: str, seed: int, workers: int = 5, rounds: int = 10) -> Game:
    """All workers go towards 0, the optimum of the probe, but the last one."""
    rng = np.random.default_rng(seed)
    g = game(workers, rounds=rounds, size=40, seed=seed)
    drift = -0.03 * g.start + 0.05 * rng.normal(size=g.drift.shape)
    wrong = {"sign": -drift[:, -1], "noise": rng.normal(size=(rounds, 40)), "none": drift[:, -1]}
    drift[:, -1] = wrong[kind]
    return g._replace(drift=drift)


@pytest.mark.parametrize("kind", ["sign", "noise", "none"])
@pytest.mark.parametrize("seed", fast_ones([0], range(3)))
@pytest.mark.parametrize("audit", fast_ones([True], [False, True]))
@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_oracle_leave_one_out(kind: str, seed: int, audit: bool, weigh: bool, known: bool) -> None:
    g = weighted(bad_game(kind, seed)) if weigh else bad_game(kind, seed)
    played = play(CALM(trust="leave_one_out", audit=audit), g, probe=squares if known else mean_square)
    np.testing.assert_allclose(played.weights[:, 0], oracle(g, 0.7, 0.3, known=known), atol=1e-10)
    for i in range(g.workers):
        np.testing.assert_array_equal(played.weights[:, i], played.weights[:, 0])
    standing = played.states[0]["standing"]
    assert (standing[:-1] == 0).all()
    if not known and not (weigh and kind == "noise"):  # noise that hardly weighs hardly harms
        assert (standing[-1] != 0) == (kind != "none")


def test_a_distrusted_worker_that_mends_its_ways_is_trusted_again() -> None:
    g = bad_game("sign", 0, rounds=40)
    drift = g.drift.copy()
    drift[6:] *= 0.3  # so that all the rounds lie before the optimum
    drift[6:, -1] = drift[6:, 0]
    assert play(CALM(), g._replace(drift=drift[:6])).states[0]["standing"][-1] == 1
    assert play(CALM(), g._replace(drift=drift)).states[0]["standing"][-1] == 0


def test_probes_that_contradict_each_other_leave_a_finite_verdict() -> None:
    q = trust.checked(torch.tensor([0.1, 0.2, 0.1, 0.3]).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    zero, groups = torch.zeros(4).double(), torch.zeros(4, trust.GROUPS).double()
    verdict = trust.Verdict(zero, zero, groups, zero, torch.zeros(4, dtype=torch.int64), 0)
    for _ in range(3):
        verdict = trust.judge(
            verdict, trust.Outcomes(q, groups, zero, 0.0), torch.ones(4, dtype=torch.bool), 0.9, 4.0
        )
    assert verdict.effect.isfinite().all()
    assert verdict.effect[1] > 0 > verdict.effect[[0, 2, 3]].max()


def test_at_least_half_stay_trusted() -> None:
    g = bad_game("none", 0, workers=5)
    drift = g.drift.copy()
    drift[:, 1:] *= -1
    standing = play(InformedSwarm(), g._replace(drift=drift)).states[0]["standing"]
    assert (standing == 0).sum() >= 3


def test_one_vector_a_round_while_no_standing_changes() -> None:
    g = bad_game("none", 0)
    played = play(CALM(), g)
    size, W = g.drift.shape[2], g.workers
    vector = 2 * (W - 1) * (size + 1) * 8  # over all workers
    tests = W * (W - 1) * (3 + 16) * 8  # numbers of each
    cost = W * (W - 1) * 8  # of a probe
    assert played.sent.sum(axis=1).tolist() == [vector + tests + cost] + [vector + tests] * (len(g.drift) - 1)
    bad = play(CALM(), bad_game("sign", 0)).sent.sum(axis=1)
    assert (bad[1:] == vector + tests).sum() == len(g.drift) - 2
    assert (bad[1:] == 2 * vector + tests).sum() == 1  # the round that distrusts


@pytest.mark.parametrize("tests", [False, True])
@pytest.mark.parametrize("factor", [3.0, 15.0, 1e6])
def test_a_long_step_is_shortened_and_a_wild_one_left_out_if_there_is_a_probe(tests: bool, factor: float) -> None:
    g = game(4, buffers=2)
    drift = g.drift.copy()
    drift[3, 2, :-2] *= factor
    g = g._replace(drift=drift)
    strategy = InformedSwarm(trust="leave_one_out" if tests else "uniform")
    played = play(strategy, g)
    np.testing.assert_allclose(played.weights[:, 0], oracle(g, tests=tests), atol=1e-10)
    np.testing.assert_array_equal(played.weights[:, 2], played.weights[:, 0])


def test_where_most_have_not_moved_no_step_is_too_long() -> None:
    g = game(3)
    drift = np.zeros_like(g.drift)
    drift[:, 2] = g.drift[:, 2]
    played = play(LocalSGD(), g._replace(drift=drift))
    for mode in ("uniform", "leave_one_out"):
        swarm = InformedSwarm(trust=mode, social=1.0, inertia=0.0, margin=100.0)
        np.testing.assert_allclose(
            play(swarm, g._replace(drift=drift[:1])).weights, played.weights[:1], atol=1e-12
        )


def test_a_worker_that_is_not_finite_has_no_weight_and_takes_the_swarms_weights() -> None:
    g = game(4)
    drift, losses = g.drift.copy(), g.losses.copy()
    drift[3, 2], losses[3, 2] = np.nan, np.nan
    played = play(InformedSwarm(trust="leave_one_out"), g._replace(drift=drift, losses=losses))
    assert np.isfinite(played.weights).all()
    for i in range(4):
        np.testing.assert_array_equal(played.weights[:, i], played.weights[:, 0])


def test_all_not_finite_is_an_error() -> None:
    g = game(2)
    with pytest.raises(NotFinite, match="every worker"):
        play(InformedSwarm(), g._replace(losses=np.full_like(g.losses, np.nan)))


def test_trust_from_loss_is_a_softmax() -> None:
    g = weighted(game(4, rounds=1))
    played = play(InformedSwarm(trust="loss", social=1.0, inertia=0.0, temperature=0.5), g)
    f = g.losses[0]
    a = g.weights[0] * np.exp(-f / 0.5)
    expected = g.start + (a[:, None] * g.drift[0]).sum(axis=0) / a.sum()
    np.testing.assert_allclose(played.weights[0, 0], expected, atol=1e-12)


def test_without_inertia_it_is_local_sgd() -> None:
    g = game(4)
    swarm = play(InformedSwarm(trust="uniform", social=1.0, inertia=0.0), g)
    np.testing.assert_allclose(swarm.weights, play(LocalSGD(), g).weights, atol=1e-12)


def test_full_trust_in_the_best_copies_it() -> None:
    g = game(4)
    played = play(InformedSwarm(trust="loss", social=1.0, inertia=0.0, temperature=1e-6), g)
    x = g.start
    for r in range(len(g.drift)):
        x = x + g.drift[r, g.losses[r].argmin()]
        np.testing.assert_allclose(played.weights[r, 0], x, atol=1e-10)


def test_alone_it_leaves_the_worker_to_itself() -> None:
    g = game(1)
    np.testing.assert_allclose(play(InformedSwarm(), g).weights, play(Independent(), g).weights, atol=1e-11)
    own = play(InformedSwarm(reach="fixed"), g).weights[:, 0]
    np.testing.assert_allclose(own, oracle(g, tests=False, measured=False), atol=1e-11)


@pytest.mark.parametrize(
    "fields",
    [
        {"trust": "blind"},
        {"social": 0.0},
        {"social": 2.1},
        {"inertia": 1.0},
        {"temperature": 0.0},
        {"margin": -1.0},
        {"memory": 1.0},
        {"gate": 1.0},
        {"clip": 1.0},
        {"budget": 0.0},
    ],
)
def test_ranges(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        InformedSwarm(**fields)


def judged(noise: float, fixed: bool, tests: int = 8) -> trust.Verdict:
    """Test four workers, of whom the last does harm; the probe's examples differ by `noise` standard errors."""
    g, q = np.random.default_rng(0), torch.tensor([1.0, 1.1, 0.9, -3.0]).double()
    zero, same = torch.zeros(4).double(), torch.tensor(g.normal(size=(4, trust.GROUPS)))
    verdict = trust.Verdict(zero, zero, torch.zeros_like(same), zero, torch.zeros(4, dtype=torch.int64), 0)
    for _ in range(tests):
        groups = same if fixed else torch.tensor(g.normal(size=same.shape))
        groups = groups - groups.mean(1, keepdim=True)
        groups = noise * groups / groups.square().sum(1, keepdim=True).sqrt()
        here = torch.ones(4, dtype=torch.bool)
        verdict = trust.judge(verdict, trust.Outcomes(q, groups, -q, 10.0), here, 0.9, 4.0)
    return verdict


@pytest.mark.parametrize(
    ("noise", "fixed", "found"),
    [(0.0, True, True), (0.6, True, True), (1.2, True, False), (1.2, False, True), (9.0, False, False)],
)
def test_the_noise_of_the_probe_averages_out_only_over_other_examples(
    noise: float, fixed: bool, found: bool
) -> None:
    verdict = judged(noise, fixed)
    assert verdict.standing.tolist() == [0, 0, 0, int(found)]
    if fixed:
        assert verdict.groups.square().sum(1).sqrt().tolist() == pytest.approx([noise] * 4)


def test_the_words_say_what_was_measured() -> None:
    lowers = judged(0.0, fixed=True).lowers
    assert trust.explain(trust.HARMFUL, float(lowers[3])) == "leaving it out lowers the probe's loss by 30 %"
    assert float(lowers[0]) == pytest.approx(-0.1)
