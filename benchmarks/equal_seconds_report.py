"""Prints what the runs of ``benchmarks/equal_seconds.py`` on one data set would have shipped, as the pages show it.

    python benchmarks/equal_seconds_report.py --runs runs/equal-seconds/movielens100k

It trains nothing. The runs may come from several machines, but all must have had the same budget, data and versions.
"""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from scipy.stats import t as student

from nasrec_torchrec.cli import run

_CONFIDENCE = 0.95
Procedure = Literal["auto", "auto-2026", "auto-plain", "random", "baselines", "paper", "lightgbm"]
TITLES: dict[Procedure, str] = {
    "auto": "auto",
    "auto-2026": "auto, NASREC_2026",
    "auto-plain": "auto, no added features",
    "random": "random architectures alone",
    "baselines": "baselines alone, tuned",
    "paper": "the paper's procedure",
    "lightgbm": "LightGBM",
}
_ALIKE = ("budget", "clock", "data", "machine", "versions")


def main(runs: Path) -> None:
    """Prints a table of test metrics, and what each run would have shipped.

    Args:
        runs: folder of a data set with the JSON files of its runs.
    """
    shipped = read(runs)
    first = next(one for found in shipped.values() for one in found.values())
    clock = "processor time" if first["clock"] == "cpu" else "wall-clock time"
    lines = [table(shipped), "", *together_against_one(shipped)]
    lines += [
        f"Each run had {first['budget']} of {clock} on one core of an {first['machine']} with {first['versions']}."
    ]
    lines += ["What each would have shipped, with its test log loss, and the seconds of training in each phase:", ""]
    for procedure, found in shipped.items():
        for seed, one in found.items() if procedure != "lightgbm" else ():
            features = f" with {', '.join(one['features'])}" if one.get("features") else ""
            features += f" without {', '.join(one['dropped'])}" if one.get("dropped") else ""
            spent = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in one["spent"].items())
            title = f"{TITLES[procedure]}, seed {seed}: {one['title']}{features}"
            lines.append(f"- {title}: {one['log_loss']:.4f} ({spent})")
    print("\n".join(lines))


def read(folder: Path) -> dict[Procedure, dict[int, dict[str, Any]]]:
    """Returns the runs by procedure and seed.

    Raises:
        ValueError: If there is none, or they cannot be compared.
    """
    runs = [(file, json.loads(file.read_text())) for file in sorted(folder.glob("*-*.json"))]
    if not runs:
        raise ValueError(f"{folder}: expected the JSON files of benchmarks/equal_seconds.py, found none")
    for file, one in runs:
        for name in _ALIKE:
            if one[name] != runs[0][1][name]:
                raise ValueError(
                    f"{file}: {name} is {one[name]!r}, but {runs[0][1][name]!r} in {runs[0][0].name}; such runs cannot "
                    "be compared"
                )
    found: dict[Procedure, dict[int, dict[str, Any]]] = {name: {} for name in TITLES}
    for _, one in runs:
        found[one["procedure"]][one["seed"]] = one
    return {name: dict(sorted(ones.items())) for name, ones in found.items() if ones}


def table(shipped: dict[Procedure, dict[int, dict[str, Any]]]) -> str:
    """Returns the runs as a table in Markdown.

    Args:
        shipped: runs by procedure and seed.
    """
    reference = shipped.get("auto", {})
    # Earlier runs do not know which models would have predicted better together.
    more = any("together" in one for one in reference.values())
    head = "| procedure | test log loss | test AUC | log loss less that of auto, 95 % | seeds | trials | seconds |"
    lines = [
        head + (" log loss of models together | less that of auto's |" if more else ""),
        "|---|---:|---:|---:|---:|---:|---:|" + ("---:|---:|" if more else ""),
    ]
    for procedure, runs in shipped.items():
        beside = {} if procedure == "auto" else reference
        alone, difference = _compared(lambda one: float(one["log_loss"]), runs, beside)
        trials, seconds = (statistics.fmean(one[name] for one in runs.values()) for name in ("trials", "seconds"))
        line = (
            f"| {TITLES[procedure]} | {alone} | {interval([one['auc'] for one in runs.values()])} | {difference} "
            f"| {len(runs)} | {trials:.0f} | {seconds:.0f} |"
        )
        several = any("together" in one for one in runs.values())
        together = _compared(_together, runs, beside) if several else ("", "")
        lines.append(line + (" {} | {} |".format(*together) if more else ""))
    return "\n".join(lines)


def together_against_one(shipped: dict[Procedure, dict[int, dict[str, Any]]]) -> list[str]:
    """Says how the models of `auto` together compare with the one model that each procedure would have shipped.

    Args:
        shipped: runs by procedure and seed.

    Returns:
        list: a line and an empty one; nothing if no run of `auto` has several models.
    """
    several = {seed: {"log_loss": _together(one)} for seed, one in shipped.get("auto", {}).items() if "together" in one}
    found = {
        procedure: _compared(lambda one: float(one["log_loss"]), runs, several)[1]
        for procedure, runs in shipped.items()
    }
    gains = [f"{TITLES[procedure]} {gain}" for procedure, gain in found.items() if gain]
    return [f"Log loss of the one model less that of auto's models together: {'; '.join(gains)}.", ""] if gains else []


def _compared(
    loss: Callable[[dict[str, Any]], float], runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]
) -> tuple[str, str]:
    """Returns the mean loss of runs, and the mean difference to those of the same seeds, if there are any."""
    paired = [loss(runs[seed]) - loss(reference[seed]) for seed in runs if seed in reference]
    return interval([loss(one) for one in runs.values()]), interval(paired) if paired else ""


def _together(run: dict[str, Any]) -> float:
    """Returns the test log loss of the models that predict better together, by the validation rows, if any do."""
    return float((run["together"]["test"] if run.get("together") else run)["log_loss"])


def interval(values: list[float]) -> str:
    """Returns the mean and half of its confidence interval."""
    mean = f"{statistics.fmean(values):.5f}"
    if len(values) < 2:
        return mean
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
    return f"{mean} ± {quantile * statistics.stdev(values) / math.sqrt(len(values)):.5f}"


if __name__ == "__main__":
    run(main)
