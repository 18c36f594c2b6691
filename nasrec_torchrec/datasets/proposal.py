"""A schema proposed from a sample of rows: what each column is taken for, and why."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.cardinality import estimated_distinct
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.lines import QUOTE
from nasrec_torchrec.datasets.local_forms import COMMA, DATE, local_form_warning
from nasrec_torchrec.datasets.names import check_column, check_name
from nasrec_torchrec.datasets.profile import Column, profile
from nasrec_torchrec.datasets.sampling import Sample
from nasrec_torchrec.datasets.schema import Schema

Role = Literal["label", "dense", "sparse", "split", "left out", "leak"]
# From this AUC on, a column alone knows the label, which only a copy or a consequence of it does.
LEAK, SUSPICIOUS = 0.99, 0.95
# Pairs of values that say which of them is a click.
_PAIRS = (("0", "1"), ("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"), ("-1", "1"), ("0.0", "1.0"))
_LABELS = ("label", "clicked", "click", "is_click", "target", "y", "converted", "conversion", "is_clicked", "class")
_IS_ID = re.compile(r"(?:^|[_.\s-])(?:u?id|code|key|zip|zipcode|postcode|plz|hash|no|nr|num)$|(?<=[a-z])I[Dd]$", re.I)
_IS_EVENT = re.compile(r"time|date|day|hour|stamp|(?:^|[_.])(?:ts|at|dt)$", re.I)
_IS_OF_A_THING = re.compile(r"birth|dob|release|expir|regist|sign_?up|join|due|start|founded|built", re.I)
# Whole numbers of few values are categories: months, ratings, numbers of rooms.
_FEW = 24
_CONSTANT = 0.9995
_KEY = 0.95
# Numbers of rows from which a word must occur more often than that to get an embedding of its own.
_MIN_COUNTS = ((10_000_000, 10), (1_000_000, 5), (0, 2))
# Numbers of distinct values from which on a hash is cheaper than a dictionary.
_MANY = 5_000_000
_SKEWED, _LARGE = 2.0, 20.0


@dataclass(frozen=True)
class Choice:
    """What a column is taken for.

    Args:
        column: what was seen of it.
        role: what it becomes.
        why: reason, in a few words.
        feature: the feature that it becomes, if any.
    """

    column: Column
    role: Role
    why: str
    feature: DenseFeature | SparseFeature | None = None


@dataclass(frozen=True)
class Proposal:
    """A schema, and what it was made from.

    Args:
        schema: can be prepared as it is. Every dense feature is also there in buckets.
        choices: what each column is taken for, in the order of the columns.
        label: share of the rows with each value of the label.
        sample: rows that were looked at.
        warnings: what a person should look at.
        rejected: share of the rows that a preparation will reject.
    """

    schema: Schema
    choices: tuple[Choice, ...]
    label: tuple[tuple[str, float], ...]
    sample: Sample
    warnings: tuple[str, ...]
    rejected: float = 0.0


def propose(
    sample: Sample,
    label: str | None = None,
    positive: str | None = None,
    label_above: float | None = None,
    embedding_dim: int = 16,
) -> Proposal:
    """Proposes a schema.

    Args:
        sample: rows to look at.
        label: column that says what was clicked; unset, one that is called so.
        positive: value of the label that is a click, where its name does not say.
        label_above: number above which the label is a click.
        embedding_dim: width of the embedding tables.

    Raises:
        ValueError: If there is no label of two values, or no column to learn from.
    """
    table = sample.table
    if not table.num_rows:
        raise ValueError("the files hold no rows")
    label = label or _find_label(table)
    if label not in table.column_names:
        raise ValueError(f"label: there is no column {label!r}; found {table.column_names}")
    kind, seen, labels = _label(label, values.plain(table.column(label)), positive, label_above)
    columns = profile(table.drop_columns([label]), labels)
    split_column = _time_column(columns, labels)
    marks = tuple(dict.fromkeys(mark for column in columns for mark in column.marks))
    # Of columns with ever new values, a sample says little about how many there are.
    many = [column.name for column in columns if column.singles > 0.5 * column.distinct and column.kind != "list"]
    known = {} if sample.whole else estimated_distinct(sample.files, sample.text, many)
    choices = {
        column.name: _choice(column, sample.rows, column is split_column, known.get(column.name)) for column in columns
    }
    warnings = [
        f"'{choice.column.name}' alone tells the label (AUC {choice.column.auc:.3f}): it is a copy or a consequence of "
        f"it, and is left out; if it is known before the click, put it back"
        for choice in choices.values()
        if choice.role == "leak"
    ]
    warnings += [
        f"'{choice.column.name}' alone reaches an AUC of {choice.column.auc:.3f}: is it known before the click?"
        for choice in choices.values()
        if choice.role in ("dense", "sparse") and (choice.column.auc or 0) >= SUSPICIOUS
    ]
    warnings += [
        local_form_warning(column.name, column.kind, column.remedy, column.common[0][0])
        for column in columns
        if column.kind in (COMMA, DATE)
    ]
    warnings += [
        percentages_warning(choice.column, left_out=choice.role != "sparse")
        for choice in choices.values()
        if choice.column.percentages
    ]
    unlabeled = float(np.mean(labels < 0))
    if unlabeled:
        warnings.append(f"{unlabeled:.1%} of the rows have no label and will be rejected")
    if sample.rejected:
        first = sample.first_reject
        # DuckDB reads values that span lines, which pieces of a file that are read side by side cannot.
        remedy = "; if values span lines, DuckDB reads them: --source duckdb --query \"SELECT * FROM 'FILE'\""
        warnings.append(
            f"{sample.rejected:,} lines of the sample are not rows, the first is {first}"
            f"{remedy if first.endswith(QUOTE) else ''}"
        )
    kept = table.num_rows / (sample.rejected + table.num_rows) * (1 - unlabeled)
    for choice in choices.values():
        if choice.column.odd and choice.role in ("dense", "split"):
            word, share = choice.column.odd[0]
            what = "finite numbers" if choice.role == "dense" else "moments"
            remedy = "" if sample.text is None else "; if that stands for a missing value, name it by --missing"
            warnings.append(
                f"'{choice.column.name}': {share:.2%} of the values are no {what}, such as {word!r}, and their rows "
                f"will be rejected{remedy}"
            )
            kept *= 1 - share
    rejected = 1 - kept
    if rejected > PreparationConfig.max_rejects:
        warnings.append(
            f"{rejected:.1%} of the rows will be lost, more than the {PreparationConfig.max_rejects:.0%} that a "
            f"preparation accepts by itself: look at them; if you can do without, pass --max_rejects "
            f"{accepted(rejected):g} to `nasrec prepare table`"
        )
    choices = _named(choices)
    found = [choice.feature for choice in choices.values()]
    sparse = tuple(feature for feature in found if isinstance(feature, SparseFeature))
    dense = tuple(feature for feature in found if isinstance(feature, DenseFeature))
    taken = {choice.column.name for choice in choices.values()}
    # A table of nothing but numbers has their ranges as its categories.
    sparse += tuple(bucketed for feature in dense if (bucketed := buckets_of(feature.name)).name not in taken)
    if not sparse:
        raise ValueError(
            "no column can be a feature; columns were left out because: "
            f"{ {name: choice.why for name, choice in choices.items()} }"
        )
    split = SplitConfig("time", split_column.name) if split_column is not None else SplitConfig()
    text = replace(sample.text or TextFormat(), missing=tuple(dict.fromkeys(["", *marks])))
    schema = Schema(label, dense, sparse, embedding_dim, text=text, split=split, **kind)  # type: ignore[arg-type]
    name_of = {name: table.column_names.index(name) for name in choices}
    ordered = tuple(sorted(choices.values(), key=lambda choice: name_of[choice.column.name]))
    return Proposal(schema, ordered, seen, sample, tuple(warnings), rejected)


def percentages_warning(column: Column, left_out: bool) -> str:
    """Returns what a column of texts such as ``23%`` is taken for, and how to make numbers of them."""
    example = next((word for word, _ in column.common if word.rstrip().endswith("%")), "")
    shown = f", such as {example!r}," if example else ""
    taken = "the column is left out" if left_out else "they are taken for words, not for numbers"
    return (
        f"'{column.name}': {column.percentages:.1%} of the values look like percentages{shown} and {taken}: to learn "
        f"from their size, convert them, for instance by DuckDB (--source duckdb --query) with {column.remedy}"
    )


def accepted(rejected: float) -> float:
    """Returns a limit of rejects for a share that a sample has, with some room for chance."""
    return min(1.0, math.ceil(round(rejected * 120, 6)) / 100)


def _find_label(table: pa.Table) -> str:
    names = {name.lower(): name for name in table.column_names}
    found = [names[name] for name in _LABELS if name in names]
    if found:
        return found[0]
    raise ValueError(
        f"label: no column is called {', '.join(_LABELS[:4])} or the like; name it; found {[*names.values()]}"
    )


def _label(
    name: str, column: pa.Array, positive: str | None, label_above: float | None
) -> tuple[Mapping[str, object], tuple[tuple[str, float], ...], np.ndarray]:
    """How the label is read, its values and their shares, and the label of each row, -1 where there is none."""
    check_column(name, "label")
    try:
        words = values.text(column, {})
    except ValueError as error:
        raise ValueError(f"label '{name}': {error}") from None
    words = values.without_empty(words)
    if label_above is not None:
        numbers = values.numbers(column, {}).to_numpy(zero_copy_only=False)
        known = ~np.isnan(numbers)
        labels = np.where(known, (numbers > label_above).astype(int), -1)
        rate = float(labels[known].mean()) if known.any() else 0.0
        if not 0 < rate < 1:
            raise ValueError(
                f"label '{name}': {rate:.0%} of its numbers are above {label_above}; both kinds are needed"
            )
        above = ((f"at most {label_above:g}", 1 - rate), (f"above {label_above:g}", rate))
        return {"label_above": float(label_above)}, above, labels
    counts = {
        entry["values"]: entry["counts"] for entry in words.value_counts().to_pylist() if entry["values"] is not None
    }
    shares = tuple((word, counts[word] / len(words)) for word in sorted(counts, key=lambda word: -counts[word]))
    shown = ", ".join(f"{word!r} {share:.1%}" for word, share in shares[:5])
    if len(counts) != 2:
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        remedy = (
            "--positive VALUE makes one value a click and all others none" if len(counts) > 1 else "both are needed"
        )
        if len(counts) > 2 and _are_numbers(column):
            remedy = "--label_above X makes each number above X a click, " + remedy
        if positive is None or positive not in counts or len(counts) < 2:
            raise ValueError(f"label '{name}': expected two values, found {shown or 'none'}{more}; {remedy}")
    if positive is None:
        lower = {word.lower(): word for word in counts}
        pair = next((pair for pair in _PAIRS if set(pair) == set(lower)), None)
        if pair is None:
            raise ValueError(f"label '{name}': found {shown}; say by --positive which of them is a click")
        positive = lower[pair[1]]
    elif positive not in counts:
        raise ValueError(f"label '{name}': positive: {positive!r} is none of its values: {shown}")
    clicks = values.per_distinct(words, lambda word: int(word == positive), pa.int64(), {}, "")
    labels = clicks.fill_null(-1).to_numpy(zero_copy_only=False)
    standard = {word.lower() for word in counts} <= {"0", "1", "true", "false"} and positive.lower() in ("1", "true")
    kind = {} if standard else {"label_values": {word: int(word == positive) for word in counts}}
    return kind, shares, labels


def _are_numbers(column: pa.Array) -> bool:
    refused: values.Rejects = {}
    try:
        values.numbers(column, refused)
    except ValueError:
        return False
    return not refused


def _time_column(columns: Sequence[Column], labels: np.ndarray) -> Column | None:
    """The column that says when a row happened, if later rows can be kept for validation and test."""
    fitting = [
        column
        for column in columns
        if (column.kind == "time" or (column.unit and _IS_EVENT.search(column.name)))
        and not column.missing
        and column.distinct >= 20
        and not _IS_OF_A_THING.search(column.name)
        and (column.auc or 0) < LEAK
    ]
    return max(fitting, key=lambda column: (bool(_IS_EVENT.search(column.name)), column.distinct), default=None)


def _choice(column: Column, rows: int, splits: bool, distinct: int | None = None) -> Choice:
    """What a column becomes; ``distinct`` is the number of its values in all rows, if it is known."""
    why = _useless(column)
    if (column.auc or 0) >= LEAK:
        return Choice(column, "leak", f"tells the label alone: AUC {column.auc:.3f}")
    if splits:
        return Choice(column, "split", "the latest rows are for validation and test")
    if why is None:
        try:
            check_name(column.name, "column")
        except ValueError:
            why = "a name that no column may have: rename it to use it"
    if why is not None:
        return Choice(column, "left out", why)
    if column.kind == "number" and not column.padded:
        named = bool(_IS_ID.search(column.name))
        if not column.whole or (column.distinct > _FEW and not named) or column.minimum < 0:
            return _dense(column)
    return _sparse(column, rows, distinct)


def _named(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Gives features of columns with a dot another name where theirs is that of another column."""
    taken, found = {*choices}, {}
    for column, choice in choices.items():
        feature = choice.feature
        if feature is not None and feature.column:
            name = feature.name
            while name in taken:
                name += "_"
            taken.add(name)
            table = {"table": ""} if isinstance(feature, SparseFeature) else {}
            choice = replace(choice, feature=replace(feature, name=name, **table))  # type: ignore[arg-type]
        found[column] = choice
    return found


def _name(column: Column) -> dict[str, str]:
    """The name of a column's feature, which prepared columns may not have with a dot."""
    bare = column.name.replace(".", "_")
    return {"name": bare} if bare == column.name else {"name": bare, "column": column.name}


def is_moment(column: Column) -> bool:
    """Returns whether a column holds times, of which something can be computed."""
    return column.kind == "time" or bool(column.unit and _IS_EVENT.search(column.name))


def _useless(column: Column) -> str | None:
    """Why nothing can be learned from a column, if so."""
    most = column.common[0][1] if column.common else 0.0
    if column.kind == "nothing":
        return "no value at all"
    if column.kind in (COMMA, DATE):
        return f"a {column.kind}: convert it to use it"
    if column.kind not in ("number", "text", "list", "true or false", "time"):
        return f"values of type {column.kind} cannot be read"
    if column.distinct <= 1 and not column.missing:
        return f"always {column.common[0][0] if column.common else 'empty'}"
    if max(most, column.missing_share) >= _CONSTANT:
        return f"nearly always {column.common[0][0] if most >= _CONSTANT else 'missing'}"
    if column.kind == "time" or (column.unit and _IS_EVENT.search(column.name)):
        return "a moment: later rows have others"
    many = column.known >= 100
    if column.kind == "text" and many and column.distinct > _KEY * column.known:
        if column.percentages:
            return "percentages, of which nearly every row has another: convert them to use them"
        return "nearly every row has another value: a key or free text"
    if column.kind == "number" and column.whole and many and column.distinct == column.known:
        spread = column.maximum - column.minimum + 1
        if column.rising or _IS_ID.search(column.name) or spread <= 1.2 * column.distinct:
            return "every row has another number: a key or a counter"
    return None


def _dense(column: Column) -> Choice:
    skewed = column.minimum >= 0 and column.skew > _SKEWED and column.high >= _LARGE
    transform: Literal["log1p", "standardize"] = "log1p" if skewed else "standardize"
    why = f"{column.minimum:g} to {column.maximum:g}"
    why += f", skew {column.skew:.1f}" if skewed else ""
    if column.odd:
        word, share = column.odd[0]
        why += f"; {share:.2%} are no numbers, such as {word!r}, and reject their rows"
    names = _name(column)
    return Choice(column, "dense", why, DenseFeature(names["name"], transform, column=names.get("column", "")))


def _sparse(column: Column, rows: int, known: int | None) -> Choice:
    multi_hot = column.kind == "list"
    settings: dict[str, object] = {**_name(column), "multi_hot": multi_hot}
    if column.separator and column.separator != SparseFeature.separator:
        settings["separator"] = column.separator
    if multi_hot:
        settings["pooling"] = "mean"
    seen = f"{column.distinct:,} values" + (" in lists" if multi_hot else "")
    if column.padded:
        seen += ", codes with leading zeros"
    if column.percentages:
        seen += f", {column.percentages:.1%} of the texts are percentages, taken for words"
    # Were the sample all rows, its values would be all values.
    grown = column.distinct * rows / max(1, column.rows) if column.singles > 0.5 * column.distinct else column.distinct
    if known is not None:
        grown = max(column.distinct, known)
    if grown > _MANY:
        size = 2 ** int(np.ceil(np.log2(min(grown, 2**25))))
        why = f"{seen}, about {grown:,.0f} in all rows"
        return Choice(column, "sparse", why, SparseFeature(num_embeddings=size, ids="hash", **settings))  # type: ignore[arg-type]
    if column.singles:
        settings["min_count"] = next(count for least, count in _MIN_COUNTS if rows >= least)
        seen += f", {column.singles:,} of them once" + ("" if known is None else f"; about {known:,} in all rows")
    return Choice(column, "sparse", seen, SparseFeature(ids="dictionary", **settings))  # type: ignore[arg-type]
