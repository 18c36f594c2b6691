"""What a sample says about each column: type, distinct and missing values, range, and how much it tells alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.local_forms import compact_dates, local_form, percentages

# Texts by which people and programs say that there is no value.
MISSING_MARKS = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "\\N", "?", "-", "--", ".")
SEPARATORS = ("|", ";", ",")
# From here on, neighbouring whole numbers are the same float64. What is that large names something and counts nothing.
_EXACT = 2.0**53
# Years from 2000 to 2050, in seconds; whole numbers in this range can be moments.
_EPOCH = (946_684_800, 2_524_608_000)
_UNITS = {1: "s", 1000: "ms", 10**6: "us", 10**9: "ns"}
_DATE = re.compile(r"\s*\d{4}-\d{2}-\d{2}")
_WHOLE = re.compile(r"\s*[+-]?\d+\s*$")
# Shares of the values that must be numbers, or moments, for the column to be one of numbers.
_NEARLY_ALL = 0.95
_BINS = 64
# Rows of each class below which nothing is said of how much a column tells alone.
_FEWEST = 20


@dataclass(frozen=True)
class Column:
    """What was seen of a column.

    Args:
        name: name of the column.
        kind: what its values are: ``number``, ``text``, ``time``, ``list``, ``true or false``, ``nothing``, or a type
            or form that cannot be read.
        rows: number of rows.
        missing: number of rows without a value, marks of missing values among them.
        marks: texts that stand for a missing value.
        distinct: number of distinct values; of the entries, for lists.
        singles: number of values that occur once.
        common: the most frequent values and their shares of the rows.
        odd: values among numbers that are none, and their share of the rows.
        minimum: smallest number, or moment in seconds since 1970.
        maximum: largest.
        mean: mean of the numbers.
        skew: third standardized moment of the numbers.
        high: the number that one in a hundred exceeds.
        whole: whether all numbers are whole.
        padded: whether numbers begin with a zero, as only codes do.
        rising: whether no value is smaller than the one before it.
        unit: unit of moments that are numbers: s, ms, us or ns.
        separator: text between the entries of a list.
        percentages: share of the known values that are percentages, such as ``23%``, where most are.
        remedy: how DuckDB reads numbers and dates of a form that is not read here.
        auc: AUC by which the column alone separates the labels of rows that it was not fitted to; None if not known.
    """

    name: str
    kind: str
    rows: int
    missing: int = 0
    marks: tuple[str, ...] = ()
    distinct: int = 0
    singles: int = 0
    common: tuple[tuple[str, float], ...] = ()
    odd: tuple[tuple[str, float], ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    skew: float = 0.0
    high: float = 0.0
    whole: bool = False
    padded: bool = False
    rising: bool = False
    unit: str = ""
    separator: str = ""
    percentages: float = 0.0
    remedy: str = ""
    auc: float | None = None

    @property
    def known(self) -> int:
        return self.rows - self.missing

    @property
    def missing_share(self) -> float:
        return self.missing / max(1, self.rows)


@dataclass
class _Words:
    """The distinct texts of a column, and how often each occurs."""

    words: list[str]
    counts: np.ndarray
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # -1 where missing


def profile(table: pa.Table, labels: np.ndarray | None = None) -> list[Column]:
    """Looks at every column of a sample.

    Args:
        table: plain columns, see :class:`~nasrec_torchrec.datasets.sampling.Sample`.
        labels: label ``(N,)`` of each row, 0 or 1, and -1 where it is not known; unset, no column is compared with it.
    """
    columns = zip(table.column_names, table.columns, strict=True)
    return [_column(name, values.plain(column), labels) for name, column in columns]


def alone(codes: np.ndarray, labels: np.ndarray) -> float | None:
    """Measures how well one column separates the labels: the AUC of click rates by value, learned on other rows.

    Args:
        codes: the value of each row as a number from 0; -1 where it is missing, which is a value like others.
        labels: label ``(N,)`` of each row, 0 or 1, and -1 where it is not known.

    Returns:
        The AUC, or None where there are too few rows of a label.
    """
    given = labels >= 0
    codes, labels = codes[given] + 1, labels[given]
    fitted = np.random.default_rng(0).random(len(labels)) < 0.5
    size = int(codes.max(initial=0)) + 1
    clicks = np.bincount(codes[fitted], labels[fitted], size)
    shown = np.bincount(codes[fitted], minlength=size)
    mean = labels[fitted].mean() if fitted.any() else 0.0
    scores, truth = ((clicks + mean) / (shown + 1))[codes[~fitted]], labels[~fitted]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if min(positives, negatives) < _FEWEST:
        return None
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    average = np.cumsum(counts) - (counts - 1) / 2
    return float((average[ranks][truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _column(name: str, column: pa.Array, labels: np.ndarray | None) -> Column:
    kind = column.type
    if values.is_list(kind):
        return _lists(name, column, "", labels)
    if pa.types.is_boolean(kind):
        return _texts(name, "true or false", column.cast(pa.string()), labels)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _moments(name, values.times(column, {}), column, labels)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if not pa.types.is_floating(kind) and _are_names(values.numbers(column, {})):
            return _texts(name, "text", values.text(column, {}), labels)
        refused: values.Rejects = {}
        numbers = values.numbers(column, refused)
        odd = tuple((str(column[row].as_py()), len(refused) / len(column)) for row in [*refused][:1])
        if form := compact_dates(np.unique(pc.drop_null(numbers).to_numpy(zero_copy_only=False))):
            return _texts(name, form.kind, values.text(column, {}), labels, remedy=form.remedy(name))
        return _numbers(name, column, labels, odd=odd)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(name, values.without_empty(column), labels)
    if pa.types.is_time(kind):
        return _texts(name, "text", values.text(column, {}), labels)
    return Column(name, str(kind), len(column), column.null_count)


def _words(column: pa.Array) -> _Words:
    encoded = column.dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    words = encoded.dictionary.to_pylist()
    return _Words(words, np.bincount(codes[codes >= 0], minlength=len(words)), codes)


def _text(name: str, column: pa.Array, labels: np.ndarray | None) -> Column:
    """A column of text, which may hold numbers or moments."""
    found = _words(column)
    if not found.words:
        return Column(name, "nothing", len(column), len(column))
    marks = tuple(word for word in found.words if word.strip() in MISSING_MARKS)
    others = _without(found, marks)
    total = max(1, int(others.counts.sum()))
    for read, build in ((values.numbers, _numbers), (values.times, _moments)):
        refused: values.Rejects = {}
        found_values = read(pa.array(others.words, pa.string()), refused)
        bad = [others.words[index] for index in refused]
        share = sum(int(others.counts[index]) for index in refused) / total
        if not others.words or share > 1 - _NEARLY_ALL:
            continue
        if build is _moments and not any(map(_DATE.match, others.words)):
            continue
        if build is _numbers and all(map(_WHOLE.match, others.words)) and _are_names(found_values):
            break
        # One or two words among numbers, again and again, say that there is none.
        repeated = bad if len(bad) <= 2 and share > 0.002 else []
        marks += tuple(repeated)
        odd = tuple((word, share) for word in bad[:3]) if not repeated else ()
        clean = _null(column, [*marks, *bad])
        shared = {"marks": marks, "odd": odd}
        if build is _numbers and (form := compact_dates(np.unique(pc.drop_null(found_values)))):
            return _texts(name, form.kind, clean, labels, marks, remedy=form.remedy(name))
        if build is _numbers:
            padded = any(re.match(r"\s*-?0\d", word) for word in others.words)
            return _numbers(name, clean, labels, padded=padded, **shared)  # type: ignore[arg-type]
        return _moments(name, values.times(clean, {}), clean, labels, **shared)  # type: ignore[arg-type]
    if form := local_form(others.words, others.counts):
        return _texts(name, form.kind, _null(column, marks), labels, marks, remedy=form.remedy(name))
    share, remedy = percentages(name, others.words, others.counts)
    if share:
        return _texts(name, "text", _null(column, marks), labels, marks, remedy, share)
    certain = tuple(word for word in marks if word.strip() not in ("NA", "None", "-", "--", "."))
    column = _null(column, certain)
    return _lists_or_texts(name, column, certain, labels)


def _lists_or_texts(name: str, column: pa.Array, marks: tuple[str, ...], labels: np.ndarray | None) -> Column:
    found = _words(column)
    for separator in SEPARATORS:
        several = np.array([separator in word for word in found.words], bool)
        if found.counts[several].sum() < 0.2 * max(1, found.counts.sum()):
            continue
        entries = {entry for word in found.words for entry in word.split(separator)}
        # Lists combine the same entries in many ways; in an address or a title they do not repeat.
        if len(entries) <= len(found.words) and not any(entry.startswith(" ") for entry in entries):
            lists = pc.split_pattern(column, separator)
            return _lists(name, lists, separator, labels, marks)
    return _texts(name, "text", column, labels, marks)


def _texts(
    name: str,
    kind: str,
    column: pa.Array,
    labels: np.ndarray | None,
    marks: tuple[str, ...] = (),
    remedy: str = "",
    percentages: float = 0.0,
) -> Column:
    found = _words(column)
    return Column(
        name,
        kind,
        len(column),
        column.null_count,
        marks,
        len(found.words),
        int(np.count_nonzero(found.counts == 1)),
        _common(found, len(column)),
        percentages=percentages,
        remedy=remedy,
        auc=None if labels is None else alone(found.codes, labels),
    )


def _lists(
    name: str, column: pa.Array, separator: str, labels: np.ndarray | None, marks: tuple[str, ...] = ()
) -> Column:
    refused: values.Rejects = {}
    try:
        entries = _words(values.text(values.plain(column.flatten()), refused))
    except ValueError:
        return Column(name, str(column.type), len(column), column.null_count)
    if refused and not entries.words:  # such as an embedding that somebody else has trained
        return Column(name, f"{column.type} with fractions", len(column), column.null_count)
    # The list as a whole stands for the column, for one entry alone says less.
    whole = pc.binary_join(column.cast(pa.list_(pa.string())), "|") if values.is_list(column.type) else column
    empty = int(np.count_nonzero(values.lengths(column) == 0))
    return Column(
        name,
        "list",
        len(column),
        empty,
        marks,
        len(entries.words),
        int(np.count_nonzero(entries.counts == 1)),
        _common(entries, max(1, int(entries.counts.sum()))),
        separator=separator,
        auc=None if labels is None else alone(_words(whole).codes, labels),
    )


def _numbers(
    name: str,
    column: pa.Array,
    labels: np.ndarray | None,
    marks: tuple[str, ...] = (),
    odd: tuple[tuple[str, float], ...] = (),
    padded: bool = False,
) -> Column:
    array = pc.fill_null(values.numbers(column, {}), float("nan")).to_numpy(zero_copy_only=False)
    known = array[~np.isnan(array)]
    if not len(known):
        return Column(name, "nothing", len(array), len(array), marks)
    distinct, counts = np.unique(known, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    whole = bool(np.all(np.floor(known) == known))
    mean, deviation = float(known.mean()), float(known.std())
    with np.errstate(all="ignore"):
        skew = float(np.mean(((known - mean) / deviation) ** 3)) if deviation > 0 else 0.0
    low, high = float(known.min()), float(known.max())
    unit = ""
    if whole:
        unit = next((unit for by, unit in _UNITS.items() if _EPOCH[0] * by <= low and high <= _EPOCH[1] * by), "")
    return Column(
        name,
        "number",
        len(array),
        len(array) - len(known),
        marks,
        len(distinct),
        int(np.count_nonzero(counts == 1)),
        tuple((f"{distinct[index]:.15g}", float(counts[index]) / len(array)) for index in order),
        odd,
        low,
        high,
        mean,
        skew if np.isfinite(skew) else 0.0,
        float(np.quantile(known, 0.99)),
        whole,
        padded,
        bool(np.all(np.diff(array) >= 0)),
        unit,
        auc=None if labels is None else alone(_binned(array, distinct), labels),
    )


def _are_names(numbers: pa.Array) -> bool:
    """Whether whole numbers are so large that they are names, such as 64-bit hashes, and no moments in nanoseconds."""
    array = pc.drop_null(numbers).to_numpy(zero_copy_only=False)
    low, high = float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))
    moments = any(_EPOCH[0] * by <= low and high <= _EPOCH[1] * by for by in _UNITS)
    return max(-low, high) >= _EXACT and not moments


def _moments(
    name: str,
    times: pa.Array,
    column: pa.Array,
    labels: np.ndarray | None,
    marks: tuple[str, ...] = (),
    odd: tuple[tuple[str, float], ...] = (),
) -> Column:
    array = pc.fill_null(times, float("nan")).to_numpy(zero_copy_only=False)
    known = array[~np.isnan(array)]
    if not len(known):
        return Column(name, "nothing", len(array), len(array), marks)
    distinct, counts = np.unique(known, return_counts=True)
    texts = _common(_words(values.text(column, {})), len(column))
    return Column(
        name,
        "time",
        len(array),
        len(array) - len(known),
        marks,
        len(distinct),
        int(np.count_nonzero(counts == 1)),
        texts,
        odd,
        float(known.min()),
        float(known.max()),
        rising=bool(np.all(np.diff(array) >= 0)),
        auc=None if labels is None else alone(_binned(array, distinct), labels),
    )


def _binned(array: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Numbers by quantile, or each distinct one where there are few; -1 where missing."""
    known = ~np.isnan(array)
    edges = distinct if len(distinct) <= _BINS else np.unique(np.quantile(array[known], np.linspace(0, 1, _BINS + 1)))
    return np.where(known, np.searchsorted(edges, np.nan_to_num(array), side="right"), -1)


def _without(found: _Words, marks: Sequence[str]) -> _Words:
    kept = [index for index, word in enumerate(found.words) if word not in marks]
    return _Words([found.words[index] for index in kept], found.counts[kept])


def _null(column: pa.Array, marks: Sequence[str]) -> pa.Array:
    """The column, with nothing where one of some texts stood."""
    if not marks:
        return column
    return pc.if_else(pc.is_in(column, pa.array(marks, pa.string())), pa.scalar(None, column.type), column)


def _common(found: _Words, rows: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-found.counts, kind="stable")[:3]
    return tuple((found.words[index], float(found.counts[index]) / max(1, rows)) for index in order)
