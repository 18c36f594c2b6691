"""How much a model relies on each column of the raw data: what shuffling its values does to the metrics.

A column counts with the buckets and crosses that are computed from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.click_data import ClickData, join
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.transform import add_crosses
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary
from nasrec_torchrec.metrics.click_metrics import block_losses, centered, click_metrics
from nasrec_torchrec.progress import progress_bar


@dataclass(frozen=True)
class ColumnImportance:
    """What shuffling a column costs.

    Args:
        column: name of the column.
        log_loss: mean rise of the log loss over the repeats.
        deviation: standard deviation of the rise over the repeats; 0 for a single one.
        auc: mean fall of the AUC; None where it is not defined.
        error: standard error of the rise over consecutive blocks of rows: a column that helps at some times and harms
            at others is uncertain, however often it is shuffled.
    """

    column: str
    log_loss: float
    deviation: float
    auc: float | None
    error: float = 0.0

    @property
    def cells(self) -> tuple[str, ...]:
        """The importance as a row of a table; see ``IMPORTANCE_COLUMNS``."""
        auc = "" if self.auc is None else f"{self.auc:.5f}"
        return self.column, f"{self.log_loss:.5f}", f"{self.deviation:.5f}", auc


IMPORTANCE_COLUMNS = ("column, shuffled", "log loss rises by", "±", "AUC falls by")


def column_importances(
    model: nn.Module,
    folder: Path,
    files: ClickFiles,
    repeats: int,
    most_rows: int = 100_000,
    batch_size: int = 4096,
    seed: int = 0,
    center: bool = False,
) -> tuple[ColumnImportance, ...]:
    """Measures the importance of every column that a model reads, the most important first.

    Buckets and crosses are computed again from the shuffled values, so that a column counts with all that is made of
    it. Every column is shuffled in the same ways, and the model is measured on the same rows.

    Args:
        model: unsharded model.
        folder: prepared data set, which holds the words of crosses.
        files: rows to measure on, with the columns that the model reads.
        repeats: number of times that each column is shuffled.
        most_rows: number of rows to measure on; of more, some from all over the split are taken.
        batch_size: number of rows in a forward pass.
        seed: seed of the shuffling.
        center: whether log losses do not count how far the mean prediction is from the click rate.

    Raises:
        ValueError: If a file was changed, the words of a cross are missing, or a prediction is not a number.
    """
    schema = files.schema
    files.verify()
    table = pa.concat_tables([pq.read_table(file, columns=schema.columns) for file in files.files])
    if table.num_rows > most_rows:
        table = table.take(np.linspace(0, table.num_rows - 1, most_rows).astype(np.int64))
    words = {
        feature.table: read_dictionary(folder / DICTIONARIES / f"{safe_name(feature.table)}.parquet")
        for feature in schema.crosses
        if feature.ids in ("dictionary", "history")
    }
    model.eval()
    orders = [np.random.default_rng([seed, number]).permutation(table.num_rows) for number in range(repeats)]
    predicted = _predict(model, table, schema, batch_size, center)
    whole, blocks = click_metrics(*predicted), _blocks(*predicted)
    found = []
    parts = _columns(schema)
    with progress_bar(len(parts) * repeats, "importance", "pass") as bar:
        for name, columns in parts.items():
            rises, falls, by_block = [], [], []
            for order in orders:
                shuffled = _shuffled(table, schema, columns, order, words)
                predicted = _predict(model, shuffled, schema, batch_size, center)
                metrics = click_metrics(*predicted)
                by_block.append(_blocks(*predicted) - blocks)
                rises.append(metrics.log_loss - whole.log_loss)
                if whole.auc is not None and metrics.auc is not None:
                    falls.append(whole.auc - metrics.auc)
                bar.update()
            deviation = float(np.std(rises, ddof=1)) if repeats > 1 else 0.0
            fall = float(np.mean(falls)) if falls else None
            error = float(np.mean(by_block, 0).std(ddof=1)) / len(blocks) ** 0.5 if len(blocks) > 1 else 0.0
            found.append(ColumnImportance(name, float(np.mean(rises)), deviation, fall, error))
    return tuple(sorted(found, key=lambda one: -one.log_loss))


def _blocks(logits: Tensor, labels: Tensor, weights: Tensor | None) -> np.ndarray:
    """Returns the log losses of consecutive blocks of rows."""
    found = block_losses(logits, labels, weights)
    if not found:
        raise ValueError("importance: a prediction is not a number")
    return np.array(found)


def _columns(schema: Schema) -> dict[str, list[str]]:
    """The prepared columns that belong to each column of the raw data."""
    found = {feature.name: [feature.name] for feature in schema.dense}
    for feature in schema.sparse:
        if not feature.cross:
            found[feature.name] = [feature.name, *filter(None, [feature.weights_column])]
    return found


def _shuffled(
    table: pa.Table, schema: Schema, columns: Sequence[str], order: np.ndarray, words: dict[str, pa.Array]
) -> pa.Table:
    """Returns rows with the values of some columns in another order, and what is computed of them."""
    changed = {name: values.plain(table.column(name)).take(order) for name in columns}
    crosses = [cross for cross in schema.crosses if set(cross.cross) & set(columns)]
    kept = [name for name in table.column_names if name not in {cross.name for cross in crosses}]
    rows = pa.table({name: changed.get(name, table.column(name)) for name in kept})
    return add_crosses(rows, crosses, words)


@torch.no_grad()
def _predict(
    model: nn.Module, table: pa.Table, schema: Schema, batch_size: int, center: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    data = ClickData.from_table(table.combine_chunks(), schema, "shuffled rows")
    logits, labels = [], []
    for first in range(0, table.num_rows, batch_size):
        batch = join([(data, first, min(first + batch_size, table.num_rows))])
        logits.append(model(batch.dense_features, batch.sparse_features).flatten())
        labels.append(batch.labels)
    predicted = torch.cat(logits), torch.cat(labels), data.row_weights
    return (centered(*predicted), *predicted[1:]) if center else predicted
