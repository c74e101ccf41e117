"""A SLURM cluster on this machine: slurmctld, and a slurmd in the network namespace of each node."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarmstep.network.namespaces import Network

PATH = f"{os.environ['PATH']}:/usr/sbin"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
LIMIT = 240.0  # seconds; a hang, not a measurement
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class SlurmCluster:
    """A context manager; all daemons end with it.

    Args:
        network: one worker for each node.
        folder: for all files.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.daemons = dict[str, subprocess.Popen[bytes]]()
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def __enter__(self) -> SlurmCluster:
        folder, names = self.folder, [f"node{rank}" for rank in range(self.network.workers)]
        for name in ("state", *(f"spool-{name}" for name in names)):
            (folder / name).mkdir(parents=True)
        lines = [f"NodeName={n} NodeAddr={self.network.address(i)} CPUs=1" for i, n in enumerate(names)]
        where = {"host": socket.gethostname(), "controller": self.network.store_host, "folder": folder}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**where, nodes="\n".join(lines)))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        files = [f"--{kind}={folder}/munge.{kind.split('-')[0]}" for kind in ("key-file", "socket", "log-file")]
        files += [f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"]
        try:
            self._start("munged", ["munged", "--foreground", "--force", *files])
            self.until((folder / "munge.socket").exists, "munged")
            self._start("slurmctld", self.at_controller(["slurmctld", "-D"]))
            for rank in range(self.network.workers):
                self.start_node(rank)
            self.until(
                lambda: self.run("sinfo", "-hNp", "low", "-o", "%t").split() == ["idle"] * len(names), "the nodes"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if (self.folder / "slurmctld.pid").exists():
            with contextlib.suppress(subprocess.SubprocessError):
                self.run("scancel", "--signal=KILL", "--user=root", limit=20)
        for name in [*reversed(self.daemons)]:
            self.end(name)

    def start_node(self, rank: int) -> None:
        name = f"node{rank}"
        itself = f"hostname {name}; exec slurmd -D -N {name}"
        self._start(name, self.network.command(rank, ["unshare", "--uts", "sh", "-c", itself]))

    def lose_node(self, rank: int) -> None:
        """Kill all processes of a node."""
        daemon = self.daemons.pop(f"node{rank}")
        named = ["ip", "netns", "pids", self.network.namespace(rank)]
        for pid in subprocess.run(named, capture_output=True, text=True, check=True).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        daemon.wait()

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.said").open("wb") as said:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=said, stderr=said)

    def end(self, name: str) -> None:
        """End a daemon."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(20)
        daemon.kill()
        daemon.wait()

    def at_controller(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.network.namespace(0).removesuffix("0") + "switch", *command]

    def run(self, *command: str, limit: float = LIMIT) -> str:
        """Return what a command of SLURM prints, or its error."""
        words = self.at_controller([*command])
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=limit)
        return done.stdout.strip() or done.stderr.strip()

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + LIMIT
        while not (found := true()):
            for name, daemon in self.daemons.items():
                assert daemon.poll() is None, (name, (self.folder / f"{name}.said").read_text()[-2000:])
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.2)
        return found


def missing() -> list[str]:
    """Return which programs of SLURM are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
