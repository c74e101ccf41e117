"""Checks on one GPU, with two processes on it: `benchmarks/gpu.sh` starts this. It has not been run on a GPU yet.

    python benchmarks/gpu.py --device cpu --only codec

Every way to synchronize runs three times: simulated on the CPU, simulated on the device, and in two processes on
the device, which meet over gloo (NCCL refuses two ranks on one GPU): their vectors are the device's, the roll call
is the CPU's. The results must agree up to rounding, unless the method draws numbers or chooses by them; on the
CPU, all three are equal bit for bit. A check that fails is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep import STRATEGIES, DistComm, Every, Group, InformedSwarm, LocalSGD, Options, Synchronizer, simulate
from swarmstep.comm.codecs import parse
from swarmstep.workloads import load
from swarmstep.workloads.text import next_byte_loss

WORKERS, STEPS, EVERY, PATIENCE = 2, 24, 4, 60.0
ROUNDING, CODED = 1e-3, 5e-2  # largest differences, as parts of the largest weight
CODECS = ("bfloat16", "int8", "int4", "topk:0.25", "nm:2:4", "rank:2")
SETTINGS: dict[str, dict[str, Any]] = {"hierarchical": {"local_size": 1, "outer_every": 1}}
DRAWN = {"pso-ps", "fedpso", "swarm"}  # where a rounding error may change a choice, or numbers are drawn


class Case(NamedTuple):
    """One way to synchronize: a strategy by name, options of the Synchronizer, and a codec by name."""

    strategy: str
    options: dict[str, Any]
    codec: str = ""


CASES = {
    **{f"strategy {name}": Case(name, {}) for name in STRATEGIES},
    **{f"codec {name}": Case("local-sgd", {}, name) for name in CODECS},
    "delay": Case("local-sgd", {"delay": 2}),
    "delay, int8": Case("local-sgd", {"delay": 2}, "int8"),
    "offload": Case("diloco", {"offload": "cpu"}),
    "offload, delay": Case("diloco", {"offload": "cpu", "delay": 2}),
    "views": Case("local-sgd", {"views": True}),
    "fragments": Case("diloco", {"fragments": 2}),
}


def batch(step: int, rank: int, device: str) -> tuple[Tensor, Tensor]:
    """Return inputs [32, 16] and targets [32], drawn on the CPU: the same wherever they are used."""
    source = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(32, 16, generator=source)
    return inputs.to(device), inputs[:, :4].argmax(1).to(device)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def trained(case: Case, comm: Group, device: str) -> Tensor:
    """Train as one worker; return the weights of the result, on the CPU."""
    model = network().to(device)

    def probe(module: nn.Module, _step: int) -> Tensor:
        inputs, targets = batch(0, 99, device)
        return cross_entropy(module(inputs), targets, reduction="none")

    kind = STRATEGIES[case.strategy]
    strategy = kind(
        **({} if case.strategy == "independent" else {"when": Every(EVERY)}), **SETTINGS.get(case.strategy, {})
    )
    asked = {} if "fragments" in case.options else {"probe": probe, "probe_cost": 0.1}
    codec = parse(case.codec) if case.codec else None
    sync = Synchronizer(model, strategy, comm, Options(seed=5, codec=codec, **asked, **case.options))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    for step in range(1, STEPS + 1):
        inputs, targets = batch(step, comm.rank, device)
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        if strategy.target == "gradients":
            sync.reduce(lr=0.05)
        optimizer.step()
        sync.step(loss, lr=0.05)
        losses.append(loss.item())
    sync.finish()
    if not sum(losses[-4:]) < sum(losses[:4]):
        raise AssertionError(f"the loss does not fall: {losses[0]:.3f} to {losses[-1]:.3f}")
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference as a part of the largest magnitude."""
    return float((a - b).abs().max() / a.abs().max())


def synchronize(name: str, device: str) -> str:
    """Check one case; return what was found."""
    case = CASES[name]
    most = 0.0 if device == "cpu" else CODED if case.codec else ROUNDING
    reference = simulate(lambda comm: trained(case, comm, "cpu"), WORKERS)
    alone = simulate(lambda comm: trained(case, comm, device), WORKERS)
    together = in_processes(f"case:{name}", device)
    moved = max(map(apart, reference, alone))
    met = max(apart(one, torch.tensor(other)) for one, other in zip(alone, together, strict=True))
    drawn = device != "cpu" and case.strategy in DRAWN
    if not (met <= most or drawn) or not (moved <= most or drawn):
        raise AssertionError(f"the device differs from the CPU by {moved:.1e}, processes from it by {met:.1e}")
    return f"the device differs from the CPU by {moved:.1e}, processes from it by {met:.1e}"


def in_processes(task: str, device: str) -> list[Any]:
    """Run a task in two processes on the device; return what each of them returns, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}")
        command = (*torchrun, __file__, "--device", device, "--work", task, folder)
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        files = [Path(folder, str(rank)) for rank in range(WORKERS)]
        if done.returncode or not all(file.exists() for file in files):
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
            raise AssertionError(f"exit {done.returncode}: {lines[0].strip() if lines else 'no message'}")
        return [json.loads(file.read_text()) for file in files]


def work(task: str, device: str, folder: Path) -> None:
    """Be one of the processes."""
    comm = DistComm.from_env(backend="gloo", patience=PATIENCE)
    try:
        kind, _, name = task.partition(":")
        found: Any = trained(CASES[name], comm, device).tolist() if kind == "case" else share(comm, device)
        (folder / str(comm.rank)).write_text(json.dumps(found))
    finally:
        comm.close()


def wait_for(device: str) -> float:
    """Return the time once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def text_model(device: str) -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, Tensor]]]:
    """Return the text model, and what draws a batch for (step, rank)."""
    workload = load("text")
    torch.manual_seed(0)
    model = workload.models["gpt-small" if device == "cpu" else "gpt-large"]().to(device)
    inputs, targets = workload.train.inputs, workload.train.targets

    def draw(step: int, rank: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(1000 * step + rank)
        chosen = torch.randint(len(inputs), (8,), generator=source)
        return workload.prepare(inputs[chosen]).to(device), targets[chosen].to(device)

    return model, draw


def share(comm: Group, device: str) -> float:
    """Return the share of the time that is not spent in `sync.step`, at n = 64 with int8."""
    model, draw = text_model(device)
    sync = Synchronizer(model, LocalSGD(when=Every(64)), comm, Options(codec=parse("int8")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    synchronizing, begun = 0.0, 0.0
    for step in range(1, 1 + (128 if device == "cpu" else 448)):
        if step == 65:  # after the first round, which allocates
            synchronizing, begun = 0.0, wait_for(device)
        inputs, targets = draw(step, comm.rank)
        optimizer.zero_grad()
        loss = next_byte_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        before = wait_for(device)
        sync.step(loss)
        synchronizing += wait_for(device) - before
    whole = wait_for(device) - begun
    sync.finish()
    return 1 - synchronizing / whole


def share_of_computing(device: str) -> str:
    """Measure; there is nothing to compare with."""
    found = in_processes("share", device)
    return f"{min(found):.3f} of the time computing at n = 64, two processes on one device"


def compiled(device: str) -> str:
    """Check that a compiled model trains as the plain one."""

    def train(comm: Group, compile_it: bool) -> Tensor:
        model = network().to(device)
        sync = Synchronizer(model, LocalSGD(when=Every(EVERY)), comm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run: Any = (
            torch.compile(model, backend="eager" if device == "cpu" else "inductor") if compile_it else model
        )
        for step in range(1, STEPS + 1):
            inputs, targets = batch(step, comm.rank, device)
            optimizer.zero_grad()
            loss = cross_entropy(run(inputs), targets)
            loss.backward()
            optimizer.step()
            sync.step(loss)
        sync.finish()
        return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])

    plain, fast = (simulate(functools.partial(train, compile_it=it), 1)[0] for it in (False, True))
    if not (found := apart(plain, fast)) <= ROUNDING:
        raise AssertionError(f"compiled and plain differ by {found:.1e}")
    return f"compiled and plain differ by {found:.1e}"


def bfloat16(device: str) -> str:
    """Check that the text model trains in bfloat16 about as in float32."""
    steps = 24 if device == "cpu" else 200

    def train(comm: Group, low: bool) -> float:
        model, draw = text_model(device)
        sync = Synchronizer(model, InformedSwarm(when=Every(8), trust="uniform"), comm)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses: list[float] = []
        for step in range(1, steps + 1):
            inputs, targets = draw(step, comm.rank)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=low):
                loss = next_byte_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            sync.step(loss)
            losses.append(loss.item())
        sync.finish()
        return sum(losses[-8:]) / 8

    low, full = (simulate(functools.partial(train, low=it), WORKERS)[0] for it in (True, False))
    if not abs(low - full) < 0.1 * full:
        raise AssertionError(f"loss {low:.3f} in bfloat16, {full:.3f} in float32")
    return f"loss {low:.3f} in bfloat16, {full:.3f} in float32, after {steps} steps"


OTHERS = {"compile": compiled, "text in bfloat16": bfloat16, "share of computing": share_of_computing}


def check(only: str, device: str) -> int:
    """Run the checks with `only` in their names, and print a line for each; return how many failed."""
    failed = 0
    for name in (*CASES, *OTHERS):
        if only not in name:
            continue
        try:
            found = OTHERS[name](device) if name in OTHERS else synchronize(name, device)
            print(f"ok      {name}: {found}", flush=True)
        except Exception as error:  # whatever it is, the other checks go on
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help="checks with this in their names")
    parser.add_argument("--work", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked, and nothing is claimed")
        return 0
    torch.set_num_threads(1)
    if args.work:
        work(args.work[0], args.device, Path(args.work[1]))
        return 0
    about = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU, which says nothing about a GPU"
    print(f"torch {torch.__version__} on {about}, {os.cpu_count()} cores", flush=True)
    failed = check(args.only, args.device)
    print(f"{failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
