"""The features of a data set: what a column means, before and after preparation."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from nasrec_torchrec.datasets.names import check_column, check_name
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.table_widths import check_width

Transform = Literal["none", "log1p", "standardize"]
Pooling = Literal["sum", "mean", "position", "attention"]
IdRule = Literal["id", "modulo", "hex", "hash", "dictionary", "dynamic", "history", "buckets", "hour", "weekday"]
# Prepared ids below this are reserved: 0 is a missing value, 1 a value that is not in the dictionary.
UNKNOWN, FIRST_WORD = 1, 2
# A history is one of 12 x 12 buckets of two counts; 0 is a missing value.
HISTORY_LEVELS = 12
HISTORY_IDS = 1 + HISTORY_LEVELS**2
# Rows of a table whose ids are dynamic.
_LEAST_DYNAMIC = 16
# Ids of the hour and the weekday of a moment: 0 where it is missing, and one for each.
MOMENT_IDS = {"hour": 25, "weekday": 8}
# Ids of a dense feature in buckets, unless the schema says otherwise: up to 64 edges, and the 0 that no number has.
BUCKET_IDS = 66


@dataclass(frozen=True)
class DenseFeature:
    """A number per row.

    Args:
        name: name of the raw column, the prepared column and the feature.
        transform: transformation of the number: ``none``; ``log1p``, which is log(max(x, 0) + 1); or ``standardize``,
            which is (x - mean) / deviation, both measured on the training split. A missing number becomes 0 after any
            of them.
        mean: mean for ``standardize``, which preparation measures.
        deviation: standard deviation for ``standardize``, which preparation measures; never 0.
        missing: fraction of the training rows without a value, which preparation measures.
        age_of: name of the raw column that holds the moment from which on the number counts the days until ``at``, for
            a number that is computed from two moments.
        at: name of the raw column with the moment of the row itself.
        column: name of the raw column, where it is another one than that of the feature: one with a dot, for example.
    """

    name: str
    transform: Transform = "none"
    mean: float | None = None
    deviation: float | None = None
    missing: float | None = None
    age_of: str = ""
    at: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        check_column(self.name, "dense feature")
        if self.column:
            check_name(self.column, f"{self.name}: column")
        if bool(self.age_of) != bool(self.at):
            raise ValueError(
                f"{self.name}: age_of and at: expected both columns or none, found {self.age_of!r} and {self.at!r}"
            )
        if self.age_of and self.column:
            raise ValueError(f"{self.name}: column: a number of days has none, found {self.column!r}")
        for column in filter(None, (self.age_of, self.at)):
            check_name(column, f"{self.name}: age_of and at")
        _check_choice(self.transform, Transform, f"{self.name}: transform")
        for what in ("mean", "deviation"):
            value = getattr(self, what)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ValueError(f"{self.name}: {what}: expected a finite number, found {value!r}")
        if self.deviation is not None and self.deviation <= 0:
            raise ValueError(f"{self.name}: deviation: expected a positive number, found {self.deviation!r}")
        _check_share(self.missing, f"{self.name}: missing")

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """The raw columns that it is read from."""
        return (self.age_of, self.at) if self.age_of else (self.column or self.name,)


@dataclass(frozen=True)
class SparseFeature:
    """A categorical feature. Prepared ids are 0..num_embeddings-1, or 0..2**62-1 if they are dynamic; 0 means missing.

    Args:
        name: name of the raw column, the prepared column and the feature.
        num_embeddings: number of rows of its table. With a dictionary it may be left out, since preparation counts the
            words.
        ids: how a raw value becomes an id. ``id`` uses the value itself. ``modulo`` computes
            value % (num_embeddings - 1) + 1 of an integer, where -1 counts as missing; ``hex`` does the same for
            hexadecimal text and ``hash`` for a hash of the text. ``dictionary`` numbers the values of the training
            split from 2, the most frequent first, and maps all others to 1. ``dynamic`` keeps a 62-bit hash of the
            text; training gives rows of the table to the values that it sees, and takes them from those that it sees
            less, see :mod:`nasrec_torchrec.modules.dynamic_ids`. ``history``, only for a cross, is how often
            the combination was seen with and without a click, see :mod:`nasrec_torchrec.datasets.history`.
            ``buckets`` is the range in which a dense feature's number lies, see
            :mod:`nasrec_torchrec.datasets.buckets`. ``hour`` and ``weekday`` are those of the moment in the raw column
            ``of``, see :mod:`nasrec_torchrec.datasets.moments`.
        min_count: smallest number of occurrences in the training split for a value to enter the dictionary.
        multi_hot: whether a row holds a list of values instead of one.
        separator: text between the values of a list in raw text.
        weighted: whether a column ``<name>_weights`` holds a number for each value.
        pooling: how the embeddings of a row become one. ``sum`` and ``mean`` need no order. ``position`` adds them up,
            each times a weight of its position that the model learns. ``attention`` weighs each by how it fits the
            embedding of the feature ``target``, which DIN does (arXiv 1706.06978).
        max_length: of a list in order, how many values are kept: those from its beginning. Unset, all are.
        target: of ``attention``, the name of the feature that the list is compared with, such as the item that a row
            is about.
        table: name of the embedding table, by default ``t_<name>``. Features that name the same table share it and its
            dictionary.
        values: how ``hash``, ``dictionary`` and ``dynamic`` read a value. ``text`` uses a text as it is; ``integer``
            reads `` 5``, ``+5`` and ``5.0`` as 5, and rejects what is not an integer.
        cross: names of two or more other features of the schema (one suffices for a ``history``). Such a feature has no
            raw column; its value is the combination of their prepared ids, which ``ids`` (``hash``, ``dictionary`` or
            ``history``) maps to an id like any other text. See :mod:`nasrec_torchrec.datasets.crosses`. For
            ``buckets``, the name of a dense feature.
        of: name of the raw column that holds the moment of an ``hour`` or a ``weekday``.
        column: name of the raw column, where it is another one than that of the feature: one with a dot, for example.
        edges: prepared numbers at which a new bucket begins, in increasing order; preparation measures them.
        embedding_dim: width of its table, by default the schema's. Embeddings of another width than the schema's are
            projected to it.
        missing: fraction of the training rows without a value, which preparation measures.
        unknown: fraction of the values in the training rows that are not in the dictionary, which preparation measures.
    """

    name: str
    num_embeddings: int | None = None
    ids: IdRule = "id"
    min_count: int = 1
    multi_hot: bool = False
    separator: str = "|"
    weighted: bool = False
    pooling: Pooling = "sum"
    table: str = ""
    values: Literal["text", "integer"] = "text"
    cross: tuple[str, ...] = ()
    of: str = ""
    column: str = ""
    edges: tuple[float, ...] = ()
    embedding_dim: int | None = None
    max_length: int | None = None
    target: str = ""
    missing: float | None = None
    unknown: float | None = None

    def __post_init__(self) -> None:
        check_column(self.name, "sparse feature")
        if self.column:
            check_name(self.column, f"{self.name}: column")
            if self.cross or self.of:
                raise ValueError(f"{self.name}: column: a feature that is computed has none, found {self.column!r}")
        _check_choice(self.ids, IdRule, f"{self.name}: ids")
        _check_choice(self.pooling, Pooling, f"{self.name}: pooling")
        self._check_sequence()
        if not self.table:
            object.__setattr__(self, "table", f"t_{self.name}")
        check_name(self.table, f"{self.name}: table")
        _check_choice(self.values, Literal["text", "integer"], f"{self.name}: values")
        _check_share(self.missing, f"{self.name}: missing")
        _check_share(self.unknown, f"{self.name}: unknown")
        least = {"id": 1, "dictionary": FIRST_WORD}.get(self.ids, 2)
        if self.ids == "history" and self.num_embeddings is None:
            object.__setattr__(self, "num_embeddings", HISTORY_IDS)
        if self.ids == "buckets" and self.num_embeddings is None:
            object.__setattr__(self, "num_embeddings", BUCKET_IDS)
        if self.ids in MOMENT_IDS and self.num_embeddings is None:
            object.__setattr__(self, "num_embeddings", MOMENT_IDS[self.ids])
        rows = self.num_embeddings
        self._check_moment()
        if self.ids == "history" and rows != HISTORY_IDS:
            raise ValueError(f"{self.name}: num_embeddings: a history has {HISTORY_IDS} ids, found {rows!r}")
        if rows is None and self.ids != "dictionary":
            raise ValueError(f"{self.name}: num_embeddings: only a dictionary can do without")
        if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or not least <= rows < 2**63):
            raise ValueError(f"{self.name}: num_embeddings: expected an integer, {least} or more, found {rows!r}")
        if self.ids == "dynamic" and (self.num_embeddings or 0) < _LEAST_DYNAMIC:
            raise ValueError(
                f"{self.name}: num_embeddings: dynamic ids need {_LEAST_DYNAMIC} rows or more, found {rows!r}"
            )
        if self.embedding_dim is not None:
            check_width(self.embedding_dim, f"{self.name}: embedding_dim")
        if not isinstance(self.min_count, int) or self.min_count < 1:
            raise ValueError(f"{self.name}: min_count: expected a positive integer, found {self.min_count!r}")
        for flag in ("multi_hot", "weighted"):
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{self.name}: {flag}: expected true or false, found {getattr(self, flag)!r}")
        if not isinstance(self.separator, str) or not self.separator:
            raise ValueError(f"{self.name}: separator: expected some text, found {self.separator!r}")
        if self.weighted and not self.multi_hot:
            raise ValueError(f"{self.name}: weighted: only a multi_hot feature can be weighted")
        if not isinstance(self.cross, (list, tuple)):
            raise ValueError(f"{self.name}: cross: expected a list of names of features, found {self.cross!r}")
        object.__setattr__(self, "cross", tuple(self.cross))
        self._check_edges()
        if self.ids == "buckets" and len(self.cross) != 1:
            raise ValueError(f"{self.name}: cross: buckets are those of one dense feature, found {list(self.cross)}")
        least_crossed = 1 if self.ids in ("history", "buckets") else 2
        if (self.cross or self.ids == "history") and (
            len(self.cross) < least_crossed or len(set(self.cross)) != len(self.cross)
        ):
            raise ValueError(
                f"{self.name}: cross: expected {'one' if least_crossed == 1 else 'two'} or more different features, "
                f"found {list(self.cross)}"
            )
        one_text = not self.multi_hot and self.values == "text"
        if self.cross and (self.ids not in ("hash", "dictionary", "history", "buckets") or not one_text):
            raise ValueError(
                f"{self.name}: cross: expected ids hash, dictionary, history or buckets and one value a row, "
                f"found ids {self.ids}, multi_hot {self.multi_hot}, values {self.values}"
            )

    def _check_moment(self) -> None:
        ids = MOMENT_IDS.get(self.ids)
        if (ids is not None) != bool(self.of):
            raise ValueError(
                f"{self.name}: of: expected the column with the moment of an hour or a weekday, and none otherwise; "
                f"found {self.of!r} for ids {self.ids}"
            )
        if ids is None:
            return
        check_name(self.of, f"{self.name}: of")
        if self.num_embeddings != ids or self.multi_hot or self.cross:
            raise ValueError(
                f"{self.name}: ids {self.ids}: expected {ids} ids, one a row and no cross; found num_embeddings "
                f"{self.num_embeddings!r}, multi_hot {self.multi_hot}, cross {list(self.cross)}"
            )

    def _check_sequence(self) -> None:
        longest, ordered = self.max_length, self.pooling in ("position", "attention")
        if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
            raise ValueError(f"{self.name}: max_length: expected a positive integer, found {longest!r}")
        if not self.multi_hot and (ordered or longest is not None):
            what = f"pooling {self.pooling}" if ordered else "max_length"
            raise ValueError(f"{self.name}: {what}: is for lists, which multi_hot features have")
        if self.pooling == "position" and longest is None:
            raise ValueError(f"{self.name}: pooling position: expected max_length, the number of weights, found none")
        if ordered and (self.weighted or self.ids == "dynamic"):
            found = "weighted" if self.weighted else "ids dynamic"
            raise ValueError(
                f"{self.name}: pooling {self.pooling}: expected unweighted ids that are known, found {found}"
            )
        if (self.pooling == "attention") != bool(self.target):
            raise ValueError(
                f"{self.name}: target: expected the name of a feature with pooling attention, and none otherwise; "
                f"found {self.target!r} with pooling {self.pooling}"
            )

    def _check_edges(self) -> None:
        if not isinstance(self.edges, (list, tuple)) or not all(
            isinstance(edge, (int, float)) and math.isfinite(edge) for edge in self.edges
        ):
            raise ValueError(f"{self.name}: edges: expected a list of finite numbers, found {self.edges!r}")
        edges = tuple(map(float, self.edges))
        object.__setattr__(self, "edges", edges)
        if any(left >= right for left, right in pairwise(edges)):
            raise ValueError(f"{self.name}: edges: expected increasing numbers, found {list(edges)}")
        if edges and (self.ids != "buckets" or len(edges) + 2 > (self.num_embeddings or 0)):
            raise ValueError(
                f"{self.name}: edges: only buckets have them, at most two fewer than num_embeddings; found "
                f"{len(edges)} for ids {self.ids} and num_embeddings {self.num_embeddings}"
            )

    @property
    def id_limit(self) -> int:
        """The prepared ids are less than this; it is the number of rows unless the ids are dynamic."""
        assert self.num_embeddings is not None
        return ID_SPACE if self.ids == "dynamic" else self.num_embeddings

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """The raw columns that it is read from; a cross and buckets are computed from other features."""
        if self.cross:
            return ()
        weights = (f"{self.column or self.name}_weights",) if self.weighted else ()
        return (self.of or self.column or self.name, *weights)

    @property
    def weights_column(self) -> str | None:
        return f"{self.name}_weights" if self.weighted else None


def _check_share(value: Any, what: str) -> None:
    if value is not None and (not isinstance(value, (int, float)) or not 0 <= value <= 1):
        raise ValueError(f"{what}: expected a share in 0..1, found {value!r}")


def _check_choice(value: Any, kind: Any, what: str) -> None:
    if not isinstance(value, str) or value not in get_args(kind):
        raise ValueError(f"{what}: expected one of {list(get_args(kind))}, found {value!r}")
