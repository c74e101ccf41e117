"""Which keys of an elastic run's store are still needed, and the removal of the others.

The keys of an epoch are needed as long as a member of it may come back to it: to ask for its last verdict, which
it does not once it is in a later group; or with its state as the newest one, which it has no longer once a later
group has begun with it. So each group that begins says which earlier epochs somebody may need who is not dead, and
then removes the keys of the others. Who finds keys missing, or an epoch decided that has passed long since, learns
from `kept` where the run is now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from swarmstep.comm.heartbeat import alive_key, dead_key, witness_key
from swarmstep.comm.store import Store, forget, keys_of, peek
from swarmstep.elastic.commit_vote import ABORT, COMMIT, first_verdict
from swarmstep.elastic.keys import (
    KEPT,
    candidates_key,
    epoch_key,
    group_key,
    members_key,
    saved_key,
    vote_key,
)


def kept(store: Store) -> list[int]:
    """Return the earlier epochs that are still needed, then the last one that was known to have begun.

    [0] before anything was removed. No epoch before the last of them will ever be the next one.
    """
    found = peek(store, KEPT)
    return json.loads(found) if found else [0]


def members_of(store: Store, number: int) -> list[list[Any]]:
    """Return the name and the source of each member of an epoch's group; none where they are removed."""
    found = peek(store, members_key(number))
    return json.loads(found) if found else []


def remove_old(store: Store, number: int, names: Sequence[str]) -> None:
    """Remove the keys that nobody needs any more, where the store can list its keys.

    One member of each group that begins calls it. Where it does not come to it, that of a later group does it all.

    Args:
        store: of the run.
        number: the epoch of a group that has begun.
        names: of its members.

    Raises:
        RuntimeError: the store does not answer.
    """
    keys, before = keys_of(store), peek(store, KEPT)
    if before and json.loads(before)[-1] >= number:
        return  # a later group has done it
    epochs = {epoch for key in keys if (epoch := _epoch_of(key)) is not None}
    old = sorted(epoch for epoch in epochs if epoch < number)
    needed = _needed(store, old, {*names})
    said = json.dumps([*needed, number])
    if keys and store.compare_set(KEPT, before, said).decode() == said:
        for epoch in old:
            # Who votes in an epoch looks for requests that belong to the following one.
            used = epoch in needed or epoch - 1 in needed
            forget(store, keys, f"{group_key(epoch) if used else epoch_key(epoch)}/")
        later = [epoch for epoch in epochs if epoch >= number]
        _remove_dead(store, keys, {*names} | _names_in(store, keys, [*needed, *later]))


def _epoch_of(key: str) -> int | None:
    number = key.removeprefix(epoch_key("")).partition("/")[0]
    return int(number) if number.isdecimal() else None


def _needed(store: Store, epochs: Sequence[int], names: set[str]) -> list[int]:
    """Return those of some epochs that a member may come back to, before a group of these names."""
    needed, later, begun = list[int](), {*names}, {*names}  # who is in a later group, and in one that has begun
    for epoch in reversed(epochs):
        members = {name for name, _ in members_of(store, epoch)}
        holds = bool(members) and began(store, epoch)
        if any(not _count(store, dead_key(name)) for name in members - (begun if holds else later)):
            needed.insert(0, epoch)
        later |= members
        begun |= members if holds else set()
    return needed


def began(store: Store, number: int) -> bool:
    """Return whether a group has begun; if not, see to it that it never does."""
    return store.compare_set(first_verdict(vote_key(number)), "", ABORT).decode().startswith(COMMIT)


def _count(store: Store, key: str) -> int:
    return int(peek(store, key) or "0")


def _names_in(store: Store, keys: Iterable[str], epochs: Sequence[int]) -> set[str]:
    """Return the names of the members of epochs, and of the candidates for them."""
    prefixes = tuple(f"{candidates_key(epoch)}/" for epoch in epochs)
    rows = [peek(store, key) for key in keys if key.startswith(prefixes)]
    return {name for epoch in epochs for name, _ in members_of(store, epoch)} | {
        json.loads(row)[0] for row in rows if row
    }


def _remove_dead(store: Store, keys: Iterable[str], needed: set[str]) -> None:
    """Remove what is known of workers that are dead and in no epoch any more.

    Who has not heard of their death, and looks for them, leaves counters of 0 behind; these are removed, too.
    """
    kinds = (alive_key, witness_key, dead_key, saved_key)
    known = {key.removeprefix(kind("")) for key in keys for kind in kinds if key.startswith(kind(""))}
    for name in sorted(known - needed):
        if _count(store, dead_key(name)) or not _count(store, alive_key(name)):
            for kind in kinds:
                store.delete_key(kind(name))
