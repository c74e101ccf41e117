"""What must hold for elastic groups whatever happens, on seeds of what may; and bugs that this must find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import simulated_membership as simulation
from swarmstep.elastic import commit_vote, formation, retention
from swarmstep.elastic.commit_vote import COMMIT, CommitVote, first_verdict
from swarmstep.elastic.formation import Formation
from swarmstep.elastic.keys import vote_key
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError, PeerLost


def test_the_invariants_hold() -> None:
    assert simulation.first_violation(range(25)) is None


def test_who_waits_for_others_notices_that_its_heartbeats_have_ended() -> None:
    """Found here: after a store that was away it waited for the dead, of whom it heard no more."""
    assert simulation.first_violation(range(53_650, 53_651)) is None


@pytest.mark.slow
def test_the_invariants_hold_for_many_seeds() -> None:
    assert simulation.first_violation(range(25, 5000)) is None


def test_a_seed_is_a_history() -> None:
    with simulation.simulated():
        once, again = simulation.play(3), simulation.play(3)
    assert once.trace == again.trace
    assert (once.commits, once.now) == (again.commits, again.now)
    assert once.commits > 0


def test_the_keys_of_the_store_do_not_grow_with_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays are the last epochs, and for each worker that may live the last one that it was in."""
    monkeypatch.setattr(simulation, "FAULTS", 60.0)
    with simulation.simulated():
        worlds = [simulation.play(seed) for seed in range(3, 7)]
    for world in worlds:
        assert not world.violation
        perhaps = world.workers.keys() - world.told
        epochs = {int(key.split("/")[2]) for key in world.values if key.startswith("swarmstep/epoch/")}
        assert len(epochs) <= 2 + 2 * len(perhaps), (len(world.groups), sorted(epochs))
        names = {key.split("/")[2] for key in world.values if key.startswith("swarmstep/alive/")}
        assert len(names) <= 2 + 2 * len(perhaps), (len(world.workers), sorted(names))
    assert sum(len(world.groups) for world in worlds) > 30


def no_seal(patch: pytest.MonkeyPatch) -> None:
    """A group that is passed over may still begin."""

    def began(self: Formation, number: int) -> bool:
        store, key = self._link.store, first_verdict(vote_key(number))
        return store.check([key]) and store.get(key).decode().startswith(COMMIT)

    patch.setattr(Formation, "_began", began)


def silent_is_dead(patch: pytest.MonkeyPatch) -> None:
    """Those who hold the newest weights, and are silent, are not waited for."""

    def newest(self: Formation, number: int, resumes: bool) -> int:
        for epoch in range(number - 1, -1, -1):
            if self._began(epoch) and any(m.name not in self._link.lost(1.0) for m in self._decided(epoch)):
                return epoch
        return -1

    patch.setattr(Formation, "_newest", newest)


def gives_up_alone(patch: pytest.MonkeyPatch) -> None:
    """One who gives up a round does not ask whether it counts."""

    def give_up(self: CommitVote, key: str, error: CommError | RuntimeError) -> list[str]:
        raise PeerLost("given up") from error

    patch.setattr(CommitVote, "_give_up", give_up)


def asks_once(patch: pytest.MonkeyPatch) -> None:
    """One who has voted, and cannot read the verdict, goes on as if there were none.

    This one was in the code, and was found by the simulation.
    """

    def give_up(self: CommitVote, key: str, error: CommError | RuntimeError) -> list[str]:
        verdict = self._abort(self._connected(), key)
        if verdict[0] != commit_vote.ABORT:
            return verdict
        raise PeerLost("given up") from error

    patch.setattr(CommitVote, "_give_up", give_up)


def word_counts(patch: pytest.MonkeyPatch) -> None:
    """Whoever says that it holds a state holds the newest."""
    newest, candidates = Formation._newest, Formation._candidates

    def believed(self: Formation, number: int) -> list[formation.Candidate]:
        epoch = newest(self, number, False)
        found = candidates(self, number)
        return [formation.Candidate(c.name, (epoch, c.held[1]) if c.held else None) for c in found]

    patch.setattr(Formation, "_candidates", believed)


def over_too_soon(patch: pytest.MonkeyPatch) -> None:
    """The run is over before one has concluded it, who may die. This one was in the code."""
    conclude = Membership.conclude

    def concluded(self: Membership, task: Callable[[], object]) -> object:
        self.end()
        return conclude(self, task)

    patch.setattr(Membership, "conclude", concluded)


def keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    """The keys of all earlier epochs are removed, also those that somebody needs."""
    patch.setattr(retention, "_needed", lambda store, epochs, names: [])


def decides_again(patch: pytest.MonkeyPatch) -> None:
    """One who comes late decides an epoch whose keys were removed once more."""
    patch.setattr(Formation, "_passed", lambda self, number: False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [no_seal, silent_is_dead, gives_up_alone, asks_once, word_counts, over_too_soon, keeps_nothing, decides_again],
)
def test_a_bug_is_found_within_1000_seeds(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    found = simulation.first_violation(range(1000))
    assert found
    print(bug.__name__, *found)
