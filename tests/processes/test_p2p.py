"""Large transfers of our own: the same bits either way, all ranks choose alike, and who is lost is named."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import Any

import pytest
import torch

from forking import CONTEXT
from helpers import same
from launched import Launched
from pool import Pool
from swarmstep import Comm, DistComm
from swarmstep.comm import p2p
from swarmstep.comm.p2p import FLOOR, PIECE, PIECES
from swarmstep.errors import CommError
from whole_runs import fast_ones

SHAPES = [(), (0,), (1,), (PIECE // 4,), (PIECE + 1,), (3, 5, 7001)]


def made(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits at all, NaN of every kind among them."""
    count = torch.empty(shape, dtype=dtype).nbytes
    content = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (content % 2 if dtype == torch.bool else content).view(dtype).view(shape)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def spread(comm: Comm, along_chain: bool) -> int:
    """Broadcast all kinds of tensors from all ranks; return how many."""
    assert isinstance(comm, DistComm)
    comm.routes["broadcast"].floor, comm.routes["broadcast"].point_to_point = 0, along_chain
    count = 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        for shape in SHAPES:
            for src in range(comm.size):
                own = made(shape, dtype, 100 * src + comm.rank)
                kept = own.clone()
                found = comm.broadcast(own, src)
                assert same(bits(found), bits(made(shape, dtype, 101 * src)))
                assert same(bits(own), bits(kept))
                assert (found.shape, found.dtype) == (own.shape, own.dtype)
                count += 1
    strided = torch.arange(60_000.0).view(200, 300).T + comm.rank
    assert same(comm.broadcast(strided, 1), torch.arange(60_000.0).view(200, 300).T + 1)
    return count


@pytest.mark.parametrize("along_chain", [True, False])
@pytest.mark.parametrize("workers", fast_ones([4], [2, 3, 4]))
def test_both_ways_give_the_bits_of_the_source(pool: Pool, workers: int, along_chain: bool) -> None:
    assert pool.run(spread, along_chain, workers=workers) == [6 * len(SHAPES) * workers] * workers


def turned(comm: Comm, by_turns: bool) -> bool:
    """Exchange rows of all kinds with all."""
    assert isinstance(comm, DistComm)
    comm.routes["all_to_all"].floor, comm.routes["all_to_all"].point_to_point = 0, by_turns
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
        for shape in SHAPES:
            rows = [made((comm.size, *shape), dtype, rank) for rank in range(comm.size)]
            own = rows[comm.rank].clone()
            found = comm.all_to_all(own)
            assert same(bits(found), bits(torch.stack([row[comm.rank] for row in rows])))
            assert same(bits(own), bits(rows[comm.rank]))
    return True


@pytest.mark.parametrize("by_turns", [True, False])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_both_ways_exchange_the_same_rows(pool: Pool, workers: int, by_turns: bool) -> None:
    assert pool.run(turned, by_turns, workers=workers) == [True] * workers


def spread_much(comm: Any) -> bool:
    comm.routes["broadcast"].point_to_point = True
    x = torch.arange(PIECE // 4 * (PIECES + 3), dtype=torch.int32)
    return same(comm.broadcast(x * (comm.rank == 2), 2), x)


def test_a_long_vector_has_larger_pieces_not_more(pool: Pool) -> None:
    assert pool.run(spread_much) == [True] * 4


def choose(comm: Any) -> tuple[Any, ...]:
    """Broadcast until the way is chosen, then once more; through the copies that strategies make, too."""
    x = torch.rand(FLOOR // 4, generator=torch.Generator().manual_seed(comm.rank))
    expected = torch.rand(FLOOR // 4, generator=torch.Generator().manual_seed(1))
    comm.broadcast(x[:-1], 1)
    said = [(len(comm.routes["broadcast"].costs), comm.routes["broadcast"].point_to_point)]
    for turn in range(3):
        assert same((comm.reusing() if turn % 2 else comm).broadcast(x, 1), expected)
        said.append((len(comm.routes["broadcast"].costs), comm.routes["broadcast"].point_to_point))
    part = comm.split(comm.rank % 2)
    assert part.routes["broadcast"] is not comm.routes["broadcast"]
    assert same(part.broadcast(expected + comm.rank, 1), expected + comm.rank % 2 + 2)
    assert not part.routes["broadcast"].costs  # nothing to choose between two
    return tuple(said)


def test_all_ranks_choose_the_same_way_after_one_trial_of_each(pool: Pool) -> None:
    found = pool.run(choose)
    assert found == [found[0]] * 4
    chosen = found[0][-1][1]
    assert chosen in (True, False)
    assert found[0] == ((0, None), (1, None), (2, chosen), (2, chosen))


STUCK = {"broadcast": (5, "sent 4 pieces"), "all_to_all": (2, "sent 1 pieces")}


def stuck_in_the_middle(end: Any, patience: float, verb: str) -> None:
    """Rank 1 sends a few pieces, says so and goes no further; the others go on."""
    comm = DistComm.from_env("gloo", silence=3.0 if patience > 60 else 60.0, patience=patience)
    comm.routes[verb].point_to_point = True
    isend, sent = p2p.dist.isend, []

    def stops(*arguments: Any, **named: Any) -> Any:
        sent.append(arguments)
        if comm.rank == 1 and len(sent) == STUCK[verb][0]:
            end.send(STUCK[verb][1])
            threading.Event().wait()
        return isend(*arguments, **named)

    p2p.dist.isend = stops
    x = torch.full((12 * FLOOR // 4,), float(comm.rank))
    try:
        while True:
            _ = comm.broadcast(x, 0) if verb == "broadcast" else comm.all_to_all(x.view(comm.size, -1))
    except CommError as error:
        end.send((type(error).__name__, str(error), bool((x == comm.rank).all())))
    names = [thread.name for thread in threading.enumerate()]
    end.send("swarmstep-p2p" in names)
    comm.close()


SPAWN = multiprocessing.get_context("spawn")  # its processes end as programs do, the forked ones at once


LOST = [("broadcast", signal.SIGKILL, 4, CONTEXT)]
LOST += [pytest.param("broadcast", signal.SIGSTOP, 3, SPAWN, marks=pytest.mark.slow)]
LOST += [("all_to_all", signal.SIGKILL, 4, CONTEXT)]


@pytest.mark.parametrize(("verb", "number", "workers", "how"), LOST)
def test_a_peer_lost_in_the_middle_is_named_by_all_others(verb: str, number: int, workers: int, how: Any) -> None:
    with Launched(stuck_in_the_middle, workers, 600.0, verb, how=how) as world:
        assert world.hears(1) == STUCK[verb][1]
        world.signals(1, number)
        others = [rank for rank in range(workers) if rank != 1]
        for rank in others:
            kind, said, kept = world.hears(rank)
            assert kind == "PeerLost"
            assert said.startswith(f"rank {rank}: ")
            assert f"lost rank 1 while in {verb} (" in said or f"for 3 s from rank 1 while in {verb};" in said
            assert kept
            assert world.hears(rank) is False  # no thread is left that could wake up while the program ends
        assert [world.ends(rank) for rank in others] == [0] * len(others)


def test_a_peer_that_is_alive_is_waited_for_up_to_patience() -> None:
    with Launched(stuck_in_the_middle, 3, 3.0, "broadcast") as world:
        assert world.hears(1) == STUCK["broadcast"][1]
        found = [world.hears(rank) for rank in range(3)]
        assert {kind for kind, _, _ in found} <= {
            "CommError",
            "PeerLost",
        }  # rank 1 may be first
        waited = "s in broadcast for peers that are alive; to wait longer"
        assert any(waited in said for _, said, _ in found), found
        assert all(kept for _, _, kept in found)
        assert [world.hears(rank) for rank in (0, 2)] == [False] * 2
