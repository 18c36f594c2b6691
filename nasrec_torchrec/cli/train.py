"""``nasrec train``."""

import statistics
from collections.abc import Mapping
from typing import Any

from nasrec_torchrec.cli.groups import OF_SUPERNETS, TRAINING
from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.training.jobs import run


def table(best: Mapping[str, Any]) -> str:
    """Returns the winning trial for people: what it is, and its metrics over the seeds.

    Args:
        best: a trial as metrics.json records it.
    """
    from tabulate import tabulate

    kind = best["model"].get("kind", "NASRecNet")
    lines = [
        f"kept: {kind}, learning rate {best['learning_rate']:g}, {best['dense_parameters']:,} parameters without the "
        "embedding tables"
    ]
    runs = [run for run in best["runs"] if not run["error"]]
    rows = []
    for split in ("validation", "test"):
        measured = [run[split] for run in runs if run[split]]
        tasks = measured[0].get("tasks", ()) if measured else ()
        for name, found in ((split, measured), *((f"{split}, {task}", _of(task, measured)) for task in tasks)):
            if found:
                spreads = [_spread([m[name] for m in found]) for name in ("log_loss", "auc", "normalized_entropy")]
                rows.append((name, f"{found[0]['rows']:,}", len(found), *spreads))
    head = ("split", "rows", "seeds", "log loss", "AUC", "normalized entropy")
    lines.append(tabulate(rows, head, "simple", disable_numparse=True))
    warnings = dict.fromkeys(message for run in runs for message in run.get("warnings", []))
    lines += [f"warning: {message}" for message in warnings]
    return "\n".join([*lines, *filter(None, (_kept(run, len(runs) > 1) for run in runs))])


def _kept(run: Mapping[str, Any], several: bool) -> str:
    """Says which weights of a training are kept, since warnings may be about others."""
    kept = run.get("kept")  # which earlier versions did not record
    if kept is None:
        return ""
    entropy = run["validation"]["normalized_entropy"]
    if entropy is None:
        found = f"log loss {run['validation']['log_loss']:.5f}"
    else:
        worse = "better" if entropy < 1 else "worse" if entropy > 1 else "no better"
        found = f"normalized entropy {entropy:.4g}, {worse} than always predicting the click rate"
    seed = f"of seed {run['seed']} " if several else ""
    aside = "; the warnings above are about the whole training" if run.get("warnings") else ""
    return (
        f"the weights {seed}are those after epoch {kept['epoch']} of {kept['epochs']} (step {kept['step']:,} of "
        f"{kept['steps']:,}): validation {found}{aside}"
    )


def _of(task: str, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics of a label but the first."""
    return [found["tasks"][task] for found in measured]


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "undefined"
    deviation = f" ± {statistics.stdev(known):.5f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.5f}{deviation}"


PROGRAM = Program(
    run,
    example="nasrec train --data DATA --out runs/model --architecture criteo-small --learning_rates 0.1,0.2",
    groups=TRAINING,
    show=table,
    document=lambda best: best,
    unlisted=OF_SUPERNETS,
    resume="run the same command again to resume from the last checkpoint",
)
