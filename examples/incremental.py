"""A model that is trained day after day, and what the earlier days are worth: five days of clicks that drift.

    python examples/incremental.py --out build/incremental
    torchrun --nproc-per-node 2 examples/incremental.py --out build/incremental      # several ranks

Users keep their habits, items gain and lose appeal from day to day, and every day brings items that nobody has seen.
Every day's rows are predicted before they are trained on: by a model that has seen all days before, and by one that is
trained from scratch on the day before alone. A run that was killed resumes when it is started again.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec import datasets, training
from nasrec_torchrec.datasets.config import PreparationConfig

USERS, ITEMS, NEW_ITEMS = 2000, 100, 20
SCHEMA = """
label: clicked
dense: [{name: hour, transform: standardize}]
sparse:
  - {name: user, ids: hash, num_embeddings: 5000}
  - {name: item, ids: hash, num_embeddings: 5000}
"""


def write_days(folder: Path, days: int, rows: int) -> None:
    """Writes raw clicks, and prepares every day as a data set of its own."""
    random = np.random.default_rng(0)
    users, items = random.normal(size=USERS), random.normal(size=ITEMS + days * NEW_ITEMS)
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "schema.yaml").write_text(SCHEMA)
    for day in range(days):
        name = f"2026-11-{day + 1:02d}"
        user = random.integers(0, USERS, rows)
        item = random.integers(day * NEW_ITEMS, day * NEW_ITEMS + ITEMS, rows)  # the oldest ones are gone
        hour = random.integers(0, 24, rows)
        clicked = random.random(rows) < 1 / (1 + np.exp(1 - users[user] - items[item]))
        table = pa.table({"clicked": clicked.astype(np.int8), "user": user, "item": item, "hour": hour})
        raw = folder / "raw" / f"{name}.parquet"
        pq.write_table(table, raw)
        out, config = folder / "days" / name, PreparationConfig(overwrite=True)
        datasets.prepare(str(raw), folder / "schema.yaml", out, config=config)
        items += 0.3 * random.normal(size=items.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    out, first = arguments.out, os.environ.get("RANK", "0") == "0"
    if first and not (out / "days").exists():
        write_days(out, arguments.days, arguments.rows)
    config = training.TrainConfig(batch_size=200, learning_rate=0.05, epochs=2)
    found = {
        name: training.run_incremental(out / "days", out / name, config, architecture="dlrm", from_scratch=alone)
        for name, alone in (("all days before", False), ("the day before", True))
    }
    for name, results in found.items():
        for day in results["days"][1:] if results else ():
            auc, loss, entropy = (day["progressive"][metric] for metric in ("auc", "log_loss", "normalized_entropy"))
            print(
                f"{day['day']}, model of {name}: AUC {auc:.4f}, log loss {loss:.4f}, normalized entropy {entropy:.4f}"
            )


if __name__ == "__main__":
    main()
