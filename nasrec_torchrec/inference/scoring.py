"""Scoring prepared rows with an exported package."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.files import atomic_path, read_text
from nasrec_torchrec.inference.export import PACKAGE_FORMAT
from nasrec_torchrec.progress import update_interval


def score_parquet(folder: Path, data: Path, out: Path, batch_size: int = 4096) -> int:
    """Scores Parquet rows and writes ``label`` and ``probability`` in the same order.

    Args:
        folder: holds ``model.pt2`` and ``model.json``.
        data: a Parquet file or a folder of them.
        out: Parquet file to write.
        batch_size: rows of a call.

    Returns:
        int: rows scored.

    Raises:
        ValueError: when the package or the rows cannot be read.
    """
    manifest = json.loads(read_text(folder / "model.json"))
    if not isinstance(manifest, dict) or manifest.get("format") != PACKAGE_FORMAT:
        raise ValueError(f"{folder / 'model.json'}: expected a manifest of format '{PACKAGE_FORMAT}'")
    schema = Schema.from_json(json.dumps(manifest["schema"]))
    rows = ClickFiles.open(data, schema)
    try:
        model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{folder / 'model.pt2'}: cannot be loaded: {str(error).splitlines()[0]}") from None
    scores, labels = [], []
    total = -(-len(rows) // batch_size)
    for batch in tqdm(
        rows.evaluation_batches(batch_size), total=total, desc="score", unit="batch", mininterval=update_interval()
    ):
        sparse = batch.sparse_features
        inputs = {
            "dense": batch.dense_features,
            "ids": sparse.values(),
            "lengths": sparse.lengths().view(len(sparse.keys()), -1).long(),
            "weights": sparse.weights_or_none(),
        }
        scores.append(torch.sigmoid(model(*(inputs[name] for name in manifest["inputs"]))))
        labels.append(batch.labels)
    probability = torch.cat(scores).numpy()
    table = pa.table({"label": torch.cat(labels).numpy(), "probability": probability})
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary)
    return len(rows)
