"""What a collective costs on a link: the algorithm of each verb over gloo, see docs/virtual-clock.md."""

from __future__ import annotations

import math
from collections.abc import Callable

from swarmstep.comm.metered import Call
from swarmstep.comm.p2p import FLOOR, PIECE, PIECES
from swarmstep.errors import DataError
from swarmstep.network.link import Link

MSS, FRAME = 1448, 1514  # bytes: what a packet of TCP carries, and its length on Ethernet
FIRST_WINDOW = 10 * MSS  # bytes that TCP sends before the first acknowledgement (RFC 6928)
MATHIS = (
    1.22  # sqrt(3/2): Mathis et al. 1997, "The macroscopic behavior of the TCP congestion avoidance algorithm"
)

# What calling costs, and what each message that others wait for costs besides the delay of the link. Measured with
# 16 bytes among 2, 4 and 8 workers on 2 processors, medians in ms: mean 1.2, 4.1, 10 (4 (W-1) messages in a row);
# gather 0.8, 2.6, 8.5 (2 (W-1)); broadcast by tree 0.5, 1.3, 3.5 (log2 W), by chain 2.0, 5.3 (W).
CALL, HOP = 0.3e-3, 0.35e-3
# Linux halves the window at each timeout that a connection is idle. Measured at 20 Mbit/s and 20 ms after 0.6 s of
# rest: 0.2 to 1 of what TCP waits when it opens its window anew.
OPENING = 0.5
# Where all send bulk at once, acknowledgements wait behind data. Measured at 100 Mbit/s among 4, 0.5 to 4 MB:
# gloo's all-gather takes 1.04 to 1.13 of what its bytes need, its all-to-all 1.2 to 1.35, a permute 25 to 55 ms
# more.
GATHER, TO_ALL_AT_ONCE, STALL = 1.08, 1.3, 45e-3


class LinkCosts:
    """A link as TCP and gloo see it; each verb in seconds, of `sent` bytes given by each of `size` >= 2 ranks.

    Gloo sends bulk when it knows that there is room for it: most messages wait for two delays, not one.

    Args:
        link: how each worker is joined to the switch.
    """

    def __init__(self, link: Link) -> None:
        self._turn = 2 * (link.delay + 2 * FRAME * 8 / link.rate)  # there and back, with nothing in a queue
        self._lag = HOP + link.delay
        self._rate = link.rate / 8 * MSS / FRAME
        if link.loss:
            turn = self._turn + HOP  # where the link is short, an acknowledgement waits for a processor
            self._rate = min(self._rate, MATHIS * MSS / (turn * math.sqrt(link.loss)))

    def _opening(self, sent: float) -> float:
        """Return for how long TCP waits for acknowledgements while its window doubles to what the link holds."""
        window, waited = float(FIRST_WINDOW), 0.0
        while window < sent and window < self._turn * self._rate:
            waited += self._turn - window / self._rate
            sent -= window
            window *= 2
        return OPENING * waited

    def _flow(self, sent: float) -> float:
        """Return the seconds that `sent` bytes take to leave."""
        return sent / self._rate + self._opening(sent)

    def mean(self, sent: int, size: int) -> float:
        """All-reduce by a ring: 2 (size - 1) times each rank hands on a share, in two halves under way at once."""
        share = (sent + 4) / size  # the weight rides behind
        bulk = share / self._rate
        return 2 * (size - 1) * max(bulk, bulk / 2 + 2 * self._lag) + self._opening(share)

    def gather(self, sent: int, size: int) -> float:
        """All-gather by a ring: size - 1 times each rank hands on a vector, in two halves under way at once."""
        bulk = sent / self._rate
        return (size - 1) * max(GATHER * bulk, bulk / 2 + 2 * self._lag) + self._opening(sent)

    def broadcast(self, sent: int, size: int) -> float:
        """Gloo's binomial tree, or a chain in pieces where that is tried and faster."""
        tree = math.ceil(math.log2(size)) * (self._flow(sent) + self._lag)
        if size < 3 or sent < FLOOR:
            return tree
        piece = max(PIECE, math.ceil(sent / PIECES))
        return min(tree, self._flow(sent) + (size - 2) * self._flow(piece) + size * self._lag)

    def permute(self, sent: int, size: int) -> float:
        """Each sends to one and receives from one, all at once."""
        return self._flow(sent) + min(STALL, sent / self._rate) + 2 * self._lag

    def all_to_all(self, sent: int, size: int) -> float:
        """Gloo's way, to all at once, or one partner after the other where that is tried and faster."""
        row = sent / size
        at_once = TO_ALL_AT_ONCE * (size - 1) * row / self._rate + self._opening(row) + 2 * self._lag
        if size < 3 or sent < FLOOR:
            return at_once
        return min(at_once, (size - 1) * (self._flow(row) + 2 * self._lag))


VERBS: dict[str, Callable[[LinkCosts, int, int], float]] = {
    "mean": LinkCosts.mean,
    "gather": LinkCosts.gather,
    "broadcast": LinkCosts.broadcast,
    "permute": LinkCosts.permute,
    "all_to_all": LinkCosts.all_to_all,
}


def seconds_of(call: Call, link: Link) -> float:
    """Return the seconds of a call, from when its last rank arrives to when the last one has all.

    Raises:
        DataError: there is no such verb.
    """
    if call.verb not in VERBS:
        raise DataError(f"trace: unknown verb {call.verb!r}; expected one of {', '.join(VERBS)}; run it again")
    return CALL + VERBS[call.verb](LinkCosts(link), call.bytes, call.size) if call.size > 1 else 0.0
