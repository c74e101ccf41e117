"""Named points of a run at which a fault can be injected.

`reach` calls the hook of the current context, if there is one. Each simulated worker has a context of its own; a
round in the background runs in the context that started it. A hook is called as hook(point, **what). It may look
at what it is given, change it in place where the point says so, raise an exception, or end the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

# A fragment before its first round in a group. target: "weights" or "gradients"; fragment; x: its vector.
STARTED = "started"
# A round is about to start; with a voting trigger its roll has been called by then, else not. target; fragment;
# step; x [P]: this worker's parameters, or its gradient, as the round will see them: the hook may change them.
ROUND_OPENED = "round opened"
ROLL_CALL = "roll call"  # before each roll call, also where no round follows
ROLL_CALLED = "roll called"
COLLECTIVE = "collective"  # before each collective of real processes
COLLECTIVE_STARTED = "collective started"
EXCHANGED = "exchanged"  # all collectives of a round are done; it is not decided yet whether it counts
VOTED = "voted"  # this worker's vote is on the store, the verdict not known
COUNTED = "counted"  # this worker has seen all votes, and is about to set the verdict
DECIDED = "decided"  # a round counts
LANDING = "landing"  # before a round changes weights and state
# A round has changed weights and state. target; report: its Round; x: the vector of its fragment, parameters
# first; state: the strategy's.
LANDED = "landed"

# A change of membership, in its order.
LEAVING = "leaving"  # the present group is given up
REGISTERING = "registering"
REGISTERED_PLACE = "registered place"  # this worker's place in the queue is taken, its name not yet written there
REGISTERED = "registered"
CHOOSING = "choosing"  # this worker is about to propose the members of the next group
FORMING = "forming"
FORMED = "formed"  # the members of the group are connected
PROVEN = "proven"  # they have proven to each other that they know the secret
HANDING_OVER = "handing over"  # a newcomer is about to get what a member has
HANDED_OVER = "handed over"
MEETING = "meeting"  # newcomers are about to take the mean of the others' weights
SPLITTING = "splitting"  # a part of the group gets connections of its own
CONNECTING_PART = "connecting part"
ENTERING = "entering"  # all is in its place in the new group; it is not decided yet whether it counts
ENTERED = "entered"
MEMBERSHIP_CHANGED = "membership changed"  # this worker is in the new group. change: its MembershipChange; x

# An asynchronous server.
RESULT_TAKEN = "result taken"  # number: how many by now
WORKERS_CHANGED = "workers changed"  # kind: "joined" or "left"; worker

# The end of a run.
FINISHING = "finishing"  # this worker has taken its last step
RESULT = "result"  # the workers are about to agree on the model at the end

Hook = Callable[..., None]
_hook: ContextVar[Hook | None] = ContextVar("swarmstep_fault_hook", default=None)


def reach(point: str, **what: Any) -> None:
    """Tell the hook of this context, if there is one, that a point has been reached.

    Args:
        point: one of this module's constants.
        what: as the point says.
    """
    hook = _hook.get()
    if hook:
        hook(point, **what)


def watched() -> bool:
    """Return whether this context has a hook: what only a hook looks at need not be computed otherwise."""
    return _hook.get() is not None


@contextlib.contextmanager
def interfering(hook: Hook) -> Generator[None]:
    """Have `hook` called at each point that this context reaches within the block, after those around it."""
    outer = _hook.get()

    def both(point: str, **what: Any) -> None:
        if outer:
            outer(point, **what)
        hook(point, **what)

    token = _hook.set(both)
    try:
        yield
    finally:
        _hook.reset(token)
