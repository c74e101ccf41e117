"""A run goes on from a checkpoint, with as many workers as before or with another number of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarmstep.errors import CheckpointError, UsageError
from swarmstep.runtime.own_checkpoint import load_model, sources_of
from swarmstep.signal import MembershipChange
from swarmstep.train.config import FREE, Config
from swarmstep.train.run_folder import steps_taken
from swarmstep.train.trainer import Trainer


def check_steps(config: Config, steps: int, folder: Path) -> None:
    """Raise UsageError unless the run in `folder` can go on to `steps` as if they had been asked for at once.

    Args:
        config: of the run, resolved.
        steps: asked for now.
        folder: of the run, which may be done.
    """
    taken = steps_taken(folder)
    if taken is not None and steps <= taken:
        raise UsageError(f"--steps {steps}: {folder} has taken {taken} steps and is done; expected more than that")
    if taken is not None and config.until_accuracy is not None and taken < (config.steps or 0):
        raise UsageError(
            f"--steps {steps}: {folder} was done at step {taken}, where it reached --until-accuracy "
            f"{config.until_accuracy}; more steps change nothing"
        )
    if steps != config.steps and config.schedule != "constant":
        raise UsageError(
            f"--steps {steps}: {folder} has a {config.schedule} schedule, by which the learning rate of each step "
            f"depends on the last, {config.steps}; with other steps it is another run: start a new one, or give "
            "--schedule constant from its start"
        )


def restore(trainer: Trainer, states: Mapping[int, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Load this rank's part of a checkpoint into a new trainer, and return it.

    With another number of workers the first ranks go on as they were. One that is new starts at the mean of the
    checkpoint's workers, as a new particle, with the optimizer's state of rank 0.

    Args:
        trainer: of this rank; its config must be that of the checkpoint, but for `FREE`.
        states: what `Trainer.checkpoint` returned, by rank: of all ranks, or of this one if their number is as it
            was.
        folder: where they were read, for errors.

    Raises:
        CheckpointError: names what differs.
        UsageError: the run has taken as many steps as are asked for.
    """
    try:
        state = _restore(trainer, states)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())  # the workload's code has changed since
        raise CheckpointError(f"{folder}: does not fit this run: {why}; start a new one") from error
    taken, elastic = trainer.taken, trainer.sync.comm.elastic  # which saves after its last round, too
    if trainer.steps < taken or (trainer.steps == taken and not elastic):
        raise UsageError(f"--steps {trainer.steps}: the run has taken {taken} steps; expected more than that")
    return state


def _restore(trainer: Trainer, states: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    sync, model = trainer.sync, trainer.model
    rank, size = sync.comm.rank, sync.comm.size
    before = int(next(iter(states.values()))["sync"]["configuration"]["world size"])
    state = states[rank if rank < before else 0]
    _check_config(trainer.config, state["config"])
    if before != size and trainer.config.balance != "off" and not sync.comm.elastic:
        raise UsageError(
            f"--workers {size}: expected {before}, as the run has; with --balance {trainer.config.balance} the "
            "shares of the work are theirs"
        )
    if trainer.workload.corpus != state["corpus"]:
        raise CheckpointError(
            f"checkpoint: corpus: expected SHA-256 {trainer.workload.corpus}, found {state['corpus']}: the run "
            "was trained on another text; go on with the Python, or the --data, that it began with"
        )
    load_model(model, {rank: state["model"] for rank, state in states.items()}, rank)
    trainer.optimizer.load_state_dict(state["optimizer"])
    sources = sources_of(before, size)
    sync.load_state_dict(state["sync"], sources)
    trainer.feed.load_state_dict(state["feed"])
    trainer.share.load_state_dict(state.get("share", {}))
    if sources:
        change = MembershipChange(
            step=sync.steps,
            committed=sync.committed,
            rounds=sync.rounds,
            epoch=sync.comm.epoch,
            sources=sources,
            names=sync.comm.names,
            rank=rank,
            newcomer=rank >= before,
            states=sync.states,
            seconds=0.0,
        )
        trainer.share.regroup(change)
        trainer.feed.change(Config(**state["config"]), change, trainer.share.dealt)
    trainer.load_state_dict(state["trainer"])
    if trainer.fault and rank < before:
        trainer.fault.load_state_dict(state["fault"])
    return state


def _check_config(config: Config, saved: Mapping[str, Any]) -> None:
    before = dataclasses.asdict(Config(**saved))
    for name, expected in dataclasses.asdict(config).items():
        found = before[name]
        if name not in FREE and found != expected:
            raise CheckpointError(
                f"checkpoint: {name}: expected {expected!r}, found {found!r}; it belongs to another run"
            )
