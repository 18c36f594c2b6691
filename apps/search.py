"""Searches a trained supernet for the best architectures."""

import math
from pathlib import Path
from typing import Literal

from nasrec_torchrec.cli import run
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, Limits, Objective
from nasrec_torchrec.search.driver import search_supernet
from nasrec_torchrec.search.report import REPORT


def main(
    supernet: Path,
    data: Path,
    out: Path,
    evolution: EvolutionConfig,
    evaluation: EvaluationConfig,
    objective: Objective,
    limits: Limits,
    top_k: int = 15,
    storage: str | None = None,
    study: str = "search",
    resume: Literal["auto", "never"] = "auto",
) -> None:
    """Searches a trained supernet: regularized evolution, or NSGA-II where costs are traded off.

    Every candidate's last layer is fine-tuned before it is ranked on the validation split. A search that was killed
    goes on when the same command is given again; given several times at once, its processes search together. Started
    on several ranks, each rank holds a share of the tables and of the rows.

    Args:
        supernet: run folder of a supernet's training.
        data: prepared data set.
        out: receives study.journal, report.html, candidates.parquet, results.json and the best architectures as
            architectures/rank-01.json, ...
        top_k: architectures to write.
        storage: where the Optuna study is, as a URL (sqlite:///search.db, postgresql://...); unset, OUT/study.journal.
        study: name of the study there.
        resume: auto takes from the study what it holds, never drops that first.
    """
    found = search_supernet(
        supernet, data, out, evolution, evaluation, objective, limits, top_k, storage, study, resume
    )
    if found is not None:
        best = min((candidate.loss for candidate in found if not candidate.stopped), default=math.inf)
        print(f"best validation log loss {best:.5f}; see {out / REPORT}")


if __name__ == "__main__":
    run(main)
