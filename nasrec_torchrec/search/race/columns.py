"""Which of the data's own columns models may do without: those that a trained model gains nothing from."""

from collections.abc import Sequence

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.training.column_importance import ColumnImportance

# Standard errors, and share of the model's log loss, up to which the importance of a column may be chance.
_ERRORS, _LEAST = 2.0, 5e-4
# Largest share of the columns that is dropped.
_SHARE = 0.5


def droppable(importances: Sequence[ColumnImportance], schema: Schema, log_loss: float) -> list[tuple[str, ...]]:
    """Returns sets of columns to drop, in the order in which they should be tried.

    Args:
        importances: importance of every column to a trained model.
        schema: the data's own features.
        log_loss: log loss of the model on the same rows.

    Returns:
        list: All columns whose importance chance may explain, at most half of all columns, and the less important half
            of these. A column is dropped together with the features that are computed from it, if chance may explain
            the importance of these too. One categorical column is always left.
    """
    ranked = sorted(importances, key=lambda one: one.log_loss)
    harmless = [one.column for one in ranked if one.log_loss < max(_ERRORS * one.error, _LEAST * log_loss)]
    most = int(_SHARE * len(ranked))
    chosen = _together(harmless, schema, most)
    half = _together(chosen, schema, (len(chosen) + 1) // 2)
    return [names for names in dict.fromkeys((chosen, half)) if names]


def _together(names: Sequence[str], schema: Schema, most: int) -> tuple[str, ...]:
    """Returns the first of the names, each with the features that are computed from it, and at most so many."""
    chosen: list[str] = []
    for name in names:
        computed = [feature.name for feature in schema.sparse if name in feature.cross]
        new = [one for one in (name, *computed) if one not in chosen]
        left = set(schema.feature_names) - {*chosen, *new}
        if set(computed) <= set(names) and len(chosen) + len(new) <= most and left:
            chosen += new
    return tuple(chosen)
