"""Which row belongs to which split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

SPLITS = ("train", "validation", "test")
SplitRule = Literal["stratified", "time", "column", "given"]


@dataclass(frozen=True)
class SplitConfig:
    """How rows are divided into train, validation and test.

    Args:
        split: ``stratified`` divides 8/1/1, each part with the same share of clicks, as scikit-learn's
            ``StratifiedKFold(10, shuffle=True, random_state=split_seed)`` does with its folds 0-7, 8 and 9; ``time``
            gives the earliest rows to train and the latest to test; ``column`` reads the name of the split from a
            column; ``given`` takes each source file for the split that its name begins with.
        split_column: of ``time`` (numbers; without it, the rows are taken to lie in the order of time) or ``column``
            (train, validation or test).
        split_seed: of ``stratified``.
        validation_share: of the rows, for ``time``.
        test_share: of the rows, for ``time``.
    """

    split: SplitRule = "stratified"
    split_column: str | None = None
    split_seed: int = 2018
    validation_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if self.split not in get_args(SplitRule):
            raise ValueError(f"split: expected one of {list(get_args(SplitRule))}, found {self.split!r}")
        if self.split == "column" and self.split_column is None:
            raise ValueError("split_column: the split 'column' needs it")
        if self.split_column is not None and self.split not in ("time", "column"):
            raise ValueError(f"split_column: only the splits 'time' and 'column' read it; the split is {self.split!r}")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, found {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share: nothing is left for train")


def stratified(labels: np.ndarray, seed: int, folds: int = 10) -> np.ndarray:
    """The fold ``(N,)`` of each row, as of scikit-learn's ``StratifiedKFold(folds, shuffle=True, random_state=seed)``.

    It takes a few bytes a row where scikit-learn takes about fifty, which matters at 45 million rows.

    Args:
        labels: ``(N,)`` of 0 and 1.
        seed: of the shuffle.
        folds: into which the rows of each label are dealt.

    Raises:
        ValueError: when a label has fewer rows than there are folds.
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
    """The split ``(N,)`` of each row, as an index into ``SPLITS``.

    Args:
        config: the rule.
        labels: ``(N,)`` of 0 and 1.
        key: ``(N,)`` what the rule reads besides: times, or indices into ``SPLITS``.

    Raises:
        ValueError: when train is empty.
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
    return splits


# Names that files and columns give to the splits.
NAMES: Mapping[str, int] = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}


def named(text: str) -> int | None:
    """The index into ``SPLITS`` of a name such as ``valid``."""
    return NAMES.get(text.strip().lower())
