"""Data sets: :func:`prepare` and its siblings do what ``nasrec prepare`` does."""

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, SplitFlags, TextFlags, TextFormat
from nasrec_torchrec.datasets.jobs import (
    describe,
    prepare,
    prepare_avazu,
    prepare_criteo,
    prepare_criteo1tb,
    prepare_frappe,
    prepare_kdd2012,
    prepare_movielens100k,
    propose,
)

__all__ = [
    "PreparationConfig",
    "SplitConfig",
    "SplitFlags",
    "TextFlags",
    "TextFormat",
    "describe",
    "prepare",
    "prepare_avazu",
    "prepare_criteo",
    "prepare_criteo1tb",
    "prepare_frappe",
    "prepare_kdd2012",
    "prepare_movielens100k",
    "propose",
]
