"""Permutation importance: what a trained model loses without the information in a column (Breiman 2001)."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.metrics.click_metrics import block_losses

# Logits (B,) or (B, 1) of a batch.
Predict = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Importance:
    """What a model loses if the values of a feature are dealt to the rows at random.

    Args:
        name: name of the feature.
        loss: by how much the log loss grows. Below 0, the model is better without what it learned about the feature.
        error: standard error of it over consecutive blocks of rows, so that a feature that helps at some times and
            harms at others counts as uncertain.
    """

    name: str
    loss: float
    error: float


@torch.no_grad()
def importances(
    predict: Predict, files: ClickFiles, rows: int = 50_000, batch_size: int = 8192, seed: int = 0
) -> list[Importance]:
    """Measures the permutation importance of every feature, the least important one first.

    Args:
        predict: a trained model.
        files: split that it was not trained on.
        rows: largest number of rows to use, evenly spread over the split.
        batch_size: number of rows to score at a time.
        seed: seed of the permutations.

    Raises:
        ValueError: If the split has no rows, or a prediction is not a number.
    """
    if not len(files):
        raise ValueError("importance: the split has no rows")
    data = files.load()
    chosen = torch.arange(0, len(data), -(-len(data) // rows))
    batches = [data.select(part) for part in chosen.split(batch_size)]
    labels = torch.cat([batch.labels for batch in batches])

    def losses(scored: Iterable[Batch]) -> list[float]:
        found = block_losses(torch.cat([predict(batch).flatten() for batch in scored]), labels)
        if not found:
            raise ValueError("importance: a prediction is not a number")
        return found

    plain = losses(batches)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name in (*(feature.name for feature in files.schema.dense), *files.schema.feature_names):
        order = chosen[torch.randperm(len(chosen), generator=generator)]
        others = (data.select(part) for part in order.split(batch_size))
        index = next((i for i, feature in enumerate(files.schema.dense) if feature.name == name), None)
        shuffled = losses(_exchanged(*pair, name, index) for pair in zip(batches, others, strict=True))
        grown = [after - before for before, after in zip(plain, shuffled, strict=True)]
        error = statistics.stdev(grown) / len(grown) ** 0.5 if len(grown) > 1 else 0.0
        found.append(Importance(name, statistics.fmean(grown), error))
    return sorted(found, key=lambda importance: importance.loss)


def _exchanged(batch: Batch, other: Batch, name: str, dense: int | None) -> Batch:
    """Returns a batch with the values that a feature has in another one of the same size."""
    if dense is not None:
        features = batch.dense_features.clone()
        features[:, dense] = other.dense_features[:, dense]
        return Batch(features, batch.sparse_features, batch.labels)
    bags: Mapping[str, JaggedTensor] = batch.sparse_features.to_dict() | {name: other.sparse_features[name]}
    return Batch(batch.dense_features, KeyedJaggedTensor.from_jt_dict(dict(bags)), batch.labels)
