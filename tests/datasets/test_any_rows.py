"""Fuzzing: every value is drawn together with what it means, or None when its row must be rejected."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import dictionary_words

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.ids import hash_text
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split, read_manifest
from nasrec_torchrec.datasets.schema import Schema

MISSING = object()
_REFUSED = None


def _integer(value: int) -> Any:
    return value % 96 + 1 if value >= 0 else 0 if value == -1 else _REFUSED


def _worded(word: bytes) -> tuple[bytes, Any]:
    try:
        return word, word.decode() if word else MISSING
    except UnicodeDecodeError:
        return word, _REFUSED


_odd_text = st.one_of(
    st.text(max_size=8),
    st.text(alphabet="\",\t;|'\\ \r\nab", max_size=8),
    st.sampled_from(["NULL", "nan", "-1", "0", "1e5", "\x00", "\ufeff", "🙂", "  ", "None", "#", "//split"]),
).map(str.encode)
_words = st.one_of(_odd_text, _odd_text, st.binary(max_size=6)).map(_worded)
_numbers = st.one_of(
    st.floats(-1e30, 1e30).map(lambda value: (repr(value).encode(), value)),
    st.integers(-(10**30), 10**30).map(lambda value: (str(value).encode(), float(value))),
    st.sampled_from(
        [
            *[(b"", MISSING), (b"nan", MISSING), (b"NaN", MISSING), (b"-0", 0.0), (b"inf", _REFUSED)],
            *[(b"-inf", _REFUSED), (b"1e999", _REFUSED), (b"five", _REFUSED), (b"1_0", _REFUSED), (b"0x1", _REFUSED)],
            *[(b"\xff", _REFUSED), (b"1,5", _REFUSED), (b"--1", _REFUSED), (b"1e", _REFUSED)],
        ]
    ),
)
_integers = st.one_of(
    st.integers(-5, 300),
    st.integers(-(10**60), 10**60),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64]),
)


def _cells(feature: DenseFeature | SparseFeature) -> st.SearchStrategy[tuple[bytes, Any]]:
    if isinstance(feature, DenseFeature):
        return _numbers
    wrong = st.sampled_from([(b"1.5", _REFUSED), (b"x", _REFUSED), (b"\xff", _REFUSED), (b"9" * 5000, _REFUSED)])
    nothing = st.just((b"", MISSING))
    match feature.ids:
        case "hash" | "dictionary":
            return _words
        case "id":
            exact = _integers.map(lambda value: (str(value).encode(), value if 0 <= value < 97 else _REFUSED))
            return st.one_of(exact, nothing, wrong)
        case "modulo":
            return st.one_of(_integers.map(lambda value: (str(value).encode(), _integer(value))), nothing, wrong)
        case _:
            return st.one_of(_integers.map(lambda value: (f"{value:x}".encode(), _integer(value))), nothing, wrong)


@st.composite
def _schemas(draw: st.DrawFn) -> Schema:
    dense = [
        DenseFeature(f"d{i}", kind)
        for i, kind in enumerate(draw(st.lists(st.sampled_from(["none", "log1p", "standardize"]), max_size=3)))
    ]
    sparse = [
        SparseFeature(
            f"s{i}", None if kind == "dictionary" else 97, kind, min_count=1 + i if kind == "dictionary" else 1
        )
        for i, kind in enumerate(
            draw(st.lists(st.sampled_from(["id", "modulo", "hex", "hash", "dictionary"]), min_size=1, max_size=4))
        )
    ]
    return Schema("y", tuple(dense), tuple(sparse))


_labels = st.sampled_from([(b"0", 0), (b"1", 1), (b"1.0", 1), (b"2", _REFUSED), (b"", _REFUSED), (b"nan", _REFUSED)])


@st.composite
def _tables(draw: st.DrawFn) -> tuple[Schema, list[list[tuple[bytes, Any]]]]:
    schema = draw(_schemas())
    row = st.tuples(_labels, *(_cells(feature) for feature in (*schema.dense, *schema.sparse)))
    return schema, [list(cells) for cells in draw(st.lists(row, min_size=1, max_size=12))]


def _check(schema: Schema, kept: list[list[Any]], raw: RawData, folder: Path) -> None:
    """Prepares, and compares every value with what it means."""
    out = folder / "data"
    raw = RawData(raw.files, schema, raw.text_format, SplitConfig("time", validation_share=0, test_share=0))
    if not kept:
        with pytest.raises(ValueError, match="no row could be read"):
            prepare(raw, out, PreparationConfig(max_rejects=1))
        return
    filled = prepare(raw, out, PreparationConfig(max_rejects=1, threads=1))
    data = open_split(out, "train").load()
    assert data.labels.tolist() == [row[0] for row in kept]
    for index, feature in enumerate(filled.dense):
        values = [np.nan if row[1 + index] is MISSING else row[1 + index] for row in kept]
        with np.errstate(invalid="ignore"):
            match feature.transform:
                case "log1p":
                    expected = np.log1p(np.maximum(np.array(values), 0))
                case "standardize":
                    known = np.array([value for value in values if not np.isnan(value)] or [0.0])
                    expected = (np.array(values) - known.mean()) / (known.std() or 1.0)
                case _:
                    expected = np.array(values)
        assert data.dense[:, index].tolist() == pytest.approx(np.nan_to_num(expected, nan=0.0), rel=1e-4, abs=1e-4)
    for index, sparse in enumerate(filled.sparse, start=1 + len(filled.dense)):
        values = [row[index] for row in kept]
        found = data.sparse[sparse.name].values().tolist()
        if sparse.ids == "dictionary":
            words = dictionary_words(out, sparse.table)
            counts = Counter(value for value in values if value is not MISSING)
            assert sorted(words) == sorted(word for word in counts if counts[word] >= sparse.min_count)
            meant = [0 if v is MISSING else words.index(v) + FIRST_WORD if v in words else 1 for v in values]
        elif sparse.ids == "hash":
            meant = [0 if v is MISSING else hash_text(v.encode()) % 96 + 1 for v in values]
        else:
            meant = [0 if v is MISSING else v for v in values]
        assert found == meant, sparse


@settings(max_examples=150)
@example(
    table=(
        Schema("y", (), (SparseFeature("s", 97, "hash"),)),
        [[(b"0", 0), _worded(b"a")], [(b"0", 0), _worded(b"\n\r\r\n")]],
    ),
    delimiter=",",
    quoting=csv.QUOTE_MINIMAL,
)
@given(_tables(), st.sampled_from([",", "\t", ";", "|"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_any_text_is_read_exactly_or_rejected_row_by_row(tmp_path_factory, table, delimiter, quoting):
    schema, rows = table
    folder = tmp_path_factory.mktemp("fuzz")
    lines, kept, refused = [], [], []
    line = 2
    for cells in rows:
        # latin-1 carries every byte through the csv module as one character.
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
        writer.writerow([raw.decode("latin-1") for raw, _ in cells])
        text = buffer.getvalue().encode("latin-1").replace(b"\r\n", b"\n")
        whole = text.count(b"\n") == 1 and b"\r" not in text
        if whole and all(meant is not _REFUSED for _, meant in cells):
            kept.append([meant for _, meant in cells])
        else:
            # An empty line is no row, also inside of a value that goes over several lines, and however it ends.
            parts = [part.removesuffix(b"\r") for part in text.split(b"\n")[:-1]]
            refused += [line + index for index, part in enumerate(parts) if part.strip(b" ")]
        line += text.count(b"\n")
        lines.append(text)
    header = delimiter.join(schema.columns).encode() + b"\n"
    (folder / "log.csv").write_bytes(header + b"".join(lines))
    _check(schema, kept, RawData((str(folder / "log.csv"),), schema, TextFormat(delimiter)), folder)
    if kept:
        rejects = map(json.loads, (folder / "data" / "rejects.jsonl").read_text().splitlines())
        assert [entry["line"] for entry in rejects] == refused


@settings(max_examples=100)
@given(st.binary(max_size=400), st.booleans(), st.sampled_from([b"", b"\n", b"0,1,2\n", b"1,,\n"]))
def test_any_bytes_are_read_or_rejected_line_by_line(tmp_path_factory, content, quoting, good):
    folder = tmp_path_factory.mktemp("fuzz")
    file = folder / "log.csv"
    file.write_bytes(content + b"\n" + good * 3)
    schema = Schema("y", (DenseFeature("d"),), (SparseFeature("s", 9, "hash"),))
    raw = RawData((str(file),), schema, TextFormat(columns=("y", "d", "s"), quoting=quoting), SplitConfig("time"))
    try:
        prepare(raw, folder / "data", PreparationConfig(max_rejects=1))
    except ValueError as error:
        assert re.search(
            r"no row could be read|no row is left for train|log\.csv: (cannot be read|not a readable Parquet file)",
            str(error),
        )
        return
    manifest = read_manifest(folder / "data")
    lines = file.read_bytes().replace(b"\r\n", b"\n").split(b"\n")[:-1]
    assert manifest["rows"] + manifest["rejected"] == sum(1 for line in lines if line.strip(b" "))


@st.composite
def _typed(draw: st.DrawFn) -> tuple[pa.Array, SparseFeature | DenseFeature, list[Any]]:
    """A Parquet column of any fitting type, its feature, and what its values mean."""
    count = 8
    kind = draw(st.sampled_from(["int8", "int64", "uint64", "double", "float", "bool", "string", "binary", "words"]))
    if kind in ("string", "binary", "words"):
        words = draw(st.lists(st.none() | _words.map(lambda word: word[0]), min_size=count, max_size=count))
        if kind != "binary":
            words = [None if word is None else word.decode("utf-8", "replace").encode() for word in words]
        meant = [MISSING if word is None else _worded(word)[1] for word in words]
        array = pa.array(words, pa.binary())
        array = array if kind == "binary" else array.cast(pa.string())
        array = array.dictionary_encode() if kind == "words" else array
        rule = draw(st.sampled_from(["hash", "dictionary"]))
        return array, SparseFeature("x", 97 if rule == "hash" else None, rule), meant
    if kind in ("double", "float"):
        width = 64 if kind == "double" else 32
        floats = st.floats(-(2.0**99), 2.0**99, width=width) | st.sampled_from([float("nan"), float("inf")])
        values = draw(st.lists(st.none() | floats, min_size=count, max_size=count))
        meant = [MISSING if v is None or np.isnan(v) else _REFUSED if np.isinf(v) else v for v in values]
        return (
            pa.array(values, kind, from_pandas=False),
            DenseFeature("x", draw(st.sampled_from(["none", "log1p"]))),
            meant,
        )
    if kind == "bool":
        values = draw(st.lists(st.none() | st.booleans(), min_size=count, max_size=count))
        return pa.array(values), DenseFeature("x"), [MISSING if v is None else float(v) for v in values]
    low, high = {"int8": (-128, 127), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}[kind]
    values = draw(st.lists(st.none() | st.integers(low, high) | st.integers(0, 99), min_size=count, max_size=count))
    rule = draw(st.sampled_from(["modulo", "id"]))
    exact = rule == "id"
    meant = [MISSING if v is None else (v if 0 <= v < 97 else _REFUSED) if exact else _integer(v) for v in values]
    return pa.array(values, kind), SparseFeature("x", 97, rule), meant


@settings(max_examples=150)
@given(_typed(), st.integers(1, 8))
def test_any_parquet_column_is_read_exactly_or_rejected_row_by_row(tmp_path_factory, typed, row_group):
    column, feature, meant = typed
    folder = tmp_path_factory.mktemp("fuzz")
    table = pa.table({"y": pa.array([1, 0] * 4), "other": pa.array([0] * 8), "x": column})
    pq.write_table(table, folder / "log.parquet", row_group_size=row_group)
    other = SparseFeature("other", 2)
    if isinstance(feature, DenseFeature):
        schema = Schema("y", (feature,), (other,))
        kept = [[(i + 1) % 2, value, 0] for i, value in enumerate(meant) if value is not _REFUSED]
    else:
        schema = Schema("y", (), (other, feature))
        kept = [[(i + 1) % 2, 0, value] for i, value in enumerate(meant) if value is not _REFUSED]
    _check(schema, kept, RawData((str(folder / "log.parquet"),), schema), folder)


@settings(max_examples=60)
@given(
    st.lists(st.none() | st.lists(st.tuples(st.integers(0, 8), st.floats(-9, 9, width=32))), min_size=1, max_size=20)
)
def test_lists_with_weights_survive_in_text_and_parquet(tmp_path_factory, bags):
    folder = tmp_path_factory.mktemp("fuzz")
    schema = Schema("y", (), (SparseFeature("s", 9, multi_hot=True, weighted=True),))
    ids = [None if bag is None else [id_ for id_, _ in bag] for bag in bags]
    weights = [None if bag is None else [weight for _, weight in bag] for bag in bags]
    columns = {"y": [0] * len(bags), "s": pa.array(ids, pa.list_(pa.int64())), "s_weights": weights}
    columns["s_weights"] = pa.array(weights, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), folder / "log.parquet")
    texts = [["|".join(map(repr, bag or [])) for bag in column] for column in (ids, weights)]
    lines = [f"0,{bag},{weight}\n" for bag, weight in zip(*texts, strict=True)]
    (folder / "log.csv").write_text("y,s,s_weights\n" + "".join(lines))
    split = SplitConfig("time", validation_share=0, test_share=0)
    for name in ("log.csv", "log.parquet"):
        prepare(RawData((str(folder / name),), schema, split=split), folder / name.replace("log.", ""))
        sparse = open_split(folder / name.replace("log.", ""), "train").load().sparse["s"]
        assert [bag.tolist() for bag in sparse.to_dense()] == [bag or [] for bag in ids]
        assert [bag.tolist() for bag in sparse.to_dense_weights()] == [bag or [] for bag in weights]
