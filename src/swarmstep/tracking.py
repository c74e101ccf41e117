"""Where the numbers of a run go besides its metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

A sink takes numbers by name and step, and knows nothing of runs; `scalars` names those of a row of metrics.jsonl.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from swarmstep.errors import UsageError
from swarmstep.optional_imports import library

COSTS = ("bytes_sent", "seconds")
EXPERIMENT = "swarmstep"  # the project or experiment to which runs belong


class Sink(Protocol):
    """Takes the numbers of one run; one thread at a time calls it."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers, name -> value, of a step that is not below the last one's."""

    def close(self) -> None:
        """Write down what is not yet written; nothing is taken after this."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run; ``tensorboard --logdir runs`` shows all below runs/.

    Args:
        folder: of the run.
        config: of the run, shown as text.
        step: after which the run goes on: later values of an earlier part are dropped (0: there is none).
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        torchs = library("torch.utils.tensorboard", "tensorboard", "--track tensorboard needs")
        purged = step + 1 if step else None
        self._writer = torchs.SummaryWriter(str(folder / "tensorboard"), purge_step=purged)
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()), step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases in the project `swarmstep`, offline unless WANDB_MODE says otherwise.

    Its files are in the folder `wandb` of the run; ``wandb sync`` uploads them. A run that is resumed keeps its
    id, so that both parts are one run there.

    Args:
        folder: of the run.
        config: of the run.
        step: after which the run goes on.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        wandb = library("wandb", "wandb", "--track wandb needs")
        self._run = wandb.init(
            project=EXPERIMENT,
            name=folder.name,
            id=_identity(folder),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config={**config},
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow in the experiment `swarmstep`: at MLFLOW_TRACKING_URI, or in the folder `mlruns` of the run.

    A run that is resumed goes on in the same MLflow run.

    Args:
        folder: of the run.
        config: of the run, as parameters.
        step: after which the run goes on.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        mlflow = library("mlflow", "mlflow", "--track mlflow needs")
        self._entities = library("mlflow.entities", "mlflow", "--track mlflow needs")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for this; it goes on working
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        identity = _identity(folder)
        earlier = self._client.search_runs([experiment], f"tags.{EXPERIMENT} = '{identity}'", max_results=1)
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        run = self._client.create_run(experiment, run_name=folder.name, tags={EXPERIMENT: identity})
        self._run = run.info.run_id
        params = [self._entities.Param(name, str(value)[:500]) for name, value in config.items()]
        self._client.log_batch(self._run, params=params)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


SINKS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def named(text: str) -> list[str]:
    """Return the names of sinks in a list such as ``tensorboard,wandb``.

    Raises:
        UsageError: one is unknown, or its library is not installed.
    """
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in SINKS:
            raise UsageError(f"--track: expected names among {', '.join(SINKS)}, found {name!r}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f'--track {name}: not installed here: pip install "swarmstep[{name}]"')
    return found


def scalars(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the step and the finite numbers of a row of metrics.jsonl, by the names that sinks show.

    ============================  =====================================================================
    ``loss/mean, loss/0 ...``     training loss since the last look: mean, and of each worker
    ``test/loss, test/...``       on the test set, of the model that the run would return now
    ``validation/...``            the same on the validation set
    ``cost/bytes_sent, .../seconds``  by a worker, and of training, so far
    ``model/...``                 what else the run tells of the model, such as mask flips
    ``round/...``                 of a round: `number`, `seconds`, `bytes_sent`, `participants` ...
    ``round/distrusted``          how many workers the round left out
    ``work/steps/0 ...``          of each worker so far: `steps`, `compute_seconds`, `wait_seconds` ...
    ============================  =====================================================================
    """
    kind, step = row["kind"], row.get("landed", row["step"])
    values: dict[str, Any] = {}
    if kind == "look":
        losses = [loss for loss in row["losses"] if _finite(loss)]
        values["loss/mean"] = sum(losses) / len(losses) if losses else math.nan
        values |= {f"loss/{rank}": loss for rank, loss in enumerate(row["losses"])}
        for worker in row.get("by_worker", ()):
            values |= {f"work/{name}/{worker['rank']}": n for name, n in worker.items() if name != "rank"}
    elif kind == "evaluation":
        for name, value in row.items():
            part, _, rest = name.partition("_")
            if part in ("test", "validation"):
                values[f"{part}/{rest}"] = value
            elif name not in ("kind", "step"):
                values[f"{'cost' if name in COSTS else 'model'}/{name}"] = value
    elif kind == "round":
        values = {f"round/{name}": value for name, value in row.items() if name not in ("step", "landed")}
        values["round/distrusted"] = len(row.get("distrusted", ()))
    return step, {name: float(value) for name, value in values.items() if _finite(value)}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _identity(folder: Path) -> str:
    """Return what tells the run in a folder from all others, also when the folder is moved and the run resumed."""
    mark = folder / "track-id"
    if not mark.exists():
        mark.write_text(os.urandom(8).hex())
    return mark.read_text()
