"""Candidates that were trained from scratch, and how well the supernet predicted their losses."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.regression import kendall_rank_corrcoef

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.runs.files import read_text
from nasrec_torchrec.runs.names import METRICS
from nasrec_torchrec.search.candidate import Candidate


@dataclass(frozen=True)
class Finalist:
    """An architecture that was trained from scratch, with one or several seeds.

    Args:
        architecture: the trained architecture.
        losses: validation log loss of every seed, at its best epoch.
        test_log_loss: mean test log loss over the seeds; None if there are no test rows.
        test_auc: mean test AUC over the seeds; None if it is not defined.
        parameters: number of parameters of the interaction part.
        predicted: validation log loss in the supernet; None if the search did not evaluate the architecture.
    """

    architecture: Architecture
    losses: tuple[float, ...]
    test_log_loss: float | None
    test_auc: float | None
    parameters: int
    predicted: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0


def read_finalists(run_dirs: Sequence[Path], candidates: Sequence[Candidate]) -> list[Finalist]:
    """Reads the results of training architectures of a search from scratch, sorted by validation loss.

    Args:
        run_dirs: folders of training runs, each with one or several architectures. If an architecture was trained with
            several learning rates, the best one counts. Failed trials are left out.
        candidates: candidates of the search.

    Returns:
        list[Finalist]: The finalists, the lowest validation loss first.

    Raises:
        ValueError: If a folder holds no finished training run of an architecture.
    """
    predicted = {c.architecture.canonical(): c.loss for c in candidates if not c.stopped and not c.failed}
    found: dict[Architecture, Finalist] = {}
    for run_dir in run_dirs:
        file = run_dir / METRICS
        try:
            trials = json.loads(read_text(file))["trials"]
            finalists = [_finalist(trial, predicted) for trial in trials if "error" not in trial]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: not the metrics of finished trainings of architectures: {error}") from None
        for finalist in finalists:
            form = finalist.architecture.canonical()
            if form not in found or finalist.mean < found[form].mean:
                found[form] = finalist
    return sorted(found.values(), key=lambda finalist: finalist.mean)


def agreement(finalists: Sequence[Finalist]) -> float | None:
    """Returns Kendall's tau between the losses in the supernet and from scratch; None for fewer than three."""
    pairs = [(finalist.predicted, finalist.mean) for finalist in finalists if finalist.predicted is not None]
    if len(pairs) < 3:
        return None
    return float(kendall_rank_corrcoef(*torch.tensor(pairs, dtype=torch.float64).unbind(1)))


def _mean(runs: list[dict[str, Any]], metric: str) -> float | None:
    """Returns the mean of a test metric over the runs; None if there are no test rows, or they have no such metric."""
    values = [run["test"][metric] for run in runs if run["test"] and run["test"][metric] is not None]
    return statistics.fmean(values) if values else None


def _finalist(trial: dict[str, Any], predicted: dict[Architecture, float]) -> Finalist:
    architecture = Architecture.from_json(json.dumps(trial["model"]))
    runs = trial["runs"]
    if not all(math.isfinite(run["validation"]["log_loss"]) for run in runs):
        raise ValueError("a validation log loss is no finite number")
    return Finalist(
        architecture,
        tuple(run["validation"]["log_loss"] for run in runs),
        _mean(runs, "log_loss"),
        _mean(runs, "auc"),
        trial["dense_parameters"],
        predicted.get(architecture.canonical()),
    )
