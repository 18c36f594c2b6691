"""Gradient-boosted trees as tensors, so that they can be averaged with networks and leave in the same package.

Every leaf of a tree is a bit of a mask, the leftmost one first. A split that sends a row to the right rules out the
leaves on its left, and the row reaches the first leaf that no split rules out (QuickScorer, Lucchese et al., SIGIR
2015). What a column rules out depends on its value alone. So each column becomes a table that has a mask for each tree
in a row for each value, and a row of data looks up one row per column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.features import HISTORY_LEVELS, SparseFeature
from nasrec_torchrec.datasets.schema import Schema

# The powers of two below 2**31 have different remainders by this, which tells the bit of a mask that is left.
_REMAINDERS = 37
_MOST_LEAVES = 31


def features_of_trees(schema: Schema) -> list[SparseFeature]:
    """Returns the categorical features that trees read.

    Trees divide numbers themselves, without buckets; they read no lists, and hold no category for each hash of dynamic
    ids.
    """
    return [feature for feature in schema.sparse if not feature.multi_hot and feature.ids not in ("buckets", "dynamic")]


def columns_of_trees(schema: Schema) -> tuple[list[str], list[str]]:
    """Returns the names of the columns that trees read, and those of them that are categories.

    The columns are the dense features and then the categorical ones, where a history becomes its two counts.
    """
    columns = [feature.name for feature in schema.dense]
    categories = []
    for feature in features_of_trees(schema):
        if feature.ids == "history":
            columns += [f"{feature.name}_clicks", f"{feature.name}_others"]
        else:
            columns.append(feature.name)
            categories.append(feature.name)
    return columns, categories


@dataclass(frozen=True)
class _Split:
    """A split of a tree: its column, what goes to the left, and the mask without the leaves on its left."""

    tree: int
    column: int
    threshold: float
    categories: tuple[int, ...] | None
    mask: int


def _splits(tree: int, structure: Mapping[str, Any]) -> tuple[list[_Split], list[float]]:
    """Returns the splits and the leaves' values, from left to right, of a tree of LightGBM's ``dump_model``."""
    splits: list[_Split] = []
    leaves: list[float] = []

    def visit(node: Mapping[str, Any]) -> None:
        if "split_feature" not in node:
            leaves.append(float(node["leaf_value"]))
            return
        first = len(leaves)
        visit(node["left_child"])
        left = (1 << len(leaves)) - (1 << first)
        among = node["decision_type"] == "=="
        categories = tuple(map(int, str(node["threshold"]).split("||"))) if among else None
        threshold = 0.0 if among else float(node["threshold"])
        splits.append(_Split(tree, int(node["split_feature"]), threshold, categories, ~left))
        visit(node["right_child"])

    visit(structure)
    return splits, leaves


class BoostedTrees(nn.Module):
    """The sum of the leaves that rows reach, a logit.

    Args:
        schema: columns that the trees were trained on.
        trees: LightGBM's ``dump_model()["tree_info"]``.

    Raises:
        ValueError: If a tree has more leaves than a mask has bits.
    """

    values: Tensor
    offsets: Tensor

    def __init__(self, schema: Schema, trees: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.features = schema.feature_names
        self._read = [self.features.index(feature.name) for feature in features_of_trees(schema)]
        self._histories = [feature.ids == "history" for feature in features_of_trees(schema)]
        self._limits = [feature.id_limit for feature in features_of_trees(schema)]
        self.has_dense = bool(schema.dense)
        values = torch.zeros(len(trees), _REMAINDERS)
        splits: list[_Split] = []
        for number, tree in enumerate(trees):
            of_tree, leaves = _splits(number, tree["tree_structure"])
            if len(leaves) > _MOST_LEAVES:
                raise ValueError(f"trees: expected at most {_MOST_LEAVES} leaves a tree, found {len(leaves)}")
            splits += of_tree
            for leaf, value in enumerate(leaves):
                values[number, (1 << leaf) % _REMAINDERS] = value
        self._used = sorted({split.column for split in splits})
        by_column = {column: [split for split in splits if split.column == column] for column in self._used}
        self.masks = nn.ModuleList(
            (_Thresholds if found[0].categories is None else _Categories)(found, len(trees))
            for found in by_column.values()
        )
        self.register_buffer("values", values.flatten())
        self.register_buffer("offsets", torch.arange(len(trees)) * _REMAINDERS)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Computes logits ``(B, 1)`` of dense features ``(B, F_dense)`` and ids, as the networks do.

        Raises:
            ValueError: If the ids are of other features.
        """
        if list(sparse.keys()) != self.features:
            raise ValueError(f"trees: expected the features {self.features}, found {sparse.keys()}")
        return self.logits(dense, sparse.values(), sparse.lengths().view(len(self.features), -1)).unsqueeze(1)

    def logits(self, dense: Tensor | None, ids: Tensor, lengths: Tensor) -> Tensor:
        """Computes logits ``(B,)``.

        Args:
            dense: dense features ``(B, F_dense)``; None if there are none.
            ids: ids ``(T,)`` of all features, feature by feature. One outside its table counts as 0, the missing id.
            lengths: number of ids ``(F_sparse, B)``; a feature without one counts as missing.
        """
        columns = self._columns(dense, ids, lengths)
        left = lengths.new_full((lengths.shape[1], len(self.offsets)), -1, dtype=torch.int32)
        for column, masks in zip(self._used, self.masks, strict=True):
            left = left & masks(columns[column])
        first = left & -left
        return self.values[(first % _REMAINDERS).long() + self.offsets].sum(1)

    def _columns(self, dense: Tensor | None, ids: Tensor, lengths: Tensor) -> list[Tensor]:
        """Returns what the splits compare: float32 and int64 columns ``(B,)``."""
        columns = [] if dense is None or not self.has_dense else list(dense.float().t().contiguous())
        starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths)
        padded = F.pad(ids, (0, 1))
        for place, history, limit in zip(self._read, self._histories, self._limits, strict=True):
            found = padded[starts[place].clamp(max=ids.shape[0])]
            known = (lengths[place] > 0) & (found >= 0) & (found < limit)
            found = torch.where(known, found, 0)
            if history:
                # The id 0 of a missing value becomes -1 and 11: no row has been counted that way.
                columns.append((found - 1).div(HISTORY_LEVELS, rounding_mode="floor").float())
                columns.append(((found - 1) % HISTORY_LEVELS).float())
            else:
                columns.append(found)
        return columns


class _Thresholds(nn.Module):
    """The masks of a column of numbers, between all of its thresholds.

    Args:
        splits: all splits of the column.
        trees: number of trees.
    """

    edges: Tensor
    table: Tensor

    def __init__(self, splits: Sequence[_Split], trees: int) -> None:
        super().__init__()
        edges = sorted({split.threshold for split in splits})
        table = np.full((len(edges) + 1, trees), -1, np.int32)
        for split in splits:  # a number above the threshold goes to the right
            table[edges.index(split.threshold) + 1 :, split.tree] &= split.mask
        # A float32 is above a threshold if it is above the next lower float32, so nothing is lost.
        near = np.array(edges).astype(np.float32)
        near = np.where(near > np.array(edges), np.nextafter(near, np.float32(-np.inf)), near)
        self.register_buffer("edges", torch.from_numpy(near))
        self.register_buffer("table", torch.from_numpy(table))

    def forward(self, numbers: Tensor) -> Tensor:
        """Returns the masks ``(B, trees)`` of numbers ``(B,)``."""
        return self.table.index_select(0, torch.bucketize(numbers, self.edges))


class _Categories(nn.Module):
    """The masks of a column of categories, for those that a split names and for all others.

    Args:
        splits: all splits of the column.
        trees: number of trees.
    """

    places: Tensor
    table: Tensor

    def __init__(self, splits: Sequence[_Split], trees: int) -> None:
        super().__init__()
        named = sorted({category for split in splits for category in split.categories or ()})
        # The row 0 is that of all categories that no split names, as is the last entry, for those behind it.
        places = torch.zeros(named[-1] + 2, dtype=torch.int64)
        places[torch.tensor(named)] = torch.arange(1, len(named) + 1)
        table = np.full((len(named) + 1, trees), -1, np.int32)
        for split in splits:
            others = np.ones(len(table), bool)
            others[places[torch.tensor(split.categories)].numpy()] = False
            table[others, split.tree] &= split.mask
        self.register_buffer("places", places)
        self.register_buffer("table", torch.from_numpy(table))

    def forward(self, categories: Tensor) -> Tensor:
        """Returns the masks ``(B, trees)`` of categories ``(B,)``."""
        return self.table.index_select(0, self.places[categories.clamp(max=len(self.places) - 1)])
