"""Writes the measured figures of the pages in PAGES from benchmarks/results, and from nothing else.

    python benchmarks/claims.py            # rewrites the blocks of the pages: make readme
    python benchmarks/claims.py --check    # says which blocks differ

A block is between `<!-- evidence: NAME -->` and `<!-- end evidence -->`. To add one: a function that returns its
Markdown, with links from the top of the repository, and names the files it has read, an entry in BLOCKS, and the
two comments in one of the pages.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import headline
import ranking
import ranking_table
import unequal
import untuned
from paired import between, interval

from swarmstep.compare import results
from swarmstep.compare.analysis import analyse
from swarmstep.compare.sections import Section
from swarmstep.errors import DataError
from swarmstep.workloads.defaults import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md", "docs/choosing.md")
RESULTS = Path(__file__).parent / "results"
FOLDER = "benchmarks/results"

# The commands of the files that do not contain theirs.
COMMANDS = {
    "bench-overlap.json": "sudo .venv/bin/swarmstep bench overlap --link 100mbit --repeats 5 --ddp-steps 4",
    "bench-round.json": ".venv/bin/swarmstep bench round --repeats 21",
    "bench-wire.json": "sudo .venv/bin/swarmstep bench wire --link 100mbit --repeats 7",
    "bench-wire-sparseloco.json": "sudo .venv/bin/swarmstep bench wire --link 100mbit --workers 2 "
    "--parameters 1048576 --tensors 1 --repeats 1",
    "mnist-conditions.json": "python benchmarks/conditions.py --seeds 3 swarm; "
    "python benchmarks/conditions.py --seeds 1 local-sgd diloco median swarm,trust=loss",
}


def read(name: str) -> Any:
    """Return the content of a result file.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return json.loads((RESULTS / name).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{FOLDER}/{name}: {error}; expected results; run the benchmark that makes it") from None


def command(name: str) -> str:
    """Return the command that made a result file.

    Raises:
        DataError: it is unknown.
    """
    content = read(name)
    if isinstance(content, dict):
        line = content.get("command") or content.get("about", {}).get("command")
        if line:
            return line
    if name not in COMMANDS:
        raise DataError(f"{FOLDER}/{name} has no `command`; add the command that made it")
    return COMMANDS[name]


def option(name: str, flag: str) -> str:
    """Return the value of an option in the command that made a result file."""
    words = shlex.split(command(name))
    return words[words.index(flag) + 1]


def claim(sentence: str, holds: bool) -> str:
    """Return a sentence without figures, if the results support it.

    Raises:
        DataError: they no longer do.
    """
    if not holds:
        raise DataError(f"the results no longer say: {sentence!r}; correct it in benchmarks/claims.py")
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
    """Return the rows in a file of `swarmstep bench`, by name."""
    return {row["name"]: row for row in read(name)["rows"]}


def overlap() -> str:
    file = "bench-overlap.json"
    rows, cores = bench(file), read(file)["machine"]["cpus"]
    model, medians = rows["no communication"], link(f"medians of {option(file, '--repeats')} turns", file)
    about = f"""A CNN with {model["parameters"]:,} parameters, {model["workers"]} workers, each in a network
        namespace with {rate(file)}, {cores} cores; speed as a fraction of that without communication
        (`{command(file)}`, {medians}, good to some hundredths):"""
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
    ratios = {name: row["ratio"] for name, row in rows.items()}
    return paragraph(
        f"""On MNIST (LeNet-5, n = {option(codec, "--every")}) int8 changes the accuracy of local SGD by
        {points:+.2f} +- {half:.2f} points ({count} seeds, 95 % interval; the
        {link("command is in the file", codec)}). A round of {rows["local-sgd"]["parameters"] / 1e6:.0f} M
        parameters on loopback, with `Options(views=True)`,
        takes {ratios["local-sgd"]:.2f} times a bare all-reduce, torch's own averager
        {ratios["torch-periodic-averager"]:.1f} times, Accelerate's {ratios["accelerate-local-sgd"]:.1f} times
        ({made(loopback)}); at {rate(wire)} an int8 round takes {bench(wire)["local-sgd, int8"]["ratio"]:.2f} of a
        float32 round ({made(wire)})."""
    )


def sections(name: str) -> list[Section]:
    """Return the sections of a file of `swarmstep report --format json`."""
    return _analysed(RESULTS / name)


@functools.cache
def _analysed(file: Path) -> list[Section]:
    return analyse([results.load(file)])


def timed() -> str:
    file = "evidence-link.json"
    lines, rows = headline.lines(RESULTS / file), _timed_rows(file)
    target = f"test accuracy of {100 * results.load(RESULTS / file).about['target']['accuracy']:g} % on MNIST"
    counts = claim("synchronizing rarely is what counts", _rarely_counts(file))
    conclusion = f"""So, plainly: {counts}, and between the ways to do it {_seeds(lines)} seeds do not tell: a
        target is reached at one round or at the next."""
    return f"{paragraph(_timed_about(file, target))}\n\n{rows}\n\n{paragraph(conclusion)}"


def _rarely_counts(file: str) -> bool:
    """Return whether all that synchronize rarely, and nobody else, share the first rank."""
    first = {row.method for row in sections(file)[0].rows if row.rank == 1}
    lines = headline.lines(RESULTS / file)
    return first == {line.method for line in lines if line.every > 1 and line.reached == line.seeds}


def timed_text() -> str:
    file = "evidence-text.json"
    target = (
        f"test loss of {results.load(RESULTS / file).about['target']['loss']:g} nats a byte on text, with Muon,"
    )
    return f"{paragraph(_timed_about(file, target))}\n\n{_timed_rows(file)}"


def _seeds(lines: Sequence[headline.Line]) -> int:
    """Return how many seeds our own method was run with."""
    return next(line.seeds for line in lines if line.method.startswith("swarm+"))


def _timed_about(file: str, target: str) -> str:
    """Return what a table of times to a target on a real link shows."""
    cell = next(cell for cell in results.load(RESULTS / file).runs() if cell.real)
    seeds = _seeds(headline.lines(RESULTS / file))
    return f"""Time to a {target} with a network of
        {cell.parameters:,} parameters, {cell.config["workers"]} real processes, each with a link of
        {cell.link}, as a multiple of what an
        infinitely fast network would take (the steps of synchronous training times a step without communication);
        mean and 95 % interval over {seeds} seeds ({link("cells and commands", file)}):"""


def _timed_rows(file: str) -> str:
    """Return the table of times to a target on a real link."""
    rows: list[tuple[str, ...]] = [("method", "multiple", "seconds", "steps", "MB sent by a worker")]
    for line in headline.lines(RESULTS / file):
        reached = line.reached == line.seeds
        seeds = {1: " (1 seed)", 2: " (2 seeds)"}.get(line.seeds, "")
        rows.append(
            (
                headline.name(line) + seeds,
                between(line.multiple, 2) if reached else f"not reached ({line.reached} of {line.seeds})",
                between(line.seconds, 1) if reached else "",
                f"{line.steps.mean:.0f}" if reached else "",
                f"{line.megabytes.mean:,.0f}" if reached else "",
            )
        )
    return table(*rows)


def paper() -> str:
    parts, below = list[str](), list[bool]()
    for file, what in (
        ("evidence-mnist.json", "MNIST, LeNet-5"),
        ("evidence-cifar10.json", "CIFAR-10, a small CNN"),
    ):
        (section,) = sections(file)
        by_n = {method: dict(points) for method, points in section.by_n.items()}
        shown = [name for name in ("local-sgd", "pso-ps", "pso-ps+best=historical", "swarm") if name in by_n]
        everies = sorted({n for name in shown for n in by_n[name]})
        rows: list[tuple[str, ...]] = [(what, *(f"n = {n}" for n in everies))]
        rows.append(("synchronous", between(by_n["synchronous"][1], 4), *("" for _ in everies[1:])))
        rows += [
            (name, *(between(by_n[name][n], 4) if n in by_n[name] else "" for n in everies)) for name in shown
        ]
        parts.append(table(*rows))
        below += [accuracy.mean < by_n["local-sgd"][n].mean for n, accuracy in by_n["pso-ps"].items()]
        parts.append(paragraph(f"Test accuracy, 4 workers, tuned, {link('cells and commands', file)}."))
    behind = claim("PSO-PS is below averaging at every n", all(below))
    conclusion = (
        f"So, plainly: {behind}, because pulling to one best worker throws away what the other shards taught."
    )
    return "\n\n".join([*parts, paragraph(conclusion)])


CONDITIONS = {
    ("4", "bad-labels:1"): "1 of 4 has bad labels",
    ("8", "bad-labels:3"): "3 of 8 have bad labels",
    ("4", "noise:1:0.1"): "1 of 4 is noisy",
    ("4", "sign:1"): "1 of 4 has the wrong sign",
    ("4", "classes:3"): "each of 4 sees 3 classes",
}


def conditions() -> str:
    file, methods = "evidence-conditions.json", ("swarm", "diloco", "local-sgd")
    rows, ahead = [("condition", *methods)], list[bool]()
    for section in sections(file):
        by_method, condition = {row.method: row for row in section.rows}, section.condition
        deviations = [condition[key] for key in ("shards", "fault") if condition[key] not in ("iid", "none")]
        accuracies = (between(by_method[method].accuracy, 3) for method in methods)
        rows.append((CONDITIONS[condition["workers"], " ".join(deviations)], *accuracies))
        if not condition["shards"].startswith("classes"):
            ahead.append(by_method["swarm"].accuracy.mean == max(by_method[m].accuracy.mean for m in methods))
    about = f"""LeNet-5 on MNIST with bad workers or uneven shards, n = 16, tuned for each; test accuracy
        ({link("cells and commands", file)}):"""
    best = claim("The informed swarm has the highest mean wherever a worker is bad", all(ahead))
    conclusion = f"{best}; where intervals overlap, as with uneven shards, 3 seeds do not tell it from the next."
    return f"{paragraph(about)}\n\n{table(*rows)}\n\n{paragraph(conclusion)}"


def chaos() -> str:
    files = ("chaos-mnist-720.json", "chaos-mnist-120.json")
    head = "faults an hour, survived, states wiped, rounds lost, recovery: median (max), throughput, loss"
    rows = [tuple(head.split(", "))]
    for file in files:
        summary = read(file)
        rows.append(
            (
                f"{summary['faults_per_hour']:g}",
                f"{summary['survived']} of {summary['faults']}",
                str(summary["wiped_states"]),
                f"{summary['lost_rounds']} of {summary['committed_rounds']}",
                f"{summary['recover_seconds_median']:.1f} s ({summary['recover_seconds_max']:.1f} s)",
                f"{summary['throughput_ratio']:.3f}",
                f"{summary['final_loss']:.4f}, fault-free {summary['fault_free_loss']:.4f} ± "
                f"{summary['fault_free_deviation']:.4f}",
            )
        )
    first = read(files[0])
    kinds = ", ".join(f"{row['faults']} {kind}" for kind, row in first["kinds"].items())
    about = f"""A storm of {first["minutes"]:g} minutes over {first["workers"]} workers on MNIST, steps paced to
        {1000 * first["pace"]:g} ms ({made(files[0])}: {kinds}; {made(files[1])}); throughput per live worker as a
        fraction of a run without faults, loss on the test set beside {first["fault_free_runs"]} simulated runs of
        as many steps (mean ± standard deviation):"""
    return f"{paragraph(about)}\n\n{table(*rows)}"


def demo() -> str:
    file = "untuned.json"
    wanted = {"workload": "digits", "every": 16, "workers": 4}
    rows = [row for row in read(file)["rows"] if row == row | wanted]
    rows = [row for row in rows if row["seed"] < 3]
    lines: list[tuple[str, ...]] = [("test loss, accuracy", "all is well", "one of 4 has random labels")]
    for method in ("swarm", "local-sgd", "diloco", "pso-ps", "independent"):
        cells: list[str] = []
        for shards in ("iid", "bad-labels:1"):
            of = [row for row in rows if (row["shards"], row["strategy"]) == (shards, method)]
            figures = (sum(row[name] for row in of) / len(of) for name in ("test_loss", "test_accuracy"))
            cells.append(", ".join(f"{figure:.3f}" for figure in figures))
        lines.append((method, *cells))
    about = f"""The demo ends in two tables: the digits, a round each 16 steps, means of 3 seeds, nothing tuned
        ({link("runs", file)}):"""
    return f"{paragraph(about)}\n\n{table(*lines)}"


def as_they_come() -> str:
    file = "untuned.json"
    about = f"""The methods as they come, with each workload's own settings and 4 workers
        ({made(file)}): test loss, and the swarm's as a multiple of the others' (geometric mean over paired seeds,
        95 % interval). All is well:"""
    bad = paragraph("One of the 4 workers has random labels, and nobody is told which:")
    uneven = paragraph("Each worker has a part of the text, or three of the ten classes:")
    other = paragraph("All is well, with other numbers of workers, more steps, or a larger model:")
    usual, shards = {"workers": 4, "steps": None, "lr": None}, ("contiguous", "classes:3")
    return "\n\n".join(
        (
            paragraph(about),
            _untuned(lambda of: of["shards"] == "iid" and _unlike(of, usual) == []),
            bad,
            _untuned(lambda of: of["shards"] == "bad-labels:1" and _unlike(of, usual) == []),
            uneven,
            _untuned(lambda of: of["shards"] in shards),
            other,
            _untuned(lambda of: of["shards"] == "iid" and _unlike(of, usual) != []),
        )
    )


def _unlike(of: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """Return in words how a condition differs from `usual`, where None stands for the workload's default."""
    built_in = BUILT_IN[of["workload"]]
    default = {n: getattr(built_in.defaults, n) if value is None else value for n, value in usual.items()}
    words = {"workers": "{} workers", "steps": "{} steps", "lr": "rate {}"}
    large = ["0.8 M parameters"] if of["model"] == "gpt" else []
    return [words[n].format(of[n]) for n in default if of[n] != default[n]] + large


def _untuned(shown: Callable[[dict[str, Any]], bool]) -> str:
    """Return the table of the swarm beside local SGD and DiLoCo, in the conditions to be shown."""
    head = "workload, n, seeds, swarm, local-sgd, diloco, multiple of local-sgd's, of diloco's"
    lines: list[tuple[str, ...]] = [tuple(head.split(", "))]
    for condition, rows in untuned.groups(read("untuned.json")["rows"]).items():
        of = dict(zip(untuned.CONDITION, condition, strict=True))
        usual = of["optimizer"] == BUILT_IN[of["workload"]].defaults.optimizer and of["fault"] is None
        losses = {m: [row["test_loss"] for row in rows if row["strategy"] == m] for m in untuned.METHODS}
        if not usual or not shown(of) or not losses["swarm"]:
            continue
        means = [f"{sum(loss) / len(loss):.3f}" if loss else "" for loss in losses.values()]
        ratios = [untuned.ratio(rows, "swarm", other) for other in untuned.METHODS[1:] if losses[other]]
        spans = [f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if n > 1 else "") for mean, low, high, n in ratios]
        name = ", ".join((of["workload"], of["model"], *_unlike(of, {"workers": 4, "steps": None, "lr": None})))
        spans += [""] * (len(untuned.METHODS) - 1 - len(spans))
        lines.append((name, str(of["every"]), str(ratios[0][-1]), *means, *spans))
    return table(*lines)


def muon() -> str:
    file = "untuned.json"
    rows = [row for row in read(file)["rows"] if (row["model"], row["every"]) == ("gpt-small", 16)]
    lines: list[tuple[str, ...]] = [("test loss", "AdamW", "Muon")]
    for strategy in ("synchronous", "swarm", "diloco", "local-sgd", "pso-ps", "independent"):
        cells: list[str] = []
        for optimizer in ("adamw", "muon"):
            wanted = {"strategy": strategy, "optimizer": optimizer, "shards": "iid", "fault": None, "workers": 4}
            losses = [row["test_loss"] for row in rows if row == row | wanted]
            cells.append(between(losses, 3) + " (1 seed)" * (len(losses) == 1) if losses else "")
        lines.append((strategy, *cells))
    about = f"""The same text with another inner optimizer: test loss after 1500 steps of 4 workers, a round each
        16 steps, beside gradients that are averaged at every step ({link("runs", file)}, 95 % interval):"""
    return f"{paragraph(about)}\n\n{table(*lines)}"


def _ranked(workers: int) -> str:
    """Return in words how the methods were ranked, with so many workers."""
    runs = [row for row in read("ranking.json")["rows"] if row["workers"] == workers]
    cells = Counter((run["method"], run["every"]) for run in runs if run["seed"] != ranking.TUNING_SEED)
    few = "Fewer than three seeds so far, which is an indication only." if min(cells.values()) < 3 else ""
    tokens = f"{ranking.STEPS[workers]} steps of {ranking.BATCH} examples"
    many = f"{workers} workers" if workers > 1 else "One worker"
    return f"""{many} ({link("runs", "ranking.json")}), `{ranking.MODEL}` on text, {tokens} each, whatever the
        method; the inner rate tuned alike. MB: what a worker sends in the run. Ratio: of the test loss to that of
        `{ranking_table.REFERENCE[workers]}`, over common seeds (geometric mean, 95 % interval). {few}"""


def _verdicts(rows: ranking_table.Rows, workers: int) -> str:
    known = [n for n in ranking.EVERY if ranking_table.ranked(rows, workers, n)]
    said = [ranking_table.verdict(rows, workers, n) for n in known]
    return "\n".join(textwrap.indent(paragraph(text), "  ").replace("  ", "- ", 1) for text in said)


def ranked() -> str:
    rows, parts = read("ranking.json")["rows"], list[str]()
    for workers in (4, 16, 1):
        shown = ranking_table.table(rows, workers)
        if len(shown) > 1:
            tried = table(*ranking_table.tuning(rows, workers))
            parts += [paragraph(_ranked(workers)), table(*shown), _verdicts(rows, workers), tried]
    return "\n\n".join(parts)


def ranked_in_short() -> str:
    rows = read("ranking.json")["rows"]
    return "\n\n".join((paragraph(_ranked(4)), table(*ranking_table.short(rows, 4)), _verdicts(rows, 4)))


def unequal_machines() -> str:
    file = "unequal.json"
    about = f"""Four real processes, the last three times as slow, n = 32 if nothing is said ({made(file)}): how
        much of the sum of their speeds does useful work (also of the speeds that they had while they computed: a
        paced step takes some hundredths longer than its pace), and the time to a test loss, as a multiple of plain
        local SGD's over paired seeds (95 % intervals):"""
    return f"{paragraph(about)}\n\n{table(*unequal.table(read(file)['rows']))}"


def in_short() -> str:
    """Return the three claims of the README."""
    link_file, untuned_file, chaos_file = "evidence-link.json", "untuned.json", "chaos-mnist-720.json"
    loaded, lines = results.load(RESULTS / link_file), headline.lines(RESULTS / link_file)
    best, ddp = lines[0], next(line for line in lines if line.method == "ddp")
    cell = next(cell for cell in loaded.runs() if cell.real)
    rarely = claim("Synchronizing rarely is what counts there", _rarely_counts(link_file))
    slow = f"""**Slow links.** {100 * loaded.about["target"]["accuracy"]:g} % on MNIST, {cell.parameters:,}
        parameters, {cell.config["workers"]} processes, {rate(link_file)} each: {best.seconds.mean:.1f} s with the
        {headline.name(best)}; {ddp.seconds.mean:.0f} s with torch's DistributedDataParallel
        ({link(f"{best.seeds} seeds", link_file)}). {rarely}; between the ways to do it the seeds do not tell."""
    condition = {"workload": "mnist", "model": "lenet5", "every": 16, "workers": 4, "fault": None}
    rows = [row for row in read(untuned_file)["rows"] if row == row | condition]

    def loss(method: str, shards: str) -> float:
        of = [row["test_loss"] for row in rows if (row["strategy"], row["shards"]) == (method, shards)]
        return sum(of) / len(of)

    bad = f"""**Bad workers.** One of four has random labels, and nobody is told which: the test loss on MNIST is
        {loss("swarm", "bad-labels:1"):.3f} with the swarm, {loss("local-sgd", "bad-labels:1"):.3f} with plain
        averaging. Where all is well: {loss("swarm", "iid"):.3f} and {loss("local-sgd", "iid"):.3f}
        ({link("runs", untuned_file)})."""
    storm = read(chaos_file)
    lost = f"""**Lost workers.** {storm["faults"]} faults in {storm["minutes"]:g} minutes, among
        {storm["workers"]} workers ({", ".join(storm["kinds"])}): training survived {storm["survived"]}, lost
        {storm["lost_rounds"]} of {storm["committed_rounds"]} rounds, was whole again after
        {storm["recover_seconds_median"]:.1f} s in the median, and kept
        {storm["throughput_ratio"]:.2f} of its speed per live worker ({link("run", chaos_file)})."""
    return "\n".join(textwrap.indent(paragraph(text), "  ").replace("  ", "- ", 1) for text in (slow, bad, lost))


BLOCKS: dict[str, Callable[[], str]] = {
    "in-short": in_short,
    "unequal": unequal_machines,
    "demo": demo,
    "as-they-come": as_they_come,
    "muon": muon,
    "ranking": ranked,
    "ranking-short": ranked_in_short,
    "chaos": chaos,
    "overlap": overlap,
    "rounds": rounds,
    "headline": timed,
    "text-link": timed_text,
    "paper": paper,
    "conditions": conditions,
}
BLOCK = re.compile(r"(<!-- evidence: (\S+) -->\n)(.*?)(<!-- end evidence -->)", re.DOTALL)
MARKER = re.compile(r"<!--\s*(?:end )?evidence")


def rewritten(pages: dict[str, str]) -> dict[str, str]:
    """Return pages, by their names, with all blocks rewritten.

    Raises:
        DataError: a block has no end, no function or no place, or its results are missing or contradict it.
    """
    names = [match[2] for text in pages.values() for match in BLOCK.finditer(text)]
    markers = sum(len(MARKER.findall(text)) for text in pages.values())
    if sorted(names) != sorted(BLOCKS) or markers != 2 * len(names):
        raise DataError(
            f"{' and '.join(pages)}: expected one block each, ended, for {', '.join(BLOCKS)}; "
            f"found {', '.join(names)}"
        )
    return {name: _rewritten(name, text) for name, text in pages.items()}


def _rewritten(name: str, text: str) -> str:
    top = "../" * name.count("/")
    try:
        text = BLOCK.sub(lambda of: f"{of[1]}{BLOCKS[of[2]]().replace('](', f']({top}')}\n{of[4]}", text)
    except KeyError as error:
        raise DataError(f"{FOLDER} lacks {error}, which a block needs; run its benchmark again") from None
    return with_address(text, address()) if name == "README.md" else text


def address() -> str:
    """Return the repository's address as pyproject.toml names it, under [project.urls]; empty if it does not."""
    found = re.search(r'^Repository = "(\S+?)/?"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return found[1] if found else ""


def with_address(text: str, repository: str) -> str:
    """Return a page whose links to files of the repository work anywhere, such as on the page of the package."""
    if not repository:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:|#)", rf"\1{repository}/raw/HEAD/", text)
    return re.sub(r"\]\((?!\w+:|#)", f"]({repository}/blob/HEAD/", text)


def stale(pages: dict[str, str]) -> list[tuple[str, str]]:
    """Return page and name of the blocks that differ from the results; without a name, of a page's links."""
    differ: list[tuple[str, str]] = []
    for name, text in rewritten(pages).items():
        pairs = list(zip(BLOCK.findall(pages[name]), BLOCK.findall(text), strict=True))
        blocks = [(name, f"block {block[1]}") for block, expected in pairs if block != expected]
        differ += blocks or ([(name, "links")] if text != pages[name] else [])
    return differ


def read_pages() -> dict[str, str]:
    return {name: (ROOT / name).read_text() for name in PAGES}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a block differs")
    args = parser.parse_args(arguments)
    try:
        pages = read_pages()
        differ = stale(pages)
        if not args.check:
            for name, text in rewritten(pages).items():
                (ROOT / name).write_text(text)
    except DataError as error:
        print(error)
        return 1
    outcome = "differs from the results; run `make readme`" if args.check else "rewritten"
    for name, what in differ:
        print(f"{name}, {what}: {outcome}")
    return 1 if differ and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
