"""What a collective costs on a link, from the algorithm of each verb over gloo; see docs/virtual-clock.md."""

from __future__ import annotations

import math
from collections.abc import Callable

from swarmstep.comm.metered import Call
from swarmstep.comm.p2p import FLOOR, PIECE, PIECES
from swarmstep.errors import DataError
from swarmstep.network.link import Link

MSS, FRAME = 1448, 1514  # bytes of a TCP packet: its payload, and its length on Ethernet
FIRST_WINDOW = 10 * MSS  # bytes sent before the first acknowledgement (RFC 6928)
MATHIS = (
    1.22  # sqrt(3/2): Mathis et al. 1997, "The macroscopic behavior of the TCP congestion avoidance algorithm"
)

# The cost of a call, and of each message that another one waits for besides the delay of the link. Measured with
# 16 bytes among 2, 4 and 8 workers on 2 cores, medians in ms: mean 1.2, 4.1, 10 (4 (W-1) messages in a row);
# gather 0.8, 2.6, 8.5 (2 (W-1)); broadcast by tree 0.5, 1.3, 3.5 (log2 W), by chain 2.0, 5.3 (W).
CALL, HOP = 0.3e-3, 0.35e-3
# Linux halves the window of an idle connection at each timeout. Measured at 20 Mbit/s and 20 ms after 0.6 s of
# rest: 0.2 to 1 of the time that a full slow start takes.
SLOW_START = 0.5
# When all workers send in bulk, acknowledgements queue behind data. Measured at 100 Mbit/s among 4 workers, 0.5 to
# 4 MB: gloo's all-gather takes 1.04 to 1.13 times as long as its bytes, its all-to-all 1.2 to 1.35 times, and a
# permute 25 to 55 ms longer.
GATHER_FACTOR, ALL_TO_ALL_FACTOR, PERMUTE_STALL = 1.08, 1.3, 45e-3


class LinkCosts:
    """Seconds of each verb over TCP and gloo, when each of `size` >= 2 ranks passes `sent` bytes.

    Gloo sends data only after the receiver has announced a buffer: most messages take two delays, not one.

    Args:
        link: between each worker and the switch.
    """

    def __init__(self, link: Link) -> None:
        self._round_trip = 2 * (link.delay + 2 * FRAME * 8 / link.rate)  # with empty queues
        self._lag = HOP + link.delay
        self._rate = link.rate / 8 * MSS / FRAME
        if link.loss:
            round_trip = self._round_trip + HOP  # on a short link an acknowledgement waits for a CPU
            self._rate = min(self._rate, MATHIS * MSS / (round_trip * math.sqrt(link.loss)))

    def _slow_start(self, sent: float) -> float:
        """Return how long TCP waits for acknowledgements while its window doubles to the capacity of the link."""
        window, waited = float(FIRST_WINDOW), 0.0
        while window < sent and window < self._round_trip * self._rate:
            waited += self._round_trip - window / self._rate
            sent -= window
            window *= 2
        return SLOW_START * waited

    def _transfer(self, sent: float) -> float:
        """Return the seconds to send `sent` bytes, without the delay of the link."""
        return sent / self._rate + self._slow_start(sent)

    def mean(self, sent: int, size: int) -> float:
        """Ring all-reduce: each rank passes on a share 2 (size - 1) times, as two halves in flight at once."""
        share = (sent + 4) / size  # with the weight appended
        bulk = share / self._rate
        return 2 * (size - 1) * max(bulk, bulk / 2 + 2 * self._lag) + self._slow_start(share)

    def gather(self, sent: int, size: int) -> float:
        """Ring all-gather: each rank passes on a vector size - 1 times, as two halves in flight at once."""
        bulk = sent / self._rate
        return (size - 1) * max(GATHER_FACTOR * bulk, bulk / 2 + 2 * self._lag) + self._slow_start(sent)

    def broadcast(self, sent: int, size: int) -> float:
        """Gloo's binomial tree, or our chain of pieces where it is tried and faster."""
        tree = math.ceil(math.log2(size)) * (self._transfer(sent) + self._lag)
        if size < 3 or sent < FLOOR:
            return tree
        piece = max(PIECE, math.ceil(sent / PIECES))
        return min(tree, self._transfer(sent) + (size - 2) * self._transfer(piece) + size * self._lag)

    def permute(self, sent: int, size: int) -> float:
        """Each rank sends to one rank and receives from one, all at once."""
        return self._transfer(sent) + min(PERMUTE_STALL, sent / self._rate) + 2 * self._lag

    def all_to_all(self, sent: int, size: int) -> float:
        """Gloo's algorithm, to all at once, or one partner after another where that is tried and faster."""
        row = sent / size
        at_once = ALL_TO_ALL_FACTOR * (size - 1) * row / self._rate + self._slow_start(row) + 2 * self._lag
        if size < 3 or sent < FLOOR:
            return at_once
        return min(at_once, (size - 1) * (self._transfer(row) + 2 * self._lag))


VERBS: dict[str, Callable[[LinkCosts, int, int], float]] = {
    "mean": LinkCosts.mean,
    "gather": LinkCosts.gather,
    "broadcast": LinkCosts.broadcast,
    "permute": LinkCosts.permute,
    "all_to_all": LinkCosts.all_to_all,
}


def seconds_of(call: Call, link: Link) -> float:
    """Return the seconds from the last rank's entry into a call to the last rank's result.

    Raises:
        DataError: the verb is unknown.
    """
    if call.verb not in VERBS:
        raise DataError(f"trace: unknown verb {call.verb!r}; expected one of {', '.join(VERBS)}; run it again")
    return CALL + VERBS[call.verb](LinkCosts(link), call.bytes, call.size) if call.size > 1 else 0.0
