"""Loss of quality without an error: missing and unknown values by feature, compared with the training rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema

# Stands for an id that its table does not have, until it is looked up as the missing one.
NO_ROW = -1
# What is said aloud: a share this much above that of the training rows, of at least so many values; and numbers whose
# mean lies so many standard deviations away.
MARGIN, FEWEST, SHIFT = 0.1, 10, 3.0


@dataclass(frozen=True)
class Counts:
    """The counts of one feature.

    Args:
        rows: number of rows.
        missing: number of rows without a value.
        values: number of values in the rows that have one.
        unknown: number of values that are not in the dictionary or the table.
        total: sum of the standardized numbers, for features that are standardized.
    """

    rows: int = 0
    missing: int = 0
    values: int = 0
    unknown: int = 0
    total: float = 0.0

    @property
    def missing_share(self) -> float:
        return self.missing / max(1, self.rows)

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.values)

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(mine + others for mine, others in zip(_numbers(self), _numbers(other), strict=True)))


class Quality:
    """The counts of every feature of a schema, over all tables that are added.

    Args:
        schema: schema of a prepared data set.
        counts: initial counts by the names of the features.
    """

    def __init__(self, schema: Schema, counts: Mapping[str, Counts] | None = None) -> None:
        self.schema = schema
        names = [*(feature.name for feature in schema.dense), *schema.feature_names]
        self.counts = {name: Counts() for name in names} | dict(counts or {})

    def add(self, table: pa.Table) -> None:
        """Adds prepared rows, in which missing numbers may still be NaN and ids may be outside their tables."""
        for dense in self.schema.dense:
            found = table.column(dense.name).to_numpy()
            missing = int(np.count_nonzero(np.isnan(found)))
            total = float(np.nansum(found, dtype=np.float64)) if dense.transform == "standardize" else 0.0
            self._plus(dense.name, Counts(len(found), missing, len(found) - missing, 0, total))
        for sparse in self.schema.sparse:
            column = values.plain(table.column(sparse.name))
            if values.is_list(column.type):
                missing = int(np.count_nonzero(values.lengths(column) == 0))
                ids = column.flatten().to_numpy(zero_copy_only=False)
                given = len(ids)
            else:
                ids = column.to_numpy(zero_copy_only=False)
                missing = int(np.count_nonzero(ids == 0))
                given = len(ids) - missing
            unknown = np.count_nonzero((ids < 0) | (ids >= sparse.id_limit))
            if sparse.ids == "dictionary":
                unknown += np.count_nonzero(ids == FIRST_WORD - 1)
            self._plus(sparse.name, Counts(len(column), missing, given, int(unknown)))

    def measured(self, schema: Schema) -> Schema:
        """Returns the schema with the counted fractions of missing and unknown values."""

        def shares(name: str, *fields: str) -> dict[str, float]:
            return {field: round(getattr(self.counts[name], f"{field}_share"), 6) for field in fields}

        return replace(
            schema,
            dense=tuple(replace(dense, **shares(dense.name, "missing")) for dense in schema.dense),  # type: ignore[arg-type]
            sparse=tuple(
                replace(sparse, **shares(sparse.name, "missing", "unknown"))  # type: ignore[arg-type]
                for sparse in schema.sparse
            ),
        )

    def warnings(self) -> list[str]:
        """Returns a sentence for each feature that is much worse than in the training rows, according to the schema."""
        found = []
        features: list[DenseFeature | SparseFeature] = [*self.schema.dense, *self.schema.sparse]
        for feature in features:
            counts = self.counts[feature.name]
            if counts.rows >= FEWEST and counts.missing_share > (feature.missing or 0.0) + MARGIN:
                found.append(
                    f"'{feature.name}': {counts.missing_share:.1%} of {counts.rows:,} rows have no value"
                    f"{_trained(feature.missing)}"
                )
        for dense in self.schema.dense:
            counts = self.counts[dense.name]
            mean = counts.total / max(1, counts.values)
            if dense.transform == "standardize" and counts.values >= FEWEST and abs(mean) > SHIFT:
                found.append(
                    f"'{dense.name}': the mean of {counts.values:,} values lies {abs(mean):.1f} standard deviations "
                    "from that of the training rows; is the unit the same?"
                )
        for sparse in self.schema.sparse:
            counts = self.counts[sparse.name]
            if counts.values >= FEWEST and counts.unknown_share > (sparse.unknown or 0.0) + MARGIN:
                where = "dictionary" if sparse.ids == "dictionary" else "table"
                found.append(
                    f"'{sparse.name}': {counts.unknown_share:.1%} of {counts.values:,} values are unknown, that is not "
                    f"in the {where}{_trained(sparse.unknown)}"
                )
        return found

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(counts) for name, counts in self.counts.items()}

    @classmethod
    def of(cls, schema: Schema, parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> "Quality":
        """Returns the sum of what several calls of :meth:`to_json` returned."""
        quality = cls(schema)
        for part in parts:
            for name, counts in part.items():
                quality._plus(name, Counts(**counts))
        return quality

    def _plus(self, name: str, counts: Counts) -> None:
        self.counts[name] = self.counts[name].plus(counts)


def useless_dictionaries(schema: Schema) -> list[str]:
    """Returns a sentence for each dictionary with so few words that its features say nothing."""
    found = []
    for features in schema.features_by_table().values():
        words = (features[0].num_embeddings or FIRST_WORD) - FIRST_WORD
        if features[0].ids == "dictionary" and words < 2:
            known = "no word" if not words else "one word"
            names = ", ".join(f"'{feature.name}'" for feature in features)
            found.append(
                f"{names}: the dictionary holds {known}, so that the model learns hardly more than whether there is a "
                "value; lower min_count, or leave the column out"
            )
    return found


def _numbers(counts: Counts) -> Sequence[Any]:
    return (counts.rows, counts.missing, counts.values, counts.unknown, counts.total)


def _trained(share: float | None) -> str:
    return "" if share is None else f"; in the training rows it was {share:.1%}"
