"""The inner optimizer's learning rate in a round in which some workers do not take part."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Roll, Signal


def common_rate(signal: Signal, roll: Roll, comm: Comm) -> float | None:
    """Return the learning rate of the workers that take part, the same on all ranks; None if they gave none.

    A worker that has finished its data has no learning rate any more. As long as all take part this costs nothing;
    otherwise a gather of 8 bytes a worker.
    """
    if roll.present.all():
        return signal.lr
    own = math.nan if signal.lr is None else signal.lr
    rates = comm.gather(torch.tensor(own, dtype=torch.float64))
    rate = float(rates[roll.present][0])
    return None if math.isnan(rate) else rate


def common_rates(x: Tensor, rate: float, signal: Signal, roll: Roll, comm: Comm) -> Tensor:
    """Return the learning rate of each element, [P] like x, or of all, float64 []; the same on all ranks.

    As `common_rate`, whose result is `rate`; where some do not take part and the rates differ, a broadcast more.
    """
    if roll.present.all():
        return signal.rates() if signal.rates else torch.tensor(rate, dtype=torch.float64)
    differ = comm.gather(torch.tensor(signal.rates is not None))
    if not differ[roll.present][0]:
        return torch.tensor(rate, dtype=torch.float64)
    own = signal.rates() if signal.rates else torch.zeros_like(x)
    first = int(roll.present.int().argmax())
    return comm.broadcast(own.double(), first).to(x.dtype)  # in double precision, which no codec changes
