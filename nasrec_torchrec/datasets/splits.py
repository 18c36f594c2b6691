"""Rules that decide which row belongs to which split."""

import re
from collections.abc import Mapping

import numpy as np

from nasrec_torchrec.datasets.config import SplitConfig

SPLITS = ("train", "validation", "test")
# Where a rule puts the training rows that are not kept.
LEFT_OUT = len(SPLITS)


def stratified(labels: np.ndarray, seed: int, folds: int = 10) -> np.ndarray:
    """Assigns rows to the folds of scikit-learn's ``StratifiedKFold(folds, shuffle=True, random_state=seed)``.

    It needs a few bytes per row where scikit-learn needs about fifty, which matters with 45 million rows.

    Args:
        labels: labels ``(N,)``, 0 or 1.
        seed: seed of the shuffle.
        folds: number of folds to which the rows of each label are dealt.

    Returns:
        The fold ``(N,)`` of each row.

    Raises:
        ValueError: If a label has fewer rows than there are folds.
    """
    # Labels are numbered in the order in which they first appear, as scikit-learn does.
    order = [0, 1] if len(labels) and labels[0] == 0 else [1, 0]
    counts = [int(np.count_nonzero(labels == label)) for label in order]
    for label, count in zip(order, counts, strict=True):
        if 0 < count < folds or not len(labels):
            raise ValueError(f"split stratified: label {label} has {count} rows, {folds} or more are needed")
    assigned = np.empty(len(labels), np.uint8)
    random = np.random.RandomState(seed)
    start = 0
    for label, count in zip(order, counts, strict=True):
        # The rows sorted by label are dealt to the folds in turn; that fixes how many of a label each fold gets.
        dealt = [len(range((fold - start) % folds, count, folds)) for fold in range(folds)]
        fold_of_row = np.repeat(np.arange(folds, dtype=np.uint8), dealt)
        if count:
            random.shuffle(fold_of_row)
        assigned[labels == label] = fold_of_row
        start += count
    return assigned


def assign(config: SplitConfig, labels: np.ndarray, key: np.ndarray | None) -> np.ndarray:
    """Assigns rows to splits.

    Args:
        config: rule by which to assign them.
        labels: labels ``(N,)``, 0 or 1.
        key: what else the rule reads, ``(N,)``: times, or indices into ``SPLITS``.

    Returns:
        The split ``(N,)`` of each row, as an index into ``SPLITS``, or ``LEFT_OUT``.

    Raises:
        ValueError: If train is empty.
    """
    if config.split == "stratified":
        splits = np.array([0] * 8 + [1, 2], np.uint8)[stratified(labels, config.split_seed)]
    elif config.split == "time":
        key = np.arange(len(labels)) if key is None else key
        train = round(len(key) * (1 - config.validation_share - config.test_share))
        test = len(key) - round(len(key) * config.test_share)
        splits = np.empty(len(key), np.uint8)
        order = np.argsort(key, kind="stable")
        for index, rows in enumerate((order[:train], order[train:test], order[test:])):
            splits[rows] = index
    else:
        assert key is not None
        splits = key.astype(np.uint8)
    if not np.any(splits == 0):
        raise ValueError(f"split {config.split}: no row is left for train, of {len(labels)}")
    if config.keep_negatives < 1:
        drawn = np.random.RandomState(config.split_seed).random_sample(len(labels))
        splits[(splits == 0) & (labels == 0) & (drawn >= config.keep_negatives)] = LEFT_OUT
    return splits


# Names that files and columns give to the splits.
NAMES: Mapping[str, int] = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}


def named(text: str) -> int | None:
    """Returns the index into ``SPLITS`` of a name such as ``valid``."""
    return NAMES.get(text.strip().lower())


def of_file(uri: str) -> int | None:
    """Returns the index into ``SPLITS`` that the name of a file, such as ``train-00000.parquet``, or its folder has."""
    *folders, name = uri.replace("\\", "/").split("/")
    parts = [name.split(".")[0], re.split(r"[-_.]", name)[0], *folders[-1:]]
    return next((index for part in parts if (index := named(part)) is not None), None)
