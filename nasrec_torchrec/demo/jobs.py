"""The demo as a function: what ``nasrec demo`` does."""

from pathlib import Path
from typing import Any


def run(
    out: Path | str = "runs/demo",
    budget: str = "80s",
    workers: int = 2,
    seed: int = 0,
    paper: bool = False,
    ranks: int = 2,
) -> list[dict[str, Any]]:
    """Runs ``nasrec auto`` on MovieLens-100K beside a race of random networks and one of tuned baselines, which get the
    same seconds, and beside LightGBM; then exports the model that it found and scores with the exported file.

    Args:
        out: folder that receives everything: data, runs, report.html, the exported model.
        budget: time for each of the three races, with s, m or h.
        workers: processes that share each race, and the cores unless OMP_NUM_THREADS is set.
        seed: seed of everything that is sampled.
        paper: whether to show the paper's procedure instead: train a supernet, search it, retrain the best candidates
            beside DLRM and a random architecture with three seeds, export the winner.
        ranks: processes that train each model of the paper's procedure. torchx starts them if there are several.

    Returns:
        A record for each row of the table that is printed, with its test metrics.

    Raises:
        ValueError: If a job fails, or torchx is needed and not installed.
    """
    from nasrec_torchrec.runs.paths import to_path

    if paper:
        from nasrec_torchrec.demo.movielens import run_demo

        return run_demo(to_path(out), ranks, seed)
    from nasrec_torchrec.demo.races import run_races

    return run_races(to_path(out), budget, workers, seed)
