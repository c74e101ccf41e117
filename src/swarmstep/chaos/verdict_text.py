"""The verdict as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmstep.chaos.growth import growth_text
from swarmstep.chaos.recovery import PHASES


def verdict_text(summary: Mapping[str, Any]) -> str:
    """Return the verdict as text, a few lines."""
    counts = f"{summary['faults']} faults in {summary['seconds']:.0f} s, {summary['survived']} survived"
    lines = [f"{counts}; {summary['scheduled']} were scheduled, {summary['given_up']} given up"]
    for kind, row in summary["kinds"].items():
        times = [f"{name} in {_times(row[name])}" for name in PHASES if row[name]]
        survived = f"{row['survived']} of {row['faults']} survived"
        lines.append(f"  {kind}: {', '.join([survived, *times])}")
    lines += [f"  {kind}: skipped: {reason}" for kind, reason in summary["skipped"].items()]
    rounds = f"{summary['committed_rounds']} committed rounds, {summary['lost_rounds']} of them lost"
    lines.append(f"{rounds}; {summary['wiped_states']} wiped states; {summary['restarts']} restarts")
    if not summary["digest"]:
        lines.append("the method has no shared vector: wiped states are detected by round only, not by digest")
    if summary["live_workers"] is not None:
        live, members, averaged = (summary[f"{n}_workers"] for n in ("live", "participating", "averaged"))
        lines.append(f"on average {live:.2f} workers live, {members:.2f} participating, {averaged:.2f} averaged")
        share = summary["lost_worker_steps"] / max(1, summary["committed_worker_steps"])
        lines.append(
            f"work lost: at most {summary['lost_worker_steps']} local steps, {share:.2%} of what was kept"
        )
    if summary["throughput_ratio"] is not None:
        lines.append(f"throughput per live worker: {summary['throughput_ratio']:.3f} of the fault-free one")
    if summary["final_loss"] is not None:
        mean, deviation = summary["fault_free_loss"], summary["fault_free_deviation"]
        reference = "" if mean is None else f"; without faults {mean:.4f}, standard deviation {deviation:.4f}"
        lines.append(f"test loss {summary['final_loss']:.4f}{reference}")
    lines += growth_text(summary["growth"])
    verdict = "; ".join(summary["complaints"]) or "nothing was lost"
    return "\n".join([*lines, f"verdict: {verdict}"])


def _times(seconds: Mapping[str, float]) -> str:
    return f"{seconds['median']:.2f} s (at most {seconds['max']:.2f} s)"
