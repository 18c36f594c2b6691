"""What a race found, in a few honest sentences."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def verdict(results: Mapping[str, Any]) -> str:
    """The winner beside the best baseline and the tree, on the test split where there is one."""
    measured = results["measured"]
    split = "test" if measured["winner"].get("test") else "validation"
    best = measured["winner"]
    lines = [f"Winner: {best['title']} ({best['recipe']}{_with(best['features'])}): {split} {_metrics(best[split])}."]
    if (together := best.get(f"{split} ensemble")) is not None:
        lines.append(
            f"The mean prediction of its {len(best[split])} seeds: {split} log loss {together['log_loss']:.5f}, "
            f"AUC {together['auc']:.5f}."
        )
    for name, title in (
        ("baseline", "The best tuned baseline"),
        ("baseline without added features", "The best tuned baseline without added features"),
        ("tree", "LightGBM"),
    ):
        other = measured.get(name)
        if other is None or not other.get(split):
            continue
        if (other["title"], other["recipe"], other["features"]) == (best["title"], best["recipe"], best["features"]):
            lines.append(f"{title} is the winner itself: no other model beat it.")
            continue
        lines.append(
            f"{title}, {other['title']}{_with(other['features'])}: {split} {_metrics(other[split])}"
            f" ({_compared(best[split], other[split])})."
        )
    return "\n".join(lines)


def _with(features: Sequence[str]) -> str:
    return f", with {', '.join(features)}" if features else ""


def _metrics(seeds: Sequence[Mapping[str, float]]) -> str:
    parts = []
    for name, title in (("log_loss", "log loss"), ("auc", "AUC")):
        values = [seed[name] for seed in seeds]
        spread = f" ± {statistics.stdev(values):.5f}" if len(values) > 1 else ""
        parts.append(f"{title} {statistics.fmean(values):.5f}{spread}")
    return f"{', '.join(parts)} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"


def _compared(best: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> str:
    difference = statistics.fmean(s["log_loss"] for s in other) - statistics.fmean(s["log_loss"] for s in best)
    return f"{abs(difference):.5f} {'worse' if difference > 0 else 'better'} than the winner"
