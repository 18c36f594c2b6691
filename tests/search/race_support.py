"""What the tests of a race share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema, SparseFeature
from nasrec_torchrec.datasets.splits import SplitConfig


def prepare_pairs(folder: Path, rows: int = 1200) -> Path:
    """A prepared data set whose clicks depend on the pair of user and item, and on neither alone."""
    rng = np.random.default_rng(0)
    likes = rng.random((12, 10)) < 0.5
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    files = []
    for name, count in (("train", rows), ("validation", rows // 3), ("test", rows // 3)):
        user, item, shop = (rng.integers(0, size, count) for size in (12, 10, 4))
        clicked = rng.random(count) < np.where(likes[user, item], 0.9, 0.1)
        table = {"clicked": clicked.astype(int), "user": user, "item": item, "shop": shop}
        files.append(str(raw / f"{name}.parquet"))
        pq.write_table(pa.table(table), files[-1])
    sparse = tuple(SparseFeature(name, ids="dictionary") for name in ("user", "item")) + (SparseFeature("shop", 4),)
    prepare(RawData(tuple(files), Schema("clicked", (), sparse, 8), split=SplitConfig("given")), folder)
    return folder
