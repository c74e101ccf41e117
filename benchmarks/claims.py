"""The measured figures of README.md, made from benchmarks/results and from nothing else.

    python benchmarks/claims.py            # writes the blocks of README.md anew: make readme
    python benchmarks/claims.py --check    # says which blocks differ

A block stands between `<!-- evidence: NAME -->` and `<!-- end evidence -->`. For a new one: a function that
returns its markdown and names the files it read, an entry in BLOCKS, and the two comments in README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from conditions import CONDITIONS
from paired import interval
from table import spread

from swarmstep.errors import DataError

README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "results"
FOLDER = "benchmarks/results"

# How the files were made that do not say it themselves.
COMMANDS = {
    "bench-overlap.json": "sudo .venv/bin/swarmstep bench overlap --link 100mbit --repeats 5 --ddp-steps 4",
    "bench-round.json": ".venv/bin/swarmstep bench round --repeats 21",
    "bench-wire.json": "sudo .venv/bin/swarmstep bench wire --link 100mbit --repeats 7",
    "mnist-conditions.json": "python benchmarks/conditions.py --seeds 3 swarm; "
    "python benchmarks/conditions.py --seeds 1 local-sgd diloco median swarm,trust=loss",
}


def read(name: str) -> Any:
    """Return what a result file holds.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        return json.loads((RESULTS / name).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{FOLDER}/{name}: {error}; expected results; run the benchmark that makes it") from None


def command(name: str) -> str:
    """Return the command that made a result file.

    Raises:
        DataError: nobody knows it.
    """
    content = read(name)
    if isinstance(content, dict):
        found = content.get("command") or content.get("about", {}).get("command")
        if found:
            return found
    if name not in COMMANDS:
        raise DataError(f"{FOLDER}/{name} has no `command`; write down in it what made it")
    return COMMANDS[name]


def option(name: str, flag: str) -> str:
    """Return what was given for an option of the command that made a result file."""
    words = shlex.split(command(name))
    return words[words.index(flag) + 1]


def claim(sentence: str, holds: bool) -> str:
    """Return a sentence without figures, as long as the results say so.

    Raises:
        DataError: they no longer do.
    """
    if not holds:
        raise DataError(f"the results no longer say: {sentence!r}; write in benchmarks/claims.py what they say")
    return sentence


def link(text: str, name: str) -> str:
    return f"[{text}]({FOLDER}/{name})"


def made(name: str) -> str:
    return link(f"`{command(name)}`", name)


def rate(name: str) -> str:
    return option(name, "--link").replace("mbit", " Mbit/s")


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 125, break_long_words=False, break_on_hyphens=False)


def table(*rows: Sequence[str]) -> str:
    head, *lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *lines])


def bench(name: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a file of `swarmstep bench` by name."""
    return {row["name"]: row for row in read(name)["rows"]}


def by_method(cells: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault(cell["method"], []).append(cell)
    return found


def mean(cells: Iterable[dict[str, Any]], key: str) -> float:
    return statistics.mean(cell[key] for cell in cells)


def overlap() -> str:
    file = "bench-overlap.json"
    rows, cores = bench(file), read(file)["machine"]["cpus"]
    model, turns = rows["no communication"], link(f"medians of {option(file, '--repeats')} turns", file)
    about = f"""A CNN with {model["parameters"]:,} parameters, {model["workers"]} workers, each in a network
        namespace with {rate(file)}, {cores} cores; speed as a fraction of that without communication
        (`{command(file)}`, {turns}, good to some hundredths):"""
    shown = {
        "torch's DistributedDataParallel": "ddp",
        "the same, its bfloat16 hook": "ddp, bfloat16",
        "averaging each 16 steps, float32": "n=16 float32",
        "the same, int8": "n=16 int8",
        "the same, int8, landing 8 steps later": "n=16 int8, delay 8",
    }
    speeds = [(label, f"{1 / rows[name]['ratio']:.2f}") for label, name in shown.items()]
    return f"{paragraph(about)}\n\n{table(('', 'speed'), *speeds)}"


def rounds() -> str:
    codec, loopback, wire = "codec-mnist-local-sgd.json", "bench-round.json", "bench-wire.json"
    cells = {(cell["variant"], cell["seed"]): cell["test_accuracy"] for cell in read(codec)["cells"]}
    count, rows = len(cells) // 2, bench(loopback)
    points, half = interval([100 * (cells["--codec int8", seed] - cells["", seed]) for seed in range(count)])
    took = {name: row["ratio"] for name, row in rows.items()}
    return paragraph(
        f"""On MNIST (LeNet-5, n = {option(codec, "--every")}) int8 changes the accuracy of local SGD by
        {points:+.2f} +- {half:.2f} points ({count} seeds, 95 % interval; the
        {link("command is in the file", codec)}). A round of {rows["local-sgd"]["parameters"] / 1e6:.0f} M
        parameters on loopback takes {took["local-sgd"]:.2f} times a bare all-reduce, torch's own averager
        {took["torch-periodic-averager"]:.1f} times, Accelerate's {took["accelerate-local-sgd"]:.1f} times
        ({made(loopback)}); at {rate(wire)} an int8 round takes {bench(wire)["local-sgd, int8"]["ratio"]:.2f} of a
        float32 round ({made(wire)})."""
    )


def foundation() -> str:
    file, sent = "mnist-foundation.json", "bytes_sent_per_worker"
    found = by_method(read(file)["cells"])
    about = f"""LeNet-5 on MNIST, 4 workers, a round each {option(file, "--every")} steps,
        {option(file, "--steps")} steps of 32 examples a worker, mean and standard deviation of
        {len(found["pso-ps"])} seeds. The same numbers come from real processes (`--backend gloo`): the weights
        are bitwise equal."""
    rows: list[tuple[str, ...]] = [("method", "test accuracy", "test loss", "sent by a worker")]
    for method in ("synchronous", "local-sgd", "pso-ps", "pso-ps,best=historical", "independent"):
        quality = (spread(found[method], f"test_{name}", 4) for name in ("accuracy", "loss"))
        rows.append((method, *quality, f"{mean(found[method], sent) / 1e6:.1f} MB"))
    accuracy = {method: mean(cells, "test_accuracy") for method, cells in found.items()}
    share = mean(found["pso-ps"], sent) / mean(found["local-sgd"], sent)
    half = claim("half the traffic of averaging", round(share, 2) == 0.5)
    useless = claim("no better than not communicating at all", accuracy["pso-ps"] <= accuracy["independent"])
    seldom = claim("as good here as synchronizing at every step", accuracy["local-sgd"] >= accuracy["synchronous"])
    plainly = f"""So, plainly: PSO-PS costs {half} and is {useless}, because pulling to one best worker throws away
        what the other shards taught. Averaging seldom is {seldom}."""
    return "\n\n".join((paragraph(about), table(*rows), paragraph(f"`{command(file)}`"), paragraph(plainly)))


def conditions() -> str:
    file, methods = "mnist-conditions.json", ("swarm", "local-sgd", "diloco")
    cells = [cell for cell in read(file) if cell["every"] == 16]
    found = {name: by_method(cell for cell in cells if cell["condition"] == name) for name in CONDITIONS}
    others = claim("the others one seed", all(len(found[c][m]) == 1 for c in CONDITIONS for m in methods[1:]))
    about = f"""The informed swarm, MLP on MNIST, n = 16, test loss (swarm: mean and standard deviation of
        {len(found["all is well"]["swarm"])} seeds, {others}; {link("cells", file)}, and all of it, with the
        commands, in [docs/choosing.md](docs/choosing.md)):"""
    rows = [(name, *(spread(found[name][method], "test_loss", 3) for method in methods)) for name in CONDITIONS]
    return f"{paragraph(about)}\n\n{table(('condition', *methods), *rows)}"


BLOCKS: dict[str, Callable[[], str]] = {
    "overlap": overlap,
    "rounds": rounds,
    "foundation": foundation,
    "conditions": conditions,
}
BLOCK = re.compile(r"(<!-- evidence: (\S+) -->\n)(.*?)(<!-- end evidence -->)", re.DOTALL)
MARKER = re.compile(r"<!--\s*(?:end )?evidence")


def rewritten(text: str) -> str:
    """Return a page with all its blocks made anew.

    Raises:
        DataError: a block has no end, no function or no place; or its results are missing or contradict it.
    """
    names = [found[2] for found in BLOCK.finditer(text)]
    if sorted(names) != sorted(BLOCKS) or len(MARKER.findall(text)) != 2 * len(names):
        raise DataError(
            f"README.md: expected one block each, ended, for {', '.join(BLOCKS)}; found {', '.join(names)}"
        )
    try:
        return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[4]}", text)
    except KeyError as error:
        raise DataError(f"{FOLDER} lacks {error}, which a block needs; run its benchmark again") from None


def stale(text: str) -> list[str]:
    """Return the names of the blocks of a page that are not what the results make them."""
    pairs = zip(BLOCK.findall(text), BLOCK.findall(rewritten(text)), strict=True)
    return [found[1] for found, expected in pairs if found != expected]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a block differs")
    args = parser.parse_args(arguments)
    try:
        text = README.read_text()
        differ = stale(text)
        if not args.check:
            README.write_text(rewritten(text))
    except DataError as error:
        print(error)
        return 1
    said = "differs from the results; run `make readme`" if args.check else "rewritten"
    for name in differ:
        print(f"README.md, block {name}: {said}")
    return 1 if differ and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
