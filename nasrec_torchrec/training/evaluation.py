"""The evaluation of a trained model on a split: metrics, calibration, slices of the rows, importance of the columns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tabulate import tabulate
from torch import Tensor

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.features import FIRST_WORD, MOMENT_IDS, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.moments import name_of
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.split_counts import FEWEST, SplitCounts
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary
from nasrec_torchrec.metrics.calibration import Calibration, calibration, confidence
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics, weight_shares
from nasrec_torchrec.metrics.roc import roc_curve
from nasrec_torchrec.metrics.several_labels import known_rows
from nasrec_torchrec.training.column_importance import IMPORTANCE_COLUMNS, ColumnImportance

# Values of a sliced column that have a line of their own, the most frequent ones; and parts of a column of numbers.
_VALUES, _PARTS = 20, 5


@dataclass(frozen=True)
class Slice:
    """Rows with the same value of a column, or with neighbouring numbers.

    Args:
        value: the value, or the range of numbers.
        metrics: metrics of these rows.
        click_rate: share of them that are clicks.
        prediction: their mean predicted probability.
        auc_interval: half the width of a 95 % interval of the AUC over rows; None where there is no AUC.
        few: whether so few of them are clicks, or are none, that the metrics say little.
    """

    value: str
    metrics: ClickMetrics
    click_rate: float
    prediction: float
    auc_interval: float | None = None
    few: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The slice as a row of a table; see ``SLICE_COLUMNS``."""
        auc = "" if self.metrics.auc is None else f"{self.metrics.auc:.4f} ± {self.auc_interval:.4f}"
        return (
            self.value,
            f"{self.metrics.rows:,}",
            auc + ("*" if self.few else ""),
            f"{self.metrics.log_loss:.4f}",
            f"{self.prediction:.4f}",
            f"{self.click_rate:.4f}",
            f"{self.prediction / self.click_rate:.3f}" if self.click_rate else "",
        )


# Titles of the cells of a slice behind its value.
SLICE_COLUMNS = ("rows", "AUC", "log loss", "mean prediction", "click rate", "predicted / clicked")
FEW_NOTE = f"* fewer than {FEWEST} clicks, or rows without one: little can be said of this slice"


DECILE_COLUMNS = ("decile", "rows", "mean prediction", "click rate")


@dataclass(frozen=True)
class Evaluation(ClickMetrics):
    """Metrics of a split, with what they are made of.

    Args:
        auc_interval: half the width of a 95 % interval of the AUC over rows; None where there is no AUC.
        calibration: predicted probabilities beside click rates.
        slices: metrics of slices of the rows by column.
        roc: points of the ROC curve, see :func:`~nasrec_torchrec.metrics.roc.roc_curve`.
        importance: what shuffling each column costs, the most important one first; empty if it was not asked for.
        weight: column of the rows' weights, by which all metrics are weighted; None if the rows count alike.
        tasks: evaluation of each label but the first, by its name, on the rows whose label is known; one that is known
            in no row is left out.
    """

    auc_interval: float | None
    calibration: Calibration
    slices: dict[str, tuple[Slice, ...]]
    roc: tuple[tuple[float, float], ...] = ()
    importance: tuple[ColumnImportance, ...] = ()
    weight: str | None = None
    tasks: dict[str, "Evaluation"] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        if self.weight is None:
            del document["weight"]
        del document["tasks"]
        if self.tasks:
            document["tasks"] = {name: found.to_json() for name, found in self.tasks.items()}
        return document

    @property
    def summary(self) -> list[tuple[str, str]]:
        """The metrics of all rows, with their names."""
        found = self.calibration
        auc = "undefined" if self.auc is None else f"{self.auc:.5f} ± {self.auc_interval:.5f} (95 % over rows)"
        entropy = "undefined" if self.normalized_entropy is None else f"{self.normalized_entropy:.5f}"
        lift = f"{found.deciles[-1].click_rate / found.click_rate:.2f}" if found.click_rate else "undefined"
        ratio = "" if found.ratio is None else f", {found.ratio:.3f} of it"
        weighted = "" if self.weight is None else f" by weight; all metrics are weighted by '{self.weight}'"
        return [
            ("rows", f"{self.rows:,}, {found.click_rate:.2%} of them clicks{weighted}"),
            ("AUC", auc),
            ("log loss", f"{self.log_loss:.5f}"),
            ("normalized entropy", f"{entropy} (log loss over that of always predicting the click rate)"),
            ("mean prediction", f"{found.prediction:.2%}{ratio}"),
            ("calibration error", f"{found.expected_error:.4f} (expected, over deciles of the prediction)"),
            ("lift", f"{lift} (click rate of the tenth with the highest predictions, over that of all rows)"),
        ]

    @property
    def deciles(self) -> list[tuple[object, ...]]:
        """The calibration by decile as rows of a table; see ``DECILE_COLUMNS``."""
        return [
            (number, f"{part.rows:,}", f"{part.prediction:.4f}", f"{part.click_rate:.4f}")
            for number, part in enumerate(self.calibration.deciles, start=1)
        ]

    def __str__(self) -> str:
        parts = [tabulate(self.summary, tablefmt="plain"), _table(DECILE_COLUMNS, self.deciles)]
        for column, slices in self.slices.items():
            parts.append(_table([column, *SLICE_COLUMNS], [part.cells for part in slices]))
        if any(part.few for slices in self.slices.values() for part in slices):
            parts.append(FEW_NOTE)
        if self.importance:
            parts.append(_table(IMPORTANCE_COLUMNS, [one.cells for one in self.importance]))
        parts += [f"label '{name}', on the rows where it is known\n{found}" for name, found in self.tasks.items()]
        return "\n\n".join(parts)


def evaluation(
    logits: Tensor,
    labels: Tensor,
    slices: dict[str, list[tuple[str, Tensor]]],
    shuffled: tuple[ColumnImportance, ...] = (),
    weights: Tensor | None = None,
    weight: str | None = None,
    names: Sequence[str] = (),
) -> Evaluation:
    """Returns the evaluation of ``logits`` ``(N,)`` against ``labels`` ``(N,)``.

    Args:
        logits: predictions; of several labels, ``(N, T)``.
        labels: 0 or 1, of the same shape; NaN where a label but the first is not known.
        slices: for each column, the slices: their value, and which rows ``(N,)`` belong to it. A slice whose rows all
            have the weight 0 is left out.
        shuffled: what was measured of the columns' importance.
        weights: weights ``(N,)`` of the rows; None if they count alike.
        weight: column of the weights.
        names: names of the labels, which one label does not need.

    Raises:
        ValueError: If all weights are 0.
    """
    if labels.dim() == 2:
        first = evaluation(logits[:, 0], labels[:, 0], slices, shuffled, weights, weight)
        return replace(first, tasks=_of_tasks(logits, labels, slices, weights, weight, names))
    metrics = click_metrics(logits, labels, weights)
    found = {
        name: tuple(
            _slice(value, logits[rows], labels[rows], None if weights is None else weights[rows])
            for value, rows in parts
            if weights is None or bool(weights[rows].any())
        )
        for name, parts in slices.items()
    }
    return Evaluation(
        **asdict(metrics),
        auc_interval=_interval(metrics, labels, weights),
        calibration=calibration(logits, labels, weights),
        roc=roc_curve(logits, labels, weights),
        slices=found,
        importance=shuffled,
        weight=weight,
    )


def _of_tasks(
    logits: Tensor,
    labels: Tensor,
    slices: dict[str, list[tuple[str, Tensor]]],
    weights: Tensor | None,
    weight: str | None,
    names: Sequence[str],
) -> dict[str, Evaluation]:
    """Returns the evaluation of each label but the first on the rows whose label is known, if there are some."""
    found = {}
    for place, name in enumerate(names):
        of_label = known_rows(logits, labels, weights, place)
        known = of_label[3]
        if not place or not bool(known.any()):
            continue
        parts = {
            column: [(value, rows[known]) for value, rows in divided if bool(rows[known].any())]
            for column, divided in slices.items()
        }
        found[name] = evaluation(of_label[0], of_label[1], parts, (), of_label[2], weight)
    return found


def sliced_feature(schema: Schema, column: str) -> DenseFeature | SparseFeature:
    """Returns the feature by whose values rows are divided.

    Raises:
        ValueError: If there is no such feature, or it has several values a row.
    """
    every: list[DenseFeature | SparseFeature] = [*schema.dense, *schema.sparse]
    features = {feature.name: feature for feature in every}
    if column not in features:
        raise ValueError(f"slice: expected a feature of the data, found '{column}'; it has {', '.join(features)}")
    feature = features[column]
    if isinstance(feature, SparseFeature) and feature.multi_hot:
        raise ValueError(f"slice: '{column}' has several values a row; expected a feature with one")
    return feature


def slices_of(folder: Path, files: ClickFiles, schema: Schema, column: str) -> list[tuple[str, Tensor]]:
    """Divides the rows of a split by the values of a feature; numbers into five equal parts.

    Args:
        folder: prepared data set.
        files: the split.
        schema: schema of the data set.
        column: name of a feature.

    Raises:
        ValueError: If there is no such feature, or it has several values a row.
    """
    feature = sliced_feature(schema, column)
    files.verify()
    read = values.plain(pa.concat_tables([pq.read_table(file, columns=[column]) for file in files.files])[column])
    found = read.to_numpy(zero_copy_only=False)
    if isinstance(feature, DenseFeature):
        return _ranges(feature, found)
    ids, counts = np.unique(found, return_counts=True)
    common = ids[np.argsort(-counts, kind="stable")][:_VALUES]
    words = _words(folder, feature)
    slices = [(_word(feature, words, int(number)), torch.from_numpy(found == number)) for number in common]
    if len(ids) > len(common):
        rest = torch.from_numpy(~np.isin(found, common))
        slices.append((f"{len(ids) - len(common):,} other values", rest))
    return slices


def _slice(value: str, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Slice:
    clicks, shares = int(labels.sum()), weight_shares(weights)
    metrics = click_metrics(logits, labels, weights)
    few = SplitCounts(labels.numel(), clicks).rarer < FEWEST
    probabilities, rate = logits.double().sigmoid(), clicks / labels.numel()
    if shares is not None:
        probabilities, rate = probabilities * shares, float((labels * shares).mean())
    return Slice(value, metrics, rate, float(probabilities.mean()), _interval(metrics, labels, weights), few)


def _interval(metrics: ClickMetrics, labels: Tensor, weights: Tensor | None) -> float | None:
    if metrics.auc is None:
        return None
    if weights is None:
        return confidence(metrics.auc, int(labels.sum()), labels.numel())
    clicks, others = (_effective(weights[labels == label].double()) for label in (1, 0))
    return confidence(metrics.auc, clicks, clicks + others)


def _effective(weights: Tensor) -> float:
    """Returns how many rows of equal weight say as much as these (Kish, 1965)."""
    return float(weights.sum() ** 2 / weights.square().sum())


def _ranges(feature: DenseFeature, found: np.ndarray) -> list[tuple[str, Tensor]]:
    edges = np.unique(np.quantile(found, np.linspace(0, 1, _PARTS + 1)[1:-1], method="lower"))
    part = np.searchsorted(edges, found, side="left")
    slices = []
    for number in np.unique(part):
        rows = part == number
        low, high = (_raw(feature, float(edge)) for edge in (found[rows].min(), found[rows].max()))
        slices.append((f"{low:.6g} to {high:.6g}" if low != high else f"{low:.6g}", torch.from_numpy(rows)))
    return slices


def _raw(feature: DenseFeature, prepared: float) -> float:
    """Returns the number of the source file that a prepared number stands for."""
    if feature.transform == "log1p":
        return float(np.expm1(prepared))
    if feature.transform == "standardize" and feature.mean is not None and feature.deviation is not None:
        return prepared * feature.deviation + feature.mean
    return prepared


def _words(folder: Path, feature: SparseFeature) -> list[str] | None:
    file = folder / DICTIONARIES / f"{safe_name(feature.table)}.parquet"
    if feature.ids != "dictionary" or feature.cross or not file.exists():
        return None
    return [str(word) for word in read_dictionary(file).to_pylist()]


def _word(feature: SparseFeature, words: list[str] | None, number: int) -> str:
    if number == 0:
        return "(missing)"
    if feature.ids in MOMENT_IDS:
        return name_of(feature.ids, number)
    if words is None:
        return f"id {number}"
    return words[number - FIRST_WORD] if number >= FIRST_WORD else "(unknown)"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    align = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, "simple", colalign=align, disable_numparse=True)
