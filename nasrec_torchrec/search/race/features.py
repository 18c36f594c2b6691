"""Which added features are worth a training: ranked by what they say about the errors of a model without them.

A combination of columns is judged through its history: for every validation row the numbers of training rows with the
same combination that had a click and that had none, in buckets. Half of the validation rows say by how much the model
is wrong in each bucket, and the other half what it gains when that is corrected. The halves are the earlier and the
later rows: with rows drawn at random, whatever tells the sessions of one user apart would seem to help, since rows of
each session would be in both halves. Combinations are chosen one after another, each on what the ones
before it left, so that ten names for one piece of information count once. The first whose gain is no larger than chance
explains ends the list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets import history
from nasrec_torchrec.datasets.crosses import cross_of, history_of
from nasrec_torchrec.datasets.features import HISTORY_IDS, SparseFeature
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.search.race.chance import BLOCKS, explained_by_rows
from nasrec_torchrec.search.race.leaks import Signs, signs

# Rows that suffice to rank; features that are chosen count all of them.
_TRAIN_ROWS, _VALIDATION_ROWS = 2_000_000, 200_000
_PARENTS = 6  # pairs that are extended by a third column
_SHRINKAGE = 20.0  # rows that speak for no correction, in every bucket
_LEAST_GAIN = 2e-4  # of the model's log loss
_LEFT_OUT = 5
_CROSSES = 2  # of the chosen combinations so many are also proposed as dictionary ids


@dataclass(frozen=True)
class Ranked:
    """A combination of columns.

    Args:
        columns: names.
        gain: validation log loss that its history saves, beside those ranked before it.
        certain_rows: see :class:`~nasrec_torchrec.search.race.leaks.Signs`.
    """

    columns: tuple[str, ...]
    gain: float
    certain_rows: int = 0


@dataclass(frozen=True)
class Ranking:
    """Combinations that were ranked.

    Args:
        chosen: the first is the best.
        left_out: the best of those whose history is reversed, with what each would save alone.
        combinations: number of combinations among which they were chosen.
    """

    chosen: tuple[Ranked, ...]
    left_out: tuple[Ranked, ...] = ()
    combinations: int = 0

    def to_json(self) -> list[Any]:
        """JSON values."""
        return [*([asdict(ranked) for ranked in part] for part in (self.chosen, self.left_out)), self.combinations]

    @classmethod
    def from_json(cls, parts: list[Any]) -> "Ranking":
        """Reads what :meth:`to_json` gave."""
        *ranked, combinations = parts
        chosen, left_out = (tuple(Ranked(**{**r, "columns": tuple(r["columns"])}) for r in part) for part in ranked)
        return cls(chosen, left_out, combinations)


def proposed(ranked: Sequence[Ranked]) -> list[SparseFeature]:
    """Features to add to the data: the histories, and the first combinations as crosses by dictionary."""
    crosses = [cross_of(entry.columns, min_count=2) for entry in ranked if len(entry.columns) > 1]
    return [*(history_of(entry.columns) for entry in ranked), *crosses[:_CROSSES]]


def rank_features(
    data: Path, schema: Schema, logits: np.ndarray, most: int, candidates: int, reversed_too: bool = False
) -> Ranking:
    """Chooses combinations of one to three columns.

    Args:
        data: prepared data set.
        schema: schema of the data set.
        logits: logits of a trained model for the validation rows, in their order.
        most: combinations to choose.
        candidates: columns that are combined at most, those of the largest tables first.
        reversed_too: whether to choose histories that give away how the data was made.

    Returns:
        Ranking: The chosen ones, none if none helps, and what was left out.
    """
    columns = [f for f in schema.sparse if not f.multi_hot and not f.cross]
    columns = sorted(columns, key=lambda feature: -(feature.num_embeddings or 0))[:candidates]
    names = [feature.name for feature in schema.sparse if feature in columns]
    train = _read(open_split(data, "train"), [*names, schema.label], _TRAIN_ROWS)
    validation = _read(open_split(data, "validation"), [*names, schema.label], _VALIDATION_ROWS)
    labels = validation[schema.label]
    logits = logits[: len(labels)].astype(np.float64)
    half = np.arange(len(labels)) < len(labels) // 2
    found: dict[tuple[str, ...], Signs] = {}

    def history_ids(combination: tuple[str, ...]) -> np.ndarray:
        ids, found[combination] = _history(combination, train, validation, schema.label)
        return ids

    pairs = {combination: history_ids(combination) for combination in _pairs(names)}
    single_gains = {c: _corrected(logits, labels, ids, half)[1] for c, ids in pairs.items()}
    best = sorted((c for c in pairs if len(c) == 2), key=lambda c: -single_gains[c])[:_PARENTS]
    triples = {tuple(sorted((*pair, name), key=names.index)) for pair in best for name in names if name not in pair}
    pool = pairs | {c: history_ids(c) for c in sorted(triples)}
    chosen: list[Ranked] = []
    left_out: list[Ranked] = []
    combinations_ranked = len(pool)
    least = _LEAST_GAIN * _log_loss(logits, labels)
    if not reversed_too:
        for combination in [c for c in pool if found[c].reversed]:
            gain = _corrected(logits, labels, pool.pop(combination), half)[1]
            if gain >= least:
                left_out.append(Ranked(combination, gain))
    while pool and len(chosen) < most:
        gains = {combination: _corrected(logits, labels, ids, half) for combination, ids in pool.items()}
        winner = max(gains, key=lambda combination: gains[combination][1])
        corrected, gain = gains[winner]
        saved = np.array_split(_row_losses(logits, labels) - _row_losses(corrected, labels), BLOCKS)
        if gain < max(least, explained_by_rows([float(block.mean()) for block in saved if len(block)], len(pool))):
            break
        logits = corrected
        chosen.append(Ranked(winner, gain, found[winner].certain_rows))
        del pool[winner]
    left_out.sort(key=lambda ranked: -ranked.gain)
    return Ranking(tuple(chosen), tuple(left_out[:_LEFT_OUT]), combinations_ranked)


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in (1, 2):
        yield from combinations(names, size)


def _read(files: ClickFiles, columns: Sequence[str], rows: int) -> dict[str, np.ndarray]:
    files.verify()
    parts: list[dict[str, np.ndarray]] = []
    for file in files.files:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(columns)):
            parts.append({name: batch.column(name).to_numpy() for name in columns})
            rows -= batch.num_rows
            if rows <= 0:
                break
        if rows <= 0:
            break
    return {name: np.concatenate([part[name] for part in parts]).astype(np.int64) for name in columns}


def _history(
    combination: Sequence[str], train: dict[str, np.ndarray], validation: dict[str, np.ndarray], label: str
) -> tuple[np.ndarray, Signs]:
    """The history of every validation row, and what is suspicious about it."""
    key = np.zeros(len(train[label]) + len(validation[label]), np.int64)
    for name in combination:
        column = np.concatenate([train[name], validation[name]])
        # Numbered again after each column, so that no product of table sizes overflows.
        key = pa.array(key * (int(column.max()) + 1) + column).dictionary_encode().indices.to_numpy().astype(np.int64)
    mine, theirs = key[: len(train[label])], key[len(train[label]) :]
    size = int(key.max()) + 1
    clicks = np.bincount(mine, weights=train[label], minlength=size).astype(np.int64)
    others = np.bincount(mine, minlength=size) - clicks
    rate = float(train[label].mean()) if len(train[label]) else 0.0
    suspicious = signs(theirs, clicks[theirs], others[theirs], validation[label], rate)
    return history.bucket(clicks[theirs], others[theirs]), suspicious


def _corrected(logits: np.ndarray, labels: np.ndarray, ids: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits that are corrected in every bucket by what the other half of the rows says, and what that gains."""
    probability = 1 / (1 + np.exp(-logits))
    corrected = logits.copy()
    for fit in (half, ~half):
        offsets = np.zeros(HISTORY_IDS)
        for _ in range(3):  # Newton's steps
            shifted = 1 / (1 + np.exp(-(logits[fit] + offsets[ids[fit]])))
            error = np.bincount(ids[fit], weights=labels[fit] - shifted, minlength=HISTORY_IDS)
            curvature = np.bincount(ids[fit], weights=shifted * (1 - shifted), minlength=HISTORY_IDS)
            prior = _SHRINKAGE * float((probability * (1 - probability)).mean())
            offsets += np.clip((error - prior * offsets) / (curvature + prior), -2, 2)
        corrected[~fit] += offsets[ids[~fit]]
    return corrected, _log_loss(logits, labels) - _log_loss(corrected, labels)


def _row_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - labels * logits


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(_row_losses(logits, labels).mean())
