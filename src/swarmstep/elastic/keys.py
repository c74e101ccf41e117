"""The keys of the store in which an elastic run is coordinated; it is served by a process that is not a worker.

Below "swarmstep/":

::

    alive/NAME                        a worker's heartbeats            (swarmstep.comm.heartbeat)
    witness/NAME                      where its witness answers        (swarmstep.comm.witness)
    dead/NAME                         above 0: it has died             (set by whoever started it)
    stop, finish, over                what was requested; that the run is over
    saved/NAME                        the step of its newest checkpoint
    concluded                         above 0: one worker has done what one does for all at the end
    run                               an identifier of this run
    slots                             how many slots all supervisors have
    kept                              the epochs whose keys are still there (retention.py)
    epoch/E/candidates, candidates/I  who wants to be in the group of epoch E, in the order in which they
    registered epoch/E/forming                   above 0: members of the previous group have begun to form this
    one epoch/E/members                   the group, decided by one compare-and-set epoch/E/group/...
    where its members exchange their addresses epoch/E/vote/...                  its decisions; the first one is
    that it has begun: all weights and states are in
                                      their places                     (commit_vote.py)
"""

from __future__ import annotations

STOP, FINISH, OVER = "swarmstep/stop", "swarmstep/finish", "swarmstep/over"
RUN = "swarmstep/run"
CONCLUDED = "swarmstep/concluded"
KEPT = "swarmstep/kept"


def epoch_key(number: int | str) -> str:
    """Return the beginning of all keys of an epoch."""
    return f"swarmstep/epoch/{number}"


def candidates_key(number: int) -> str:
    """Return the key of the count of candidates for the group of an epoch; the prefix of their own keys."""
    return f"{epoch_key(number)}/candidates"


def forming_key(number: int) -> str:
    """Return the key of the counter that is above 0 once a member of the previous group forms this one."""
    return f"{epoch_key(number)}/forming"


def members_key(number: int) -> str:
    """Return the key of the members of the group of an epoch."""
    return f"{epoch_key(number)}/members"


def group_key(number: int) -> str:
    """Return the prefix under which the members of a group meet."""
    return f"{epoch_key(number)}/group"


def vote_key(number: int, part: str = "") -> str:
    """Return the prefix of the decisions of a group, or of a part of it."""
    return f"{epoch_key(number)}/vote{part}"


def wanted_key(number: int, round_number: int) -> str:
    """Return the key of the count of members of a group that want a round."""
    return f"{group_key(number)}/wanted/{round_number}"


def saved_key(name: str) -> str:
    """Return the key of the step of a worker's newest checkpoint."""
    return f"swarmstep/saved/{name}"
