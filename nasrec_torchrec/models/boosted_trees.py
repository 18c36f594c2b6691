"""Gradient-boosted trees as tensors, so that they can be averaged with networks and leave in the same package.

A row reaches a leaf if it takes the right side at every split above it. All splits of all trees are decided at once,
and a matrix product counts for each leaf how many of them lead to it (the idea is Hummingbird's, arXiv 2010.04804), so
no step depends on the one before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.features import HISTORY_LEVELS, SparseFeature
from nasrec_torchrec.datasets.schema import Schema

# Trees whose leaves are looked for together, which bounds the memory of a batch.
_TOGETHER = 256


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


@dataclass
class _Tree:
    """A tree in lists: the splits with the column, the threshold or the categories on the left; the leaves."""

    columns: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    categories: list[tuple[int, ...] | None] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    # For every leaf: the splits above it, with +1 where it is on the left and -1 on the right.
    paths: list[dict[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, structure: Mapping[str, Any]) -> "_Tree":
        """Reads a tree of LightGBM's ``dump_model``."""
        tree = cls()
        pending: list[tuple[Mapping[str, Any], dict[int, int]]] = [(structure, {})]
        while pending:
            node, path = pending.pop()
            if "split_feature" not in node:
                tree.values.append(float(node["leaf_value"]))
                tree.paths.append(path)
                continue
            split = len(tree.columns)
            tree.columns.append(int(node["split_feature"]))
            among = node["decision_type"] == "=="
            tree.thresholds.append(0.0 if among else float(node["threshold"]))
            tree.categories.append(tuple(map(int, str(node["threshold"]).split("||"))) if among else None)
            pending += [(node["left_child"], path | {split: 1}), (node["right_child"], path | {split: -1})]
        return tree


class BoostedTrees(nn.Module):
    """The sum of the leaves that rows reach, a logit.

    Args:
        schema: columns that the trees were trained on.
        trees: LightGBM's ``dump_model()["tree_info"]``.
    """

    def __init__(self, schema: Schema, trees: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.features = schema.feature_names
        self._read = [self.features.index(feature.name) for feature in features_of_trees(schema)]
        self._histories = [feature.ids == "history" for feature in features_of_trees(schema)]
        self._limits = [feature.id_limit for feature in features_of_trees(schema)]
        self.has_dense = bool(schema.dense)
        every = [_Tree.of(tree["tree_structure"]) for tree in trees]
        groups = (every[first : first + _TOGETHER] for first in range(0, len(every), _TOGETHER))
        self.groups = nn.ModuleList(_Together(group) for group in groups)

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
        total = columns[0].new_zeros(lengths.shape[1], dtype=torch.float32)
        for group in self.groups:
            total = total + group(columns)
        return total

    def _columns(self, dense: Tensor | None, ids: Tensor, lengths: Tensor) -> list[Tensor]:
        """Returns what the splits compare: float32 and int64 columns ``(B,)``."""
        columns = [] if dense is None or not self.has_dense else list(dense.float().unbind(1))
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


class _Together(nn.Module):
    """Some trees, all of whose splits are decided at once, for rows that lie side by side in memory."""

    numbers: Tensor
    thresholds: Tensor
    places: Tensor
    paths: Tensor
    lefts: Tensor
    values: Tensor

    def __init__(self, trees: Sequence[_Tree]) -> None:
        super().__init__()
        splits = max(1, max(len(tree.columns) for tree in trees))
        leaves = max(len(tree.values) for tree in trees)
        paths, values = torch.zeros(len(trees), leaves, splits), torch.zeros(len(trees), leaves)
        lefts = torch.full((len(trees), leaves, 1), float(splits + 1))  # of leaves that are none: never reached
        numeric: list[tuple[int, int, _Tree]] = []
        among: list[tuple[int, int, _Tree]] = []
        for row, tree in enumerate(trees):
            for leaf, (value, path) in enumerate(zip(tree.values, tree.paths, strict=True)):
                values[row, leaf], lefts[row, leaf] = value, sum(side > 0 for side in path.values())
                for split, side in path.items():
                    paths[row, leaf, split] = side
            for split, categories in enumerate(tree.categories):
                (numeric if categories is None else among).append((row, split, tree))
        # Where each split's decision stands in the answer; splits that are none read the first decision.
        places = torch.zeros(len(trees), splits, dtype=torch.int64)
        for place, (row, split, _) in enumerate((*numeric, *among)):
            places[row, split] = place
        read = [tree.columns[split] for _, split, tree in numeric]
        self.read = list(dict.fromkeys(read))
        thresholds = np.array([[tree.thresholds[split]] for _, split, tree in numeric]).reshape(-1, 1)
        self.register_buffer("numbers", torch.tensor([self.read.index(column) for column in read], dtype=torch.int64))
        self.register_buffer("thresholds", torch.from_numpy(_rounded_down(thresholds)))
        self.members = _Members([(t.columns[s], t.categories[s] or ()) for _, s, t in among]) if among else None
        for name, buffer in (("places", places.flatten()), ("paths", paths), ("lefts", lefts), ("values", values)):
            self.register_buffer(name, buffer)

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """Returns the sum of the trees ``(B,)`` in float32."""
        decisions = [] if self.members is None else [self.members(columns)]
        if self.read:
            numbers = torch.stack([columns[column] for column in self.read])
            decisions.insert(0, numbers.index_select(0, self.numbers) <= self.thresholds)
        if not decisions:  # trees of a single leaf
            return self.values.sum() + torch.zeros_like(columns[0], dtype=torch.float32)
        trees, leaves, splits = self.paths.shape
        left = torch.cat(decisions).index_select(0, self.places).float()
        # A row reaches a leaf if it is on the left wherever the path to the leaf is, which adds one each, and nowhere
        # else, which would subtract one. Small whole numbers add exactly in float32.
        reached = self.paths @ left.view(trees, splits, -1) >= self.lefts
        return (self.values.view(1, trees * leaves) @ reached.view(trees * leaves, -1).float()).flatten()


class _Members(nn.Module):
    """Splits by category: whether the category of a row is among those on the left.

    Args:
        splits: column, and categories on the left, of every split.
    """

    columns: Tensor
    numbers: Tensor
    starts: Tensor
    members: Tensor

    def __init__(self, splits: Sequence[tuple[int, Sequence[int]]]) -> None:
        super().__init__()
        self.named: list[tuple[int, int]] = []
        numbers: list[Tensor] = []
        widths: dict[int, int] = {}
        for column in dict.fromkeys(column for column, _ in splits):
            named = sorted({category for other, left in splits if other == column for category in left})
            # 0 stands for all categories that no split names.
            table = torch.zeros(named[-1] + 2, dtype=torch.int64)
            table[torch.tensor(named)] = torch.arange(1, len(named) + 1)
            widths[column] = len(named) + 1
            self.named.append((column, len(table)))
            numbers.append(table)
        order = [column for column, _ in self.named]
        starts, members = [0], []
        for column, left in splits:
            row = torch.zeros(widths[column], dtype=torch.bool)
            row[numbers[order.index(column)][torch.tensor(left)]] = True
            members.append(row)
            starts.append(starts[-1] + len(row))
        self.register_buffer("columns", torch.tensor([order.index(column) for column, _ in splits]))
        self.register_buffer("starts", torch.tensor(starts[:-1]).unsqueeze(1))
        self.register_buffer("members", torch.cat(members))
        self.register_buffer("numbers", torch.cat(numbers))

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """Returns the decisions ``(splits, B)``."""
        start, numbers = 0, []
        for column, size in self.named:
            # The last entry of each table is 0, for the categories behind it.
            numbers.append(self.numbers[start + columns[column].clamp(max=size - 1)])
            start += size
        return self.members[torch.stack(numbers).index_select(0, self.columns) + self.starts]


def _rounded_down(numbers: np.ndarray) -> np.ndarray:
    """Returns the largest float32 that is not above each number, with which every float32 compares in the same way."""
    near = numbers.astype(np.float32)
    return np.where(near > numbers, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)
