"""The program under Ray Train: Ray places the workers, keeps checkpoints, starts all anew when one is lost.

pip install "swarmstep[ray]"
python examples/clusters/ray_train.py FOLDER [STEPS]     # on the cluster of RAY_ADDRESS, or a new local one

FOLDER is storage that all machines see. SWARMSTEP_SECRET is passed on to the workers, and so is
GLOO_SOCKET_IFNAME.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from program import train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from swarmstep import DistComm
from swarmstep.checkpoint.loader import load_any
from swarmstep.checkpoint.saver import save


def worker(config: dict[str, Any]) -> None:
    """Be one of the workers; Ray has formed torch's process group."""
    torch.set_num_threads(1)
    comm = DistComm.from_env(exact=True)
    print(f"rank {comm.rank} on node {ray.get_runtime_context().get_node_id()}", flush=True)
    states: list[dict[str, Any]] = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            states = load_any(Path(folder))[1]

    def keep(step: int, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), step, state, comm)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))  # of all ranks, merged

    try:
        said = train(comm, states, keep, lambda: False, config["steps"])
        if comm.rank == 0:
            (Path(config["folder"]) / "result.txt").write_text(f"{said}\n")
    finally:
        comm.close()


def main(folder: Path, steps: int = 480) -> None:
    passed = ("SWARMSTEP_SECRET", "SWARMSTEP_SECRET_FILE", "GLOO_SOCKET_IFNAME", "PACE")
    given = {name: value for name, value in os.environ.items() if name in passed}
    ray.init(runtime_env={"env_vars": given, "working_dir": str(Path(__file__).parent)})
    TorchTrainer(
        worker,
        train_loop_config={"folder": str(folder), "steps": steps},
        torch_config=TorchConfig("gloo"),
        scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
        run_config=RunConfig(name="rings", storage_path=str(folder), failure_config=FailureConfig(max_failures=3)),
    ).fit()
    print((folder / "result.txt").read_text(), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
