"""``nasrec incremental``."""

from collections.abc import Mapping
from typing import Any

from nasrec_torchrec.cli.groups import OF_SUPERNETS, TRAINING
from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.training.jobs import run_incremental


def table(results: Mapping[str, Any]) -> str:
    """Returns the days for people: the metrics of each, before it was trained on.

    Args:
        results: what results.json holds.
    """
    from tabulate import tabulate

    rows = []
    for day in results["days"]:
        metrics = day["progressive"] or {}
        values = [metrics.get(name) for name in ("auc", "log_loss", "normalized_entropy")]
        nothing = "undefined" if metrics else "-"
        texts = [nothing if value is None else f"{value:.5f}" for value in values]
        rows.append((day["day"], f"{day['rows']:,}", *texts, f"{day['training_seconds']:.1f}"))
    head = ("day", "rows", "AUC before", "log loss before", "normalized entropy before", "seconds of training")
    return tabulate(rows, head, "simple", disable_numparse=True)


PROGRAM = Program(
    run_incremental,
    example="nasrec incremental --data data/days --out runs/daily --architecture criteo-small",
    groups=TRAINING,
    show=table,
    document=lambda results: results,
    unlisted=OF_SUPERNETS,
    resume="run the same command again to resume from the last checkpoint",
)
