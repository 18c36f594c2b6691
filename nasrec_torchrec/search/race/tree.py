"""The yardstick of gradient-boosted trees: LightGBM on the same rows, an optional extra of the package."""

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.features import HISTORY_LEVELS, SparseFeature
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import read_json, write_text

_ROUNDS, _PATIENCE = 3000, 50
_MOST_ROWS = 5_000_000
_PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,  # what is chosen by a time measurement need not be chosen again
}
_MODEL = "model.txt"


@dataclass(frozen=True)
class _Result:
    title: str
    recipe: str
    features: list[str]
    seconds: float
    sha256: str
    validation: list[dict[str, float | None]]


def trees_are_installed() -> bool:
    """Whether LightGBM can be imported."""
    return importlib.util.find_spec("lightgbm") is not None


def train_tree(
    data: Path,
    schema: Schema,
    out: Path,
    seconds: float | None,
    seed: int = 0,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Trains LightGBM with its defaults, categories and early stopping on the validation split, once for a folder.

    Args:
        data: prepared data set.
        schema: columns to read; lists of ids are left out, a history becomes its two counts.
        out: receives the model, as text, and what it reached.
        seconds: after which no further tree is grown; unset, early stopping alone decides.
        seed: of LightGBM.
        now: the clock that counts the seconds.

    Returns:
        dict: title, recipe, added features, seconds, and validation metrics.
    """
    if (found := read_tree(out)) is not None:
        return found
    import lightgbm

    started = now()
    files = {split: replace(open_split(data, split), schema=schema) for split in ("train", "validation")}
    columns, categories = _columns(schema)
    sets: list[Any] = []
    counts: list[int] = []
    for split in files.values():
        rows, labels = _rows(split)
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
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / _MODEL, booster.model_to_string(num_iteration=best))
    sampled = "" if counts[0] < _MOST_ROWS else f", the first {counts[0]:,} rows"
    result = {
        "title": "LightGBM",
        "recipe": f"{best} trees, defaults, early stopping{sampled}",
        "features": [feature.name for feature in schema.crosses if feature.ids != "buckets"],
        "seconds": round(now() - started, 2),
        "sha256": sha256(out / _MODEL),
    }
    result["validation"] = [measure_tree(out, files["validation"], str(result["sha256"]))]
    write_text(out / names.RESULT, json_text(result))
    return result


def read_tree(out: Path) -> dict[str, Any] | None:
    """What :func:`train_tree` returned for a folder, or None when it has not.

    Raises:
        ValueError: if that is damaged.
    """
    remedy = "remove it to train the tree again"
    return asdict(read_json(out / names.RESULT, _Result, remedy)) if (out / names.RESULT).exists() else None


def measure_tree(out: Path, files: ClickFiles, digest: str | None = None) -> dict[str, float | None]:
    """Metrics of a trained tree model on the rows of a split.

    Args:
        out: folder of the tree.
        files: rows.
        digest: checksum of the model; unset, that of the folder's result.

    Raises:
        ValueError: if the model is not the one that was trained.
    """
    import lightgbm

    if digest is None:
        digest = (read_tree(out) or {}).get("sha256")
    if sha256(out / _MODEL) != digest:
        raise ValueError(f"{out / _MODEL}: damaged, its checksum is another one than when it was written")
    rows, labels = _rows(files)
    raw = lightgbm.Booster(model_file=out / _MODEL).predict(rows, raw_score=True)
    logits, clicks = torch.from_numpy(np.asarray(raw)).float(), torch.from_numpy(labels).float()
    weights = row_weights(files)
    return asdict(click_metrics(logits, clicks, None if weights is None else weights[: len(labels)]))


class _Deadline:
    """Stops LightGBM after the first tree that is finished too late."""

    def __init__(self, deadline: float, now: Callable[[], float]) -> None:
        self.order = 100  # after the losses of the tree are recorded
        self._deadline, self._now = deadline, now

    def __call__(self, environment: Any) -> None:
        import lightgbm

        if self._now() > self._deadline:
            raise lightgbm.callback.EarlyStopException(environment.iteration, environment.evaluation_result_list)


def _columns(schema: Schema) -> tuple[list[str], list[str]]:
    """Names of the columns of :func:`_rows`, and those that are categories."""
    columns = [feature.name for feature in schema.dense]
    categories = []
    for feature in _single(schema):
        if feature.ids == "history":
            columns += [f"{feature.name}_clicks", f"{feature.name}_others"]
        else:
            columns.append(feature.name)
            categories.append(feature.name)
    return columns, categories


def _single(schema: Schema) -> list[SparseFeature]:
    """The categorical features that a tree reads.

    It divides numbers itself, without buckets, and cannot hold a category for each hash of dynamic ids.
    """
    return [feature for feature in schema.sparse if not feature.multi_hot and feature.ids not in ("buckets", "dynamic")]


def _rows(files: ClickFiles) -> tuple[np.ndarray, np.ndarray]:
    """Columns for LightGBM and labels, in the order of the rows."""
    files.verify()
    schema = files.schema
    single = _single(schema)
    wanted = [schema.label, *(dense.name for dense in schema.dense), *(feature.name for feature in single)]
    parts: list[np.ndarray] = []
    count = 0
    for file in files.files:
        for batch in pq.ParquetFile(file).iter_batches(columns=wanted):
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in wanted]
            numbers = columns[: 1 + len(schema.dense)]
            for feature, ids in zip(single, columns[len(numbers) :], strict=True):
                # The id 0 of a missing value becomes -1 and 11: no row has been counted that way.
                numbers += np.divmod(ids - 1, HISTORY_LEVELS) if feature.ids == "history" else [ids]
            parts.append(np.stack(numbers, 1).astype(np.float64))
            count += batch.num_rows
        if count >= _MOST_ROWS:
            break
    rows = np.concatenate(parts)[:_MOST_ROWS]
    return rows[:, 1:], rows[:, 0]
