"""What a checkpoint holds of a Synchronizer: checked against the run that loads it before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.arguments import check_type
from swarmstep.checkpoint import fields
from swarmstep.errors import CheckpointError
from swarmstep.runtime import fragment_state
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.fragment_state import Loading
from swarmstep.runtime.regrouping import Counts, Regrouping
from swarmstep.runtime.replica import Replica

LAYOUT = 4  # of what `save` returns


def save(replica: Replica, group: Regrouping, counts: Counts) -> dict[str, Any]:
    """Return numbers, strings and tensors; waits for the round under way, which still lands at its step."""
    comm = group.comm
    return {
        "layout": LAYOUT,
        "configuration": replica.describe(comm.size),
        "rank": comm.rank,
        **counts.state_dict(),
        "weights": fields.fingerprint(replica.flat.read()),
        "fragments": [fragment_state.save(fragment) for fragment in group.fragments],
    }


def load(
    saved: Mapping[str, Any], sources: Sequence[int | None], replica: Replica, group: Regrouping, counts: Counts
) -> None:
    """Go on from what `save` returned, with or without `sources` (see `Synchronizer.load_state_dict`).

    Raises:
        CheckpointError: names the field that differs; nothing was loaded then.
    """
    check_type("Synchronizer.load_state_dict: saved", saved, Mapping)
    try:
        _check_layout(saved)
        if sources:
            loaded, group.fragments = _carried(saved, sources, replica, group)
        else:
            loaded, checked = _checked(saved, replica, group)
            for fragment, part in zip(group.fragments, checked, strict=True):
                fragment_state.load(fragment, part)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit this run ({error}); start anew") from error
    counts.take(loaded)


def _check_layout(saved: Mapping[str, Any]) -> None:
    layout = saved.get("layout", 1)
    if layout != LAYOUT:
        age = "an older" if layout < LAYOUT else "a newer"
        raise CheckpointError(
            f"layout: expected a checkpoint of layout {LAYOUT}, found {layout}, which {age} version of swarmstep "
            "wrote; finish the run with that version, or start anew from the model's weights"
        )


def _carried(
    saved: Mapping[str, Any], sources: Sequence[int | None], replica: Replica, group: Regrouping
) -> tuple[Counts, list[Fragment]]:
    """Return the counts, and new fragments that go on from those of another group; changes nothing."""
    size = int(fields.field(saved, "configuration")["world size"])
    _check_configuration(saved, replica.describe(size))
    parts = _parts(saved, replica)
    fragments = replica.fragments(group.comm)
    for fragment, part in zip(fragments, parts, strict=True):
        fragment_state.carry_over(fragment, part, sources)
    return Counts.load(saved), fragments


def _checked(saved: Mapping[str, Any], replica: Replica, group: Regrouping) -> tuple[Counts, list[Loading]]:
    """Return the counts, and what there is to load into each fragment; changes nothing."""
    fields.same("rank", group.comm.rank, fields.field(saved, "rank"))
    _check_configuration(saved, replica.describe(group.comm.size))
    if fields.field(saved, "weights") != fields.fingerprint(replica.flat.read()):
        raise CheckpointError(
            "weights: the model does not hold the weights of the checkpoint; load the model's state dict "
            "before Synchronizer.load_state_dict, on all ranks"
        )
    pairs = zip(group.fragments, _parts(saved, replica), strict=True)
    return Counts.load(saved), [fragment_state.check(fragment, part) for fragment, part in pairs]


def _check_configuration(saved: Mapping[str, Any], own: Mapping[str, str]) -> None:
    found = fields.field(saved, "configuration")
    for field in {**own, **found}:
        fields.same(field, own.get(field, "absent"), found.get(field, "absent"))


def _parts(saved: Mapping[str, Any], replica: Replica) -> list[Any]:
    parts = fields.field(saved, "fragments")
    fields.same("number of fragments", replica.options.fragments, len(parts))
    return parts
