"""Workers as real processes, on torch.distributed. Only this module and `p2p` import it.

Every wait ends: a peer that dies or falls silent is named, and one that is alive is waited for up to
`patience`. The gloo paths are tested; the nccl path is the same code with another backend and is not tested
here (no GPU).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from swarmstep.comm.background import BackgroundTask, T, TaskQueue, TaskRegistry
from swarmstep.comm.base import checked_rows, checked_source, divided, rank_ordered_sum, weighted
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.group import KEPT, Decision, Group, not_elastic
from swarmstep.comm.heartbeat import PERIOD, Heartbeat
from swarmstep.comm.p2p import Chain, Transfer, Trials, Turns
from swarmstep.comm.process_groups import FORMING, brief, close_connections, serve_store
from swarmstep.comm.rendezvous import NAMES as ENVIRONMENT
from swarmstep.comm.rendezvous import find
from swarmstep.comm.secure.auth import prove
from swarmstep.comm.torch_private import groups_made, leak, set_timeout
from swarmstep.errors import CommError, PeerLost, UsageError

__all__ = ["ENVIRONMENT", "DistComm", "Epoch", "serve_store"]


class CommitVote(Protocol):
    """What decides whether a round counts; see `swarmstep.elastic.commit_vote`."""

    def decide(self, check: Callable[[float], None]) -> Decision: ...
    def close(self) -> None: ...


class Members(Protocol):
    """The part of `Membership` that a group needs: what makes it elastic."""

    def trouble(self) -> str | None: ...
    def renew(self) -> DistComm: ...
    def ballot(self, part: str, size: int, *, first: bool) -> CommitVote: ...


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What a group knows of the series it is one of: `number` is the `epoch` of `Comm`, the others as there."""

    membership: Members
    number: int
    names: tuple[str, ...]
    sources: tuple[int | None, ...]


class DistComm(Group):
    """This process's view of a torch.distributed group.

    Args:
        data: the group for tensors on the model's device (None: the default group).
        control: a gloo group of the same ranks, for CPU tensors (None: `data`, which must then be gloo).
        heartbeat: tells a dead peer from a slow one (None: only `patience` limits a wait).
        exact: add in rank order, so that the result equals `simulate` bitwise; the traffic stays that of a
            ring (an exchange of chunks, then an all-gather).
        silence: seconds without any sign of life after which a peer counts as lost.
        patience: seconds to wait for a peer that is alive.
        epoch: which of a series of groups this is (None: a loss ends the run).
    """

    def __init__(
        self,
        data: dist.ProcessGroup | None = None,
        control: dist.ProcessGroup | None = None,
        heartbeat: Heartbeat | None = None,
        *,
        exact: bool = False,
        silence: float = 30.0,
        patience: float = 1800.0,
        epoch: Epoch | None = None,
    ) -> None:
        self._data: Any = data if data is not None else dist.group.WORLD
        self._control: Any = control if control is not None else self._data
        self._heartbeat = heartbeat
        self._exact = exact
        self._silence = silence
        self._patience = patience
        self.rank = dist.get_rank(self._data)
        self.size = dist.get_world_size(self._data)
        self._members = dist.get_process_group_ranks(self._data)  # their names in the world
        self._epoch = epoch
        self._part = ""  # which part of the epoch's group this is
        self._splits = 0
        self._ballot = epoch.membership.ballot("", self.size, first=True) if epoch else None
        self._parts: dict[str, DistComm] = {}
        self._memory = BufferPool(reuse=False)
        self._unhurried = False  # while it waits, training goes on
        self._tasks = TaskQueue(TaskRegistry())  # shared by what `reusing` returns; the registry by parts, too
        self._ways = {"broadcast": Trials(), "all_to_all": Trials()}  # shared by what `reusing` returns

    @classmethod
    def from_env(
        cls,
        backend: str | None = None,
        *,
        exact: bool = False,
        silence: float = 30.0,
        patience: float = 1800.0,
    ) -> DistComm:
        """Join the group that torchrun (or `swarmstep train`) describes in the environment.

        Args:
            backend: "gloo" or "nccl" (default: nccl where CUDA is available, else gloo).
            exact: as in the class.
            silence: as in the class.
            patience: as in the class; also the limit for the group to come together.

        Raises:
            UsageError: RANK, WORLD_SIZE, MASTER_ADDR or MASTER_PORT is not set, or a group exists already, or
                MASTER_ADDR is not on loopback and there is no secret (docs/security.md).
            CommError: the group did not come together, or a member does not know the secret.
        """
        found = find(backend, patience)
        first = cls(None, found.control, exact=exact, patience=patience)
        # Every rank has made its heartbeat; nobody beats before, so only patience limits this wait.
        first.gather(torch.zeros(1))
        if found.secret:
            prove(first, found.secret)
        found.heartbeat.start()
        return cls(None, found.control, found.heartbeat, exact=exact, silence=silence, patience=patience)

    def close(self) -> None:
        """Leave the group; call it once, at the end of the program."""
        self.settle()
        if self._heartbeat:
            self._heartbeat.stop()
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def elastic(self) -> bool:
        return self._epoch is not None

    @property
    def epoch(self) -> int:
        return self._epoch.number if self._epoch else 0

    @property
    def names(self) -> tuple[str, ...]:
        return self._epoch.names if self._epoch else ()

    @property
    def sources(self) -> tuple[int | None, ...]:
        return self._epoch.sources if self._epoch else ()

    def clock(self) -> float:
        return time.perf_counter()

    def sent(self, x: Tensor) -> Tensor:
        return x

    def _group(self, x: Tensor) -> Any:
        return self._control if x.device.type == "cpu" else self._data

    def _run(self, verb: str, collective: Any, *args: Any, group: Any) -> None:
        """Start a collective and wait for it, at most `patience`, and while all peers are alive."""
        work: Any = None
        started = time.monotonic()
        pause = 2e-5
        shortest, longest, share = (2e-4, 1e-2, 4) if self._unhurried else (1e-3, 5e-3, 50)
        try:
            work = collective(*args, group=group, async_op=True)
            while not work.is_completed():
                time.sleep(pause)
                waited = time.monotonic() - started
                # Looking takes processor time from others, or from the training beside this.
                pause = min(max(shortest, waited / share), longest, 1.5 * pause if pause < shortest else longest)
                if waited > self._calm:
                    self._check(verb, waited)
            work.wait()
        except RuntimeError as error:
            raise self._lost(verb, error) from error
        except BaseException:
            if self.elastic:  # what is under way ends, and the group can be destroyed
                close_connections(group, self._members)
            else:
                leak(group)
            raise
        finally:
            work = None  # no traceback may keep it, and with it the group

    @property
    def _calm(self) -> float:
        """Seconds of waiting before anybody is doubted."""
        return 0.05 if self.elastic else 2 * PERIOD

    def _check(self, verb: str, waited: float) -> None:
        trouble = self._epoch.membership.trouble() if self._epoch else None
        if trouble:
            raise PeerLost(f"{self._me}: {trouble}, while in {verb}")
        if self._heartbeat:
            self._check_life(verb, self._heartbeat)
        if waited > self._patience:
            raise CommError(
                f"{self._me}: waited {waited:.0f} s in {verb} for peers that are alive; "
                "a longer wait is set with patience (--patience SECONDS)"
            )

    @property
    def _me(self) -> str:
        named = f" ({self.names[self.rank]})" if self.names else ""
        return f"rank {self._members[self.rank]}{named}"

    def _silent(self, heartbeat: Heartbeat, seconds: float) -> list[int]:
        return [rank for rank in heartbeat.silent(seconds) if rank in self._members]

    def _check_life(self, verb: str, heartbeat: Heartbeat) -> None:
        if heartbeat.error or heartbeat.store_silent(self._silence):
            why = brief(heartbeat.error) if heartbeat.error else f"no answer for {self._silence:g} s"
            raise PeerLost(
                f"{self._me}: the store is gone while in {verb} ({why}); the process that started the group has "
                "probably ended"
            )
        silent = self._silent(heartbeat, self._silence)
        if silent:
            raise PeerLost(
                f"{self._me}: no sign of life for {self._silence:g} s from "
                f"{_ranks(heartbeat.agree_on_lost(silent))} while in {verb}; it has stopped, or its "
                "network is cut; end the run and resume from the last checkpoint"
            )

    def _lost(self, verb: str, error: RuntimeError) -> CommError:
        """Find out who is gone: whoever misses the next few beats."""
        if self._epoch:
            why = self._epoch.membership.trouble() or "a peer has closed its connection"
            return PeerLost(f"{self._me}: {why}, while in {verb} ({brief(error)})")
        gone: list[int] = []
        if self._heartbeat:
            deadline = time.monotonic() + 10 * PERIOD
            while not gone and not self._heartbeat.error and time.monotonic() < deadline:
                time.sleep(PERIOD / 5)
                gone = self._silent(self._heartbeat, 4 * PERIOD)
            gone = self._heartbeat.agree_on_lost(gone)
        if self._members[self.rank] in gone:
            return PeerLost(
                f"{self._me}: the other ranks gave this one up, after no sign of life from it, while in {verb} "
                f"({brief(error)}); end it and resume from the last checkpoint"
            )
        who = _ranks(gone) if gone else "a peer"
        return PeerLost(
            f"{self._me}: lost {who} while in {verb} ({brief(error)}); look at that rank's own output, "
            "then resume from the last checkpoint"
        )

    def _sum(self, term: Tensor) -> Tensor:
        """Sum `term` over all ranks; its length is a multiple of the size if exact. May reuse its memory."""
        if not self._exact:
            self._run("mean", dist.all_reduce, term, group=self._group(term))
            return term
        theirs = self._memory.take(term.shape, term)
        self._all_to_all("mean", theirs, term)
        chunk = rank_ordered_sum(theirs.chunk(self.size))
        self._run("mean", dist.all_gather, list(term.chunk(self.size)), chunk, group=self._group(term))
        return term

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        room = 1 + (-(x.numel() + 1) % self.size if self._exact else 0)
        term = weighted(x, weight, self.size, self._memory.take((x.numel() + room,), x))
        return divided(self._sum(term), x, self.size)

    def gather(self, x: Tensor) -> Tensor:
        return self._gather("gather", x)

    def _gather(self, verb: str, x: Tensor) -> Tensor:
        rows = self._memory.take((self.size, *x.shape), x)
        places = list(_bytes(rows).view(self.size, x.nbytes))
        self._run(verb, dist.all_gather, places, _bytes(x), group=self._group(x))
        return rows

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        if not 0 <= src < self.size:
            raise UsageError(f"broadcast: expected src in 0..{self.size - 1}, found {src}")
        result = self._memory.take(x.shape, x).copy_(x)
        data, group = _bytes(result), self._group(x)

        def theirs() -> None:
            self._run("broadcast", dist.broadcast, data, dist.get_global_rank(group, src), group=group)

        def ours() -> None:
            members = self._members[src:] + self._members[:src]
            self._transfer("broadcast", Chain(data, (self.rank - src) % self.size, members, group), group)

        self._faster("broadcast", self._ways["broadcast"], data, theirs, ours)
        return result

    def _faster(
        self, verb: str, trials: Trials, data: Tensor, theirs: Callable[[], None], ours: Callable[[], None]
    ) -> None:
        """Take the faster way; while it is not known, try the one that has not been timed yet."""
        way = trials.way(data, self.size)
        if way is not None:
            return ours() if way else theirs()
        self._gather(verb, torch.zeros(1))  # waiting for those who are late is not part of the time
        started = time.perf_counter()
        (ours if trials.costs else theirs)()
        trials.costs.append((time.perf_counter() - started) / data.nbytes)
        if len(trials.costs) == 2:  # all agree on one
            trials.settle(self._gather(verb, torch.tensor(trials.costs, dtype=torch.float64)))
        return None

    def _transfer(self, verb: str, work: Transfer, group: Any) -> None:
        try:
            self._run(verb, lambda **_: work, group=group)
        except BaseException:
            work.abandon()
            raise

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        source = checked_source(source, self.size)
        result = self._memory.take(x.shape, x)
        sends, receives = [0] * self.size, [0] * self.size
        receives[source[self.rank]] = sends[source.index(self.rank)] = x.nbytes
        ends = _bytes(result), _bytes(x)
        self._run("permute", dist.all_to_all_single, *ends, receives, sends, group=self._group(x))
        return result

    def all_to_all(self, x: Tensor) -> Tensor:
        result = self._memory.take(checked_rows(x, self.size).shape, x)
        self._all_to_all("all_to_all", _bytes(result), _bytes(x))
        return result

    def _all_to_all(self, verb: str, result: Tensor, rows: Tensor) -> None:
        """Fill `result` with the rows that the others have for this rank, both flat; `verb` is what it is for."""
        group = self._group(rows)

        def theirs() -> None:
            self._run(verb, dist.all_to_all_single, result, rows, group=group)

        def ours() -> None:
            pair = result.view(self.size, -1), rows.view(self.size, -1)
            self._transfer(verb, Turns(*pair, self.rank, self._members, group), group)

        self._faster(verb, self._ways["all_to_all"], rows, theirs, ours)

    def decide(self) -> Decision:
        if self._ballot is None:
            return KEPT
        return self._ballot.decide(lambda waited: self._check("the vote", waited))

    def renew(self) -> Group:
        if self._epoch is None:
            raise not_elastic(self)
        self.settle()
        return self._epoch.membership.renew()

    def start(self, task: Callable[[], T]) -> BackgroundTask[T]:
        self._unhurried = True
        return self._tasks.start(task)

    def settle(self) -> None:
        self._tasks.registry.settle()

    def reusing(self) -> DistComm:
        own = copy.copy(self)
        own._parts, own._memory = {}, BufferPool(reuse=True)
        return own

    def recycle(self) -> None:
        self._memory.recycle()
        for part in self._parts.values():
            part.recycle()

    def split(self, color: int, name: str = "") -> DistComm:
        if name in self._parts:
            return self._parts[name]
        made = groups_made()
        rows = self.gather(torch.tensor([color, made]))
        colors = rows[:, 0].tolist()
        # Nothing but this limit tells of a member of an elastic group that dies before it has connected.
        limit = timedelta(seconds=max(FORMING, self._silence) if self.elastic else self._patience + 60)
        # torch numbers a group by how many all ranks have made; where not all are here, it is named after its
        # members and how many groups each has made: those who have made fewer make some of themselves alone.
        everyone = self.size == dist.get_world_size()
        for _ in range(0 if everyone else int(rows[:, 1].max()) - made):
            dist.new_group([self._members[self.rank]], backend="gloo", use_local_synchronization=True)
        mine: list[Any] = []
        for other in sorted(set(colors)) if everyone else [color]:
            members = [self._members[r] for r in range(self.size) if colors[r] == other]
            here: dict[str, Any] = {"timeout": limit, "use_local_synchronization": not everyone}
            try:
                groups = [dist.new_group(members, **here)]
                if self._control is not self._data:
                    groups.append(dist.new_group(members, backend="gloo", **here))
            except RuntimeError as error:
                raise self._lost("split", error) from error
            if other == color:
                mine = groups
                set_timeout(mine[0], self._patience + 60)
        part = DistComm(
            mine[0],
            mine[-1],
            self._heartbeat,
            exact=self._exact,
            silence=self._silence,
            patience=self._patience,
        )
        part._become_part_of(self)
        if name:
            self._parts[name] = part.reusing() if self._memory.reuse else part
        return self._parts.get(name, part)

    def _become_part_of(self, whole: DistComm) -> None:
        whole._splits += 1
        self._part = f"{whole._part}.{whole._splits}"
        self._tasks = TaskQueue(whole._tasks.registry)
        if not whole._epoch:
            return
        names = tuple(whole.names[rank] for rank in self._members)
        self._epoch = dataclasses.replace(whole._epoch, names=names, sources=())
        if self.size == whole.size:  # rounds in the background are decided there
            self._ballot = self._epoch.membership.ballot(self._part, self.size, first=False)


def _bytes(x: Tensor) -> Tensor:
    """Return x as flat bytes, without a copy if it is contiguous: what is only moved may have any dtype."""
    flat = x.detach().contiguous().as_strided((x.numel(),), (1,))  # one element may have any stride
    return flat.view(torch.uint8)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
