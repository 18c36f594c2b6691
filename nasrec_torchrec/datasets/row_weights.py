"""How much the rows of a split count, for metrics and for the scale of a loss."""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nasrec_torchrec.datasets.reader import ClickFiles


def row_weights(files: ClickFiles) -> Tensor | None:
    """Returns the weights ``(N,)`` of all rows in their order, in float32; None if the rows count alike.

    Raises:
        ValueError: If a file was changed or is damaged.
    """
    if files.schema.weight is None:
        return None
    files.verify()
    return torch.from_numpy(np.concatenate([*_chunks(files, files.schema.weight), np.empty(0, np.float32)]))


def mean_weight(files: ClickFiles) -> float:
    """Returns the mean weight of the rows, 1 if they count alike.

    Raises:
        ValueError: If all weights are 0.
    """
    if files.schema.weight is None or not len(files):
        return 1.0
    total = files.weights
    if total is None:
        total = sum(float(chunk.sum(dtype=np.float64)) for chunk in _chunks(files, files.schema.weight))
    if not total > 0:
        raise ValueError(
            f"{files.files[0].parent}: column '{files.schema.weight}': expected weights above 0, found 0 in all "
            f"{len(files):,} rows"
        )
    return total / len(files)


def label_shares(files: ClickFiles) -> list[float]:
    """Returns of each label in which part of the rows it is known, by their weights: 1 for the first one.

    Raises:
        ValueError: If a label is known in no row that counts.
    """
    schema = files.schema
    names = [task.name for task in schema.tasks]
    if not names:
        return [1.0]
    files.verify()
    known, total = np.zeros(len(names)), 0.0
    for file in files.files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(columns=[*names, *filter(None, [schema.weight])]):
                weights = np.ones(len(batch)) if schema.weight is None else batch.column(schema.weight).to_numpy()
                total += weights.sum(dtype=np.float64)
                valid = (batch.column(name).is_valid().to_numpy(zero_copy_only=False) for name in names)
                known += [weights[rows].sum(dtype=np.float64) for rows in valid]
    for name, weight in zip(names, known, strict=True):
        if not weight > 0:
            raise ValueError(
                f"{files.files[0].parent}: label '{name}': expected a value in some of the {len(files):,} rows to "
                "train on, found none; --loss_weights with 0 for it leaves it out"
            )
    return [1.0, *(known / total).tolist()]


def _chunks(files: ClickFiles, column: str) -> Iterator[np.ndarray]:
    for file in files.files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(columns=[column]):
                yield batch.column(0).to_numpy().astype(np.float32, copy=False)
