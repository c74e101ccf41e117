"""Waiting for collectives: every wait ends, and a peer that is lost is named.

A peer that dies or falls silent is lost; one that is alive is waited for up to `patience`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from swarmstep import fault_points
from swarmstep.comm.epoch import Epoch
from swarmstep.comm.heartbeat import PERIOD, Heartbeat
from swarmstep.comm.process_groups import brief, close_connections
from swarmstep.comm.torch_private import leak
from swarmstep.errors import CommError, PeerLost
from swarmstep.waiting import Wait


class PeerWatch:
    """Runs the collectives of one group, and watches the peers meanwhile.

    Args:
        rank: of this process in the group.
        members: the group, as ranks of the world.
        heartbeat: tells a dead peer from a slow one (None: only `patience` limits a wait).
        epoch: of an elastic group (None: a lost peer ends the run).
        silence: seconds without a heartbeat after which a peer counts as lost.
        patience: seconds to wait for a peer that is alive.

    Attributes:
        background: whether training goes on during the waits, which then cost it less processor time.
        awaited: the members, by their names.
    """

    def __init__(
        self,
        rank: int,
        members: Sequence[int],
        heartbeat: Heartbeat | None,
        epoch: Epoch | None,
        silence: float,
        patience: float,
    ) -> None:
        self._members = members
        self._heartbeat, self._epoch = heartbeat, epoch
        self._silence, self._patience = silence, patience
        name = f" ({epoch.names[rank]})" if epoch else ""
        self._own, self._who = members[rank], f"rank {members[rank]}{name}"
        self.awaited = f"workers {', '.join(epoch.names)}" if epoch else _ranks(members)
        self.background = False

    def run(self, verb: str, collective: Any, *args: Any, group: Any) -> None:
        """Start a collective and wait for it.

        Args:
            verb: what it is for, to be named in errors.
            collective: called with `args`, the group and async_op=True; returns a torch Work.
            args: of the collective.
            group: the process group to run it on.

        Raises:
            PeerLost: a peer is lost, or the store; it is named.
            CommError: it is not done after `patience` seconds, though all peers are alive.
        """
        work: Any = None
        started = time.monotonic()
        pause = 2e-5
        shortest, longest, share = (2e-4, 1e-2, 4) if self.background else (1e-3, 5e-3, 50)
        fault_points.reach(fault_points.COLLECTIVE)
        try:
            work = collective(*args, group=group, async_op=True)
            fault_points.reach(fault_points.COLLECTIVE_STARTED)
            with Wait(f"{verb} among {self.awaited}"):
                while not work.is_completed():
                    time.sleep(pause)
                    waited = time.monotonic() - started
                    # Polling takes processor time from other workers, or from the training meanwhile.
                    following = min(max(shortest, waited / share), longest)
                    pause = min(following, 1.5 * pause if pause < shortest else longest)
                    if waited > self._grace:
                        self.check(verb, waited)
            work.wait()
        except BaseException as error:
            if self._epoch:  # what is under way ends here and at the peers, and the group can be destroyed
                close_connections(group, self._members)
            if isinstance(error, RuntimeError):
                raise self.lost(verb, error) from error
            if not self._epoch:
                leak(group)
            raise
        finally:
            work = None  # no traceback may keep it, and with it the group

    @property
    def _grace(self) -> float:
        """Seconds of waiting before the peers are looked at."""
        return 0.05 if self._epoch else 2 * PERIOD

    def check(self, verb: str, waited: float) -> None:
        """Raise, as `run` does, unless it makes sense to wait on after `waited` seconds."""
        trouble = self._epoch.membership.trouble() if self._epoch else None
        if trouble:
            raise PeerLost(f"{self._who}: {trouble}, while in {verb}")
        if self._heartbeat:
            self._check_heartbeats(verb, self._heartbeat)
        if waited > self._patience:
            raise CommError(
                f"{self._who}: waited {waited:.0f} s in {verb} for peers that are alive; "
                "to wait longer, raise patience (--patience SECONDS)"
            )

    def _check_heartbeats(self, verb: str, heartbeat: Heartbeat) -> None:
        if heartbeat.error or heartbeat.store_silent(self._silence):
            why = brief(heartbeat.error) if heartbeat.error else f"no answer for {self._silence:g} s"
            raise PeerLost(
                f"{self._who}: lost the store while in {verb} ({why}); the process that started the group has "
                "probably ended"
            )
        silent = self._silent(heartbeat, self._silence)
        if silent:
            raise PeerLost(
                f"{self._who}: no heartbeat for {self._silence:g} s from "
                f"{_ranks(heartbeat.agree_on_lost(silent))} while in {verb}: stopped, or its network is cut; "
                "end the run and resume from the last checkpoint"
            )

    def _silent(self, heartbeat: Heartbeat, seconds: float) -> list[int]:
        return [rank for rank in heartbeat.silent(seconds) if rank in self._members]

    def lost(self, verb: str, error: RuntimeError) -> CommError:
        """Return what to raise after torch's error: it names the peer, which misses the next few heartbeats."""
        if self._epoch:
            why = self._epoch.membership.trouble() or "a peer has closed its connection"
            return PeerLost(f"{self._who}: {why}, while in {verb} ({brief(error)})")
        lost: list[int] = []
        if self._heartbeat:
            deadline = time.monotonic() + 16 * PERIOD
            while not lost and not self._heartbeat.error and time.monotonic() < deadline:
                time.sleep(PERIOD / 5)
                lost = self._silent(self._heartbeat, 4 * PERIOD)
            lost = self._heartbeat.agree_on_lost(lost)
        if self._own in lost:
            return PeerLost(
                f"{self._who}: the other ranks gave up on this one, missing its heartbeats, while in {verb} "
                f"({brief(error)}); end it and resume from the last checkpoint"
            )
        return PeerLost(
            f"{self._who}: lost {_ranks(lost) if lost else 'a peer'} while in {verb} ({brief(error)}); see that "
            "rank's own output, then resume from the last checkpoint"
        )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
