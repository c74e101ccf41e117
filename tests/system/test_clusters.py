"""The recipes of examples/clusters, run: each loses a worker, goes on, and ends with the right result."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rights import needs_network
from slurm_cluster import SlurmCluster, missing
from swarmstep import simulate
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "clusters"
LIMIT = 600.0  # seconds; a hang, not a measurement


def expected(steps: int, workers: int = 2) -> str:
    """Return what a run that nothing happens to says at its end."""
    spec = importlib.util.spec_from_file_location("program", RECIPES / "program.py")
    assert spec
    assert spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    program.PACE = 0.0
    return simulate(lambda comm: program.train(comm, [], lambda *_: None, lambda: False, steps), workers)[0]


def saved(folder: Path, ranks: int) -> int:
    """Return the newest step of which so many ranks, and no more, have saved; 0 if there is none."""
    found = [int(path.name[5:]) for path in folder.glob("step-*") if len([*path.glob("rank-*.pt")]) == ranks]
    return max(found, default=0)


def until(true: Callable[[], Any], what: str, *processes: subprocess.Popen[bytes]) -> Any:
    """Wait for something that happens while the processes live."""
    deadline = time.monotonic() + LIMIT
    while not (found := true()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        assert all(process.poll() is None for process in processes), f"ended before {what}"
        time.sleep(0.1)
    return found


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a secret, in an environment where the recipes find what they need."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "SWARMSTEP_SECRET"):
        monkeypatch.delenv(name, raising=False)
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("a secret of this test only")
    monkeypatch.setenv("SWARMSTEP_SECRET_FILE", str(secret))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    return tmp_path


@pytest.fixture
def network() -> Iterator[Network]:
    """Yield three machines; whatever still runs on them at the end is killed with them."""
    with Network(3, Link(1e9)) as network:
        yield network


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.sh")))
def test_a_script_parses_and_may_be_executed(script: str) -> None:
    assert os.access(RECIPES / script, os.X_OK)
    done = subprocess.run(["bash", "-n", str(RECIPES / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def manifest() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return [*yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())]


def test_the_manifest_says_one_thing(tmp_path: Path) -> None:
    service, job = manifest()
    pods = job["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert values["WORLD_SIZE"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert values["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pods['subdomain']}"
    assert values["MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (tmp_path / "python").write_text('#!/bin/sh\necho "$RANK $@"\n')
    (tmp_path / "python").chmod(0o700)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "1"}
    done = subprocess.run(container["command"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 /app/program.py /checkpoints 480\n"


def test_the_manifest_follows_the_schema_of_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in manifest():
        validator.validate(document, validator.latest_version(), strict=True)
    broken = manifest()[1]
    broken["spec"]["completion"] = 2
    with pytest.raises(validator.ValidationError, match="completion"):
        validator.validate(broken, validator.latest_version(), strict=True)


class Agent:
    """`torchrun.sh` on one of the machines; it writes to a file."""

    def __init__(self, network: Network, machine: int, nodes: str, folder: Path, steps: int) -> None:
        self.network, self.machine = network, machine
        self.file = folder / f"agent-{machine}"
        words = [str(RECIPES / "torchrun.sh"), network.address(0), nodes, str(folder / "run"), str(steps)]
        with self.file.open("ab") as file:
            self.process = subprocess.Popen(network.command(machine, words), stdout=file, stderr=file)

    def loses_power(self) -> None:
        """Kill all processes of this machine."""
        named = ["ip", "netns", "pids", self.network.namespace(self.machine)]
        for pid in subprocess.run(named, capture_output=True, text=True, check=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self.process.wait()


@needs_network
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machines", [2, 3])
def test_torchrun_loses_a_machine_and_gains_one(
    machines: int, network: Network, setting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACE", "0.1")
    monkeypatch.setenv("LAST_CALL", "15")
    steps, run = 1600, setting / "run"
    agents = [Agent(network, machine, "1:3", setting, steps) for machine in range(machines)]
    stay = [agent.process for agent in agents[:-1]]
    until(lambda: saved(run, machines), "a checkpoint of all", *stay)
    agents[-1].loses_power()
    before = saved(run, machines)
    assert before < until(lambda: saved(run, machines - 1), "a checkpoint of those that stayed", *stay)
    agents[-1] = Agent(network, machines - 1, "1:3", setting, steps)
    alone = saved(run, machines - 1)
    until(lambda: saved(run, machines) > alone, "a checkpoint of all again", *stay)
    assert [agent.process.wait(LIMIT) for agent in agents] == [0] * machines
    said = "".join(agent.file.read_text() for agent in agents)
    assert re.search(rf"^{machines} workers, {steps} steps, accuracy (0\.9\d+|1\.000), ", said, re.MULTILINE), said


@needs_network
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())} not found")
def test_slurm_preempts_a_job_and_loses_a_node(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACE", "0.1")
    run, out = setting / "run", setting / "out"
    options = [f"--output={out}", "--chdir", str(ROOT)]
    with Network(2, Link(1e9)) as network, SlurmCluster(network, setting / "slurm") as cluster:
        cluster.run("sbatch", *options, str(RECIPES / "slurm.sh"), str(run), "480")

        def until_saved(above: int) -> int:
            return cluster.until(lambda: saved(run, 2) > above and saved(run, 2), f"a checkpoint after {above}")

        until_saved(0)
        cluster.run("sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=true")
        cluster.until(lambda: "stopped with a checkpoint" in out.read_text(), "the end before the other job")
        until_saved(saved(run, 2))
        cluster.lose_node(1)
        cluster.until(lambda: "restart 1: ended with" in out.read_text(), "the end after the loss")
        cluster.start_node(1)
        cluster.until(lambda: not cluster.run("squeue", "-h"), "the end")
    assert out.read_text().count("on from step") == 4  # two ranks, twice
    assert f"{expected(480)}\n" in out.read_text()


SSHD = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile {folder}/sshd-{machine}.pid
ListenAddress {address}
StrictModes no
UsePAM no
SetEnv PYTHONPATH={path} LAST_CALL=300 TORCH_CPP_LOG_LEVEL=ERROR OMP_NUM_THREADS=1
"""


@needs_network
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("sshd", path="/usr/sbin"), reason="openssh-server is not installed")
def test_ssh_starts_all_hosts(network: Network, setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(setting / name)], check=True)
    os.makedirs("/run/sshd", exist_ok=True)
    servers = list[subprocess.Popen[bytes]]()
    try:
        for machine in (0, 1):
            file = setting / f"sshd-{machine}"
            where = {"machine": machine, "address": network.address(machine), "path": ROOT / "src"}
            file.write_text(SSHD.format(folder=setting, **where))
            command = network.command(machine, ["/usr/sbin/sshd", "-D", "-f", str(file)])
            servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        for machine in (0, 1):
            until(lambda at=machine: answers(network, at), "the server of ssh", *servers)
        monkeypatch.setenv(
            "SSH_OPTIONS", f"-q -i {setting}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        )
        hosts = f"{network.address(0)},{network.address(1)}"
        recipe = network.command(2, [str(RECIPES / "ssh.sh"), hosts, str(setting / "run"), "160"])
        done = subprocess.run(recipe, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert expected(160) in done.stdout
    finally:
        for server in servers:
            server.kill()
            server.wait()


def answers(network: Network, machine: int) -> bool:
    """Return whether a server of ssh listens on a machine."""
    found = subprocess.run(network.command(machine, ["ss", "-Hltn"]), capture_output=True, text=True, check=True)
    return f"{network.address(machine)}:22 " in found.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ray_loses_a_node(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray[train] is not installed")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # on a busy machine
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    said, process = setting / "said", None
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PACE": "0.05", "RAY_DEDUP_LOGS": "0"}
        environment["SWARMSTEP_SECRET"] = (setting / "secret").read_text()
        command = [sys.executable, str(RECIPES / "ray_train.py"), str(setting / "run"), "480"]
        with said.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        known = setting / "run" / "rings" / "checkpoint_manager_snapshot.json"  # what Ray would go on from
        until(lambda: known.exists() and "checkpoint_2" in known.read_text(), "a checkpoint", process)
        lost = re.findall(r"rank 0 on node (\w+)", said.read_text())[0]
        (node,) = [node for node in nodes if node.node_id == lost]
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(LIMIT) == 0, said.read_text()
    finally:
        if process:
            process.kill()
            process.wait()
        cluster.shutdown()
    assert {*re.findall(r"rank (\d) of 2: on from step", said.read_text())} == {"0", "1"}
    assert f"\n{expected(480)}\n" in said.read_text()
