"""Metrics of a model that predicts several labels: those of the first, and of each further one where it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics


@dataclass(frozen=True)
class LabelsMetrics(ClickMetrics):
    """Metrics of the first label, by which a model is judged, and of the others.

    Args:
        tasks: metrics of each further label on the rows whose label is known, by its name. Without such a row, the log
            loss is infinite and all else is undefined.
    """

    tasks: dict[str, ClickMetrics] = field(default_factory=dict, kw_only=True)


def known_rows(
    logits: Tensor, labels: Tensor, weights: Tensor | None, label: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Returns what is known of one of several labels.

    Args:
        logits: logits ``(N, T)``, or ``(N,)`` for one label.
        labels: labels of the same shape; NaN where one is not known.
        weights: weights ``(N,)`` of the rows; None if they count alike.
        label: which of the labels.

    Returns:
        Logits, labels and weights ``(M,)`` of the rows whose label is known, and which rows ``(N,)`` these are. Where
        none of them has a weight, there are none.
    """
    if labels.dim() == 1:
        logits, labels = logits.view(-1, 1), labels.view(-1, 1)
    known = ~labels[:, label].isnan()
    if weights is not None and not bool((weights.flatten()[known] > 0).any()):
        known = torch.zeros_like(known)
    of_rows = None if weights is None else weights.flatten()[known]
    return logits[known, label], labels[known, label], of_rows, known


def labels_metrics(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, names: Sequence[str] = ()
) -> ClickMetrics:
    """Computes exact metrics of one label, or of several.

    Args:
        logits: logits ``(N,)``, or ``(N, T)`` for several labels.
        labels: labels of the same shape, 0 and 1; NaN where a label but the first is not known.
        weights: weights ``(N,)`` of the rows, 0 or more; None if they count alike.
        names: names of the labels, which one label does not need.

    Raises:
        ValueError: If all weights are 0.
    """
    if labels.dim() == 1:
        return click_metrics(logits, labels, weights)
    first = click_metrics(logits[:, 0], labels[:, 0], weights)
    found = {
        name: click_metrics(*known_rows(logits, labels, weights, place)[:3])
        for place, name in enumerate(names)
        if place
    }
    return LabelsMetrics(**vars(first), tasks=found)


def restored_metrics(document: Mapping[str, Any]) -> ClickMetrics:
    """Returns metrics from their JSON values, which may be among others; older versions wrote fewer of them."""
    known = {one.name: document[one.name] for one in fields(ClickMetrics) if one.name in document}
    if "tasks" not in document:
        return ClickMetrics(**known)
    return LabelsMetrics(**known, tasks={name: restored_metrics(one) for name, one in document["tasks"].items()})
