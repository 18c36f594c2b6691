"""The picture of an incremental training: how well each day's rows were predicted before they were trained on."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

_METRICS = {"normalized_entropy": "normalized entropy", "log_loss": "log loss", "auc": "AUC"}


def draw_days(days: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    """Draws the metrics of each day and returns the picture as a PNG file.

    Args:
        days: names and metrics of the days, in order; a metric that is None is left out.
    """
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    places = range(len(days))
    for axis, (name, label) in zip(figure.subplots(1, len(_METRICS)), _METRICS.items(), strict=True):
        known = [(place, metrics[name]) for place, (_, metrics) in enumerate(days) if metrics[name] is not None]
        axis.plot([place for place, _ in known], [value for _, value in known], marker="o", color="tab:blue")
        axis.set_xticks(places, [day for day, _ in days], rotation=30, ha="right")
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    figure.suptitle("every day's rows, predicted by the model of the day before")
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
