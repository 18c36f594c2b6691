"""What LightGBM's trees cost as a part of a compiled package, beside LightGBM itself.

    nasrec auto --data data/frappe --out runs/auto-frappe --budget 100s
    python benchmarks/tree_latency.py --race runs/auto-frappe --tree tree-of-winner --out runs/tree-latency

The winner of a race is compiled alone and together with a tree of the same race. Both packages and LightGBM score the
same rows in turns, with one thread; the times are those of the processor.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nasrec_torchrec import inference
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.models.stored_trees import load_booster
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.finish import read_results
from nasrec_torchrec.search.race.tree import batches_of_columns


def main(race: Path, out: Path, tree: str = names.RACE_TREE, rounds: int = 50) -> None:
    """Measures, and prints a table.

    Args:
        race: run folder of a race.
        out: folder for the two packages.
        tree: which of the race's trees, ``tree`` or ``tree-of-winner``; the winner has to read the same columns.
        rounds: how often each is called.
    """
    torch.set_num_threads(1)
    inference.export(race, out / "alone")
    inference.export(race, out / "together", ensemble_with=[tree])
    alone, together = (Predictor(out / name) for name in ("alone", "together"))
    booster, (description, _) = load_booster(race / tree), load_model(race)
    wanted = set(description.schema.feature_names)
    folders = [_data_of(race), *sorted(race.glob(f"{names.RACE_DATA}-*"))]
    files = description.read(
        open_split(next(f for f in folders if wanted <= set(load_schema(f).feature_names)), "validation")
    )
    print(f"{booster.num_trees()} trees\n")
    print("| rows | winner, ms | winner and trees, ms | the trees' part, ms | LightGBM, ms |")
    print("|---:|---:|---:|---:|---:|")
    for rows in (1, 64, 512, 4096):
        batch = next(files.evaluation_batches(rows))
        sparse = batch.sparse_features
        dense = batch.dense_features if batch.dense_features.shape[1] else None
        request = Request(sparse.values().long(), sparse.lengths().view(len(sparse.keys()), -1).long(), dense)
        columns = next(batches_of_columns(files))[0][:rows]
        calls: dict[str, Callable[[], object]] = {
            "alone": lambda request=request: alone.predict(request),
            "together": lambda request=request: together.predict(request),
            "lightgbm": lambda columns=columns: booster.predict(columns, num_threads=1),
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 3):
            for name, call in calls.items():
                started = time.process_time()
                call()
                if turn >= 3:
                    found[name].append(1e3 * (time.process_time() - started))
        median = {name: float(np.median(values)) for name, values in found.items()}
        spread = {
            name: f"{median[name]:.2f} ({np.quantile(v, 0.1):.2f}-{np.quantile(v, 0.9):.2f})"
            for name, v in found.items()
        }
        part = median["together"] - median["alone"]
        print(f"| {rows:,} | {spread['alone']} | {spread['together']} | {part:.2f} | {spread['lightgbm']} |")


def _data_of(race: Path) -> Path:
    results = read_results(race)
    if results is None:
        raise ValueError(f"{race}: expected a race that is over")
    return Path(results["origin"]["data"])


if __name__ == "__main__":
    run(main)
