"""The evaluation of a model as one page that needs no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import pairwise
from typing import Any

from nasrec_torchrec import page_style
from nasrec_torchrec.page_style import bars, calibration_curve, roc_drawing, table, warning_list
from nasrec_torchrec.training.column_importance import IMPORTANCE_COLUMNS, ColumnImportance
from nasrec_torchrec.training.evaluation import DECILE_COLUMNS, FEW_NOTE, SLICE_COLUMNS, Evaluation, Slice

# Bars of a picture; a table below it has all columns.
_BARS = 20
_WORDS = """<details><summary>Words and abbreviations</summary><dl>
<dt>click</dt><dd>a row whose label is 1, whatever that means in this data set</dd>
<dt>AUC</dt><dd>area under the ROC curve: how often a click is ranked above a row that is none; .5 is guessing</dd>
<dt>log loss</dt><dd>mean negative logarithm of the probability that was given to what happened; lower is better</dd>
<dt>normalized entropy</dt><dd>log loss divided by that of always predicting the click rate; below 1 is better than
that</dd>
<dt>calibration error</dt><dd>mean distance of the mean prediction from the click rate, over tenths of the rows by their
prediction (expected calibration error, ECE)</dd>
<dt>±</dt><dd>behind an AUC, half of its 95 % interval over rows; behind an importance, the standard deviation over
repeats</dd>
</dl></details>"""


def page(found: Evaluation, model: str, data: str, split: str, warnings: Sequence[str] = ()) -> str:
    """Returns an evaluation as HTML.

    Args:
        found: the evaluation.
        model: where the model is.
        data: where the data set is.
        split: split that was measured.
        warnings: what went wrong with the training of the model and the preparation of the data.
    """
    curve = [asdict(part) for part in found.calibration.deciles]
    text = f"expected calibration error {found.calibration.expected_error:.4f}"
    sections = [
        f"<h1>How good the model is</h1><div class='verdict'>{_verdict(found)}</div>",
        f"<p>Model <code>{escape(model)}</code> on the {escape(split)} split of <code>{escape(data)}</code>.</p>",
        warning_list(warnings),
        _WORDS,
        table("Metrics of all rows", ["metric", "value"], found.summary),
        "<h2>Calibration</h2><p>Each point is a tenth of the rows; on the dashed line, probabilities are what is "
        "observed.</p>",
        calibration_curve(curve, f"Click rate over mean prediction by decile: {text}"),
        table("Calibration by decile of the prediction", DECILE_COLUMNS, found.deciles),
    ]
    sections += roc_sections(found.roc, found.auc, split)
    sections += slice_sections(found.slices, split)
    sections += importance_sections(found.importance, split)
    for name, of_label in found.tasks.items():
        sections += _label_sections(name, of_label, split)
    return page_style.page("nasrec evaluate", "\n".join(sections))


def _label_sections(name: str, found: Evaluation, split: str) -> list[str]:
    """Returns the metrics of a further label as a part of the page."""
    sections = [
        f"<h2>Label {escape(name)}</h2><p>On the rows of the {escape(split)} split where it is known; a click is a row "
        "where it is 1.</p>",
        table(f"Metrics of label {name}", ["metric", "value"], found.summary),
        table(f"Calibration of label {name} by decile of the prediction", DECILE_COLUMNS, found.deciles),
    ]
    for column, slices in found.slices.items():
        caption = f"Metrics of label {name} by {column}, on the {split} split"
        sections.append(table(caption, [column, *SLICE_COLUMNS], [part.cells for part in slices]))
    return sections


def roc_sections(points: Sequence[Sequence[float]], auc: float | None, split: str) -> list[str]:
    """Returns the ROC curve as a part of a page; nothing if there is none."""
    if not points or auc is None:
        return []
    found = ", ".join(
        f"{_share_of_clicks(points, share):.0%} of the clicks in {share:.0%}" for share in (0.1, 0.3, 0.5)
    )
    return [
        f"<h2>ROC curve</h2><p>On the {escape(split)} split: which share of the clicks is above a threshold, over "
        "the share of the other rows that are above it too. Guessing would follow the dashed line; the area below the "
        f"curve is the AUC, {auc:.4f}.</p>",
        roc_drawing(points, f"ROC curve with an area of {auc:.4f}: {found} of the other rows"),
    ]


def _share_of_clicks(points: Sequence[Sequence[float]], others: float) -> float:
    """Returns the share of the clicks at a share of the other rows, between two points on a line."""
    for (x, y), (right, above) in pairwise(points):
        if right >= others:
            return y + (above - y) * (others - x) / (right - x) if right > x else above
    return 1.0


def slice_sections(found: Mapping[str, Sequence[Slice]], split: str) -> list[str]:
    """Returns the metrics of slices of the rows as a part of a page; nothing if none were asked for."""
    sections = []
    for column, slices in found.items():
        sections.append(f"<h2>By {escape(column)}</h2>")
        caption = f"Metrics by {column}, on the {split} split"
        sections.append(table(caption, [column, *SLICE_COLUMNS], [part.cells for part in slices]))
        sections += [f"<p>{escape(FEW_NOTE)}.</p>"] * any(part.few for part in slices)
    return sections


def importance_sections(found: Sequence[ColumnImportance], split: str) -> list[str]:
    """Returns the importance of the columns as a part of a page; nothing if it was not measured."""
    if not found:
        return []
    first, more = found[:_BARS], len(found) - _BARS
    text = ", ".join(f"{one.column} {one.log_loss:.5f}" for one in first)
    return [
        "<h2>Importance of the columns</h2><p>By how much the log loss rises on the "
        f"{escape(split)} split when the values of a column are shuffled among the rows, with all that is computed of "
        "them. Columns that say the same cover for each other, and each then looks less important than it is.</p>",
        bars([(one.column, one.log_loss, one.deviation) for one in first], f"Rise of the log loss by column: {text}"),
        f"<p>The {_BARS} most important columns are drawn, {more} more are in the table.</p>" if more > 0 else "",
        table("Importance by permutation", IMPORTANCE_COLUMNS, [one.cells for one in found]),
    ]


def _verdict(found: Evaluation) -> str:
    if found.auc is None or found.normalized_entropy is None or found.auc_interval is None:
        return "<p>All rows have the same label: little can be said.</p>"
    better = "better" if found.normalized_entropy < 1 else "worse"
    ratio = found.calibration.ratio
    words: list[Any] = [
        f"AUC {found.auc:.4f} ± {found.auc_interval:.4f}: a click is ranked above another row in {found.auc:.1%} of "
        "all pairs.",
        f"Its probabilities are {better} than always predicting the click rate (normalized entropy "
        f"{found.normalized_entropy:.4f}).",
        f"It predicts {ratio:.3f} times as many clicks as there are." if ratio is not None else "",
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in words if line)
