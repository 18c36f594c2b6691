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
            of these. Columns that other features are computed from are never among them, and one categorical column
            is always left.
    """
    needed = {name for feature in schema.sparse for name in feature.cross}
    ranked = sorted(importances, key=lambda one: one.log_loss)
    harmless = [
        one.column
        for one in ranked
        if one.column not in needed and one.log_loss < max(_ERRORS * one.error, _LEAST * log_loss)
    ]
    chosen = harmless[: int(_SHARE * len(ranked))]
    if set(schema.feature_names) <= set(chosen):
        chosen = [name for name in chosen if name != schema.feature_names[0]]
    half = chosen[: (len(chosen) + 1) // 2]
    return [tuple(names) for names in dict.fromkeys(map(tuple, (chosen, half))) if names]
