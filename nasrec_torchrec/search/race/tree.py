"""The yardstick of gradient-boosted trees: LightGBM on the same rows, an optional extra of the package."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.features import HISTORY_LEVELS
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.boosted_trees import columns_of_trees, features_of_trees
from nasrec_torchrec.models.stored_trees import TreeRecord, load_booster, read_record, write_record
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import write_text

# The name of a tree with the winner's columns among what was measured, beside the yardstick.
TREE_BESIDE = "tree of the winner's columns"
_ROUNDS, _PATIENCE = 3000, 50
_MOST_ROWS = 5_000_000
_PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,  # what is chosen by a time measurement need not be chosen again
}


def tree_folders(out: Path) -> tuple[Path, Path]:
    """Returns where a race keeps the yardstick, and the tree of the winner's columns if those are others."""
    return out / names.RACE_TREE, out / names.RACE_TREE_BESIDE


def train_tree(
    data: Path,
    schema: Schema,
    out: Path,
    seconds: float | None,
    seed: int = 0,
    now: Callable[[], float] = time.monotonic,
) -> TreeRecord:
    """Trains LightGBM with its defaults, categories and early stopping on the validation split, once for a folder.

    Args:
        data: prepared data set.
        schema: columns to read; lists of ids are left out, a history becomes its two counts.
        out: receives the model, as text, and what it reached. Trees of other columns that it holds are replaced.
        seconds: after which no further tree is grown; unset, early stopping alone decides.
        seed: of LightGBM.
        now: the clock that counts the seconds.
    """
    if (found := read_record(out)) is not None and found.columns == schema:
        return found
    import lightgbm

    started = now()
    files = {split: replace(open_split(data, split), schema=schema) for split in ("train", "validation")}
    columns, categories = columns_of_trees(schema)
    sets: list[Any] = []
    counts: list[int] = []
    for split in files.values():
        rows, labels = _first_rows(split)
        weights = row_weights(split)
        reference = sets[0] if sets else None
        # As in the training of a network, which learns the click rate of all rows from those that were kept.
        added = np.full(len(labels), split.log_odds_added) if split.log_odds_added else None
        sets.append(
            lightgbm.Dataset(
                rows,
                labels,
                reference,
                weight=None if weights is None else weights[: len(labels)].numpy(),
                feature_name=columns,
                categorical_feature=categories,
                init_score=added,
                params=_PARAMETERS,
            ).construct()
        )
        counts.append(len(labels))

    losses: dict[str, dict[str, list[float]]] = {}
    callbacks = [
        lightgbm.record_evaluation(losses),
        lightgbm.early_stopping(_PATIENCE, verbose=False),
        _Deadline(started + seconds if seconds is not None else math.inf, now),
    ]
    parameters = _PARAMETERS | {"seed": seed, "num_threads": torch.get_num_threads()}
    booster = lightgbm.train(parameters, sets[0], _ROUNDS, valid_sets=[sets[1]], callbacks=callbacks)
    # Whether patience or the clock ended it, the best number of trees is kept.
    best = int(np.argmin(losses["valid_0"]["binary_logloss"])) + 1
    raw = booster.predict(rows, raw_score=True, num_iteration=best)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / names.TREES, booster.model_to_string(num_iteration=best))
    sampled = "" if counts[0] < _MOST_ROWS else f", the first {counts[0]:,} rows"
    record = TreeRecord(
        title="LightGBM",
        recipe=f"{best} trees, defaults, early stopping{sampled}",
        features=[feature.name for feature in schema.crosses if feature.ids != "buckets"],
        seconds=round(now() - started, 2),
        sha256=sha256(out / names.TREES),
        validation=[asdict(click_metrics(*_as_predicted(raw, labels, files["validation"])))],
        schema=json.loads(schema.to_json()),
        dictionaries=dict(files["train"].dictionaries),
    )
    write_record(out, record)
    return record


def predict_tree(out: Path, files: ClickFiles) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns logits, labels and, if rows have them, weights ``(N,)`` of the rows of a split.

    Args:
        out: folder of the tree.
        files: rows, with the columns that the tree was trained on.

    Raises:
        ValueError: If the model is not the one that was trained.
    """
    booster = load_booster(out)
    # A chunk of rows at a time: however many there are, they need no memory.
    raw, labels = zip(
        *((booster.predict(rows, raw_score=True), clicks) for rows, clicks in batches_of_columns(files)), strict=True
    )
    return _as_predicted(np.concatenate(raw), np.concatenate(labels), files)


def measure_tree(out: Path, files: ClickFiles) -> dict[str, float | None]:
    """Metrics of a trained tree model on the rows of a split, see :func:`predict_tree`."""
    return asdict(click_metrics(*predict_tree(out, files)))


def _as_predicted(raw: Any, labels: np.ndarray, files: ClickFiles) -> tuple[Tensor, Tensor, Tensor | None]:
    logits, weights = torch.from_numpy(np.asarray(raw)).float(), row_weights(files)
    return logits, torch.from_numpy(labels).float(), None if weights is None else weights[: len(labels)]


class _Deadline:
    """Stops LightGBM after the first tree that is finished too late."""

    def __init__(self, deadline: float, now: Callable[[], float]) -> None:
        self.order = 100  # after the losses of the tree are recorded
        self._deadline, self._now = deadline, now

    def __call__(self, environment: Any) -> None:
        import lightgbm

        if self._now() > self._deadline:
            raise lightgbm.callback.EarlyStopException(environment.iteration, environment.evaluation_result_list)


def _first_rows(files: ClickFiles) -> tuple[np.ndarray, np.ndarray]:
    """Columns for LightGBM and labels of the rows that fit into memory, in their order."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for rows, labels in batches_of_columns(files):
        parts.append((rows, labels))
        count += len(labels)
        if count >= _MOST_ROWS:
            break
    rows, labels = (np.concatenate(column)[:_MOST_ROWS] for column in zip(*parts, strict=True))
    return rows, labels


def batches_of_columns(files: ClickFiles) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns for LightGBM and labels, in the order of the rows."""
    files.verify()
    schema = files.schema
    single = features_of_trees(schema)
    wanted = [schema.label, *(dense.name for dense in schema.dense), *(feature.name for feature in single)]
    for file in files.files:
        for batch in pq.ParquetFile(file).iter_batches(columns=wanted):
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in wanted]
            numbers = columns[: 1 + len(schema.dense)]
            for feature, ids in zip(single, columns[len(numbers) :], strict=True):
                # The id 0 of a missing value becomes -1 and 11: no row has been counted that way.
                numbers += np.divmod(ids - 1, HISTORY_LEVELS) if feature.ids == "history" else [ids]
            rows = np.stack(numbers, 1).astype(np.float64)
            yield rows[:, 1:], rows[:, 0]
