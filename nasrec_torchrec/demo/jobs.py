"""The demo as a function: what ``nasrec demo`` does."""

from pathlib import Path
from typing import Any


def run(out: Path | str = "runs/demo", ranks: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Runs everything end to end on MovieLens-100K: prepare, train a supernet, search it, retrain the best candidates
    beside DLRM and a random architecture, export the winner, score with the exported file.

    Args:
        out: folder that receives everything: data, runs, report.html, the exported model.
        ranks: processes of the trainings and of the search. Several are started by torchx; one needs no torchx.
        seed: seed of the supernet, the search and the random architecture; the trainings use it and the next two.

    Returns:
        A record for each of the three models, with its test metrics over three seeds and its cost.

    Raises:
        ValueError: If a job fails, or torchx is needed and not installed.
    """
    from nasrec_torchrec.demo.movielens import run_demo
    from nasrec_torchrec.runs.paths import to_path

    return run_demo(to_path(out), ranks, seed)
