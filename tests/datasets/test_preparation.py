import csv
import gzip
import hashlib
import io
import json
import re
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iopath.common.file_io import PathHandler
from support import forked

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split, read_manifest
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.datasets.transform import hash_text
from nasrec_torchrec.runs.handlers import serve
from nasrec_torchrec.runs.lock import lock

SCHEMA = Schema(
    "click",
    (DenseFeature("price", "log1p"), DenseFeature("age", "standardize")),
    (SparseFeature("shop", 50, "hash"), SparseFeature("brand", ids="dictionary", min_count=2)),
)
HEADER = "click,price,age,shop,brand,when,part\n"


def _lines(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        part = ("train", "train", "valid", "test")[number % 4]
        age = "" if number % 7 == 0 else rng.integers(18, 80)
        shop, brand = f"shop {rng.integers(30)}", f"b{int(rng.exponential(4))}"
        when = rng.integers(10**6)
        lines.append(f"{rng.integers(2)},{rng.exponential(9):.3f},{age},{shop},{brand},{when},{part}\n")
    return lines


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(_lines(400)))
    return path


def _rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(folder / split).to_pylist() for split in SPLITS}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _dictionary(folder: Path, table: str) -> list[str]:
    return pq.read_table(folder / "dictionaries" / f"{table}.parquet")["word"].to_pylist()


def test_manifest_tells_what_lies_there(text: Path, tmp_path: Path):
    out = tmp_path / "data"
    schema = prepare(RawData((str(text),), SCHEMA), out)
    manifest = read_manifest(out)
    assert {path.name for path in out.iterdir()} == {
        *SPLITS,
        "schema.json",
        "manifest.json",
        "dictionaries",
        "rejects.jsonl",
    }
    assert manifest["rows"] == 400 and manifest["rejected"] == 0 and (out / "rejects.jsonl").read_text() == ""
    for split, described in manifest["splits"].items():
        labels = pq.read_table(out / split)["click"].to_numpy()
        assert (described["rows"], described["positives"]) == (len(labels), labels.sum())
        for file in described["files"]:
            content = (out / split / file["name"]).read_bytes()
            assert file["sha256"] == hashlib.sha256(content).hexdigest() and file["bytes"] == len(content)
    assert manifest["schema_sha256"] == hashlib.sha256((out / "schema.json").read_bytes()).hexdigest()
    assert Schema.from_json((out / "schema.json").read_text()) == schema
    assert not list(tmp_path.glob(".*")), "no work folder or lock may be left"


def test_what_is_measured_is_measured_on_train(text: Path, tmp_path: Path):
    out = tmp_path / "data"
    schema = prepare(RawData((str(text),), SCHEMA, split=SplitConfig("column", "part")), out)
    raw = [line.rstrip("\n").split(",") for line in _lines(400)]
    train = [row for row in raw if row[6] == "train"]
    ages = np.array([float(row[2]) for row in train if row[2]])
    assert schema.dense[1].mean == pytest.approx(ages.mean()) and schema.dense[1].deviation == pytest.approx(ages.std())
    counts = Counter(row[4] for row in train)
    words = sorted((word for word in counts if counts[word] >= 2), key=lambda word: (-counts[word], word))
    assert _dictionary(out, "t_brand") == words and schema.sparse[1].num_embeddings == len(words) + FIRST_WORD
    for split, name in zip(SPLITS, ("train", "valid", "test"), strict=True):
        expected = [row for row in raw if row[6] == name]
        data = open_split(out, split).load()
        assert data.labels.tolist() == [float(row[0]) for row in expected]
        prices = [np.log1p(float(row[1])) for row in expected]
        assert data.dense[:, 0].tolist() == pytest.approx(prices, rel=1e-5, abs=1e-6)
        scaled = [(float(row[2]) - ages.mean()) / ages.std() if row[2] else 0.0 for row in expected]
        assert data.dense[:, 1].tolist() == pytest.approx(scaled, rel=1e-5, abs=1e-5)
        ids = [words.index(row[4]) + FIRST_WORD if row[4] in words else 1 for row in expected]
        assert data.sparse["brand"].values().tolist() == ids
        assert data.sparse["shop"].values().tolist() == [hash_text(row[3].encode()) % 49 + 1 for row in expected]


def test_features_that_share_a_table_share_its_dictionary(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text("y,seen,target\n" + "0,a|b,b\n1,b|b|c,a\n" * 10)
    sparse = (
        SparseFeature("seen", ids="dictionary", multi_hot=True, table="item"),
        SparseFeature("target", ids="dictionary", table="item"),
    )
    schema = prepare(RawData((str(path),), Schema("y", (), sparse)), tmp_path / "data")
    assert _dictionary(tmp_path / "data", "item") == ["b", "a", "c"] and [
        table.num_embeddings for table in schema.tables()
    ] == [5]
    train = open_split(tmp_path / "data", "train").load()
    assert {tuple(ids.tolist()) for ids in train.sparse["seen"].to_dense()} == {(3, 2), (2, 2, 4)}


def test_gzip_parquet_and_several_files_give_the_same_rows(text: Path, tmp_path: Path):
    content = text.read_bytes()
    # Two members, as `cat a.gz b.gz` makes them.
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    pq.write_table(pcsv.read_csv(text), tmp_path / "log.parquet", row_group_size=70)
    for number in range(12):  # part 10 comes after part 9
        (tmp_path / f"part_{number}.csv").write_text(HEADER + "".join(_lines(400)[number * 35 : (number + 1) * 35]))
    found = []
    for name in ("log.csv", "log.csv.gz", "log.parquet", "part_*.csv"):
        out = tmp_path / "out" / name
        schema = prepare(RawData((str(tmp_path / name),), SCHEMA), out)
        found.append((_rows(out), _dictionary(out, "t_brand"), schema.sparse))
    assert found[1] == found[0] and found[2] == found[0] and found[3] == found[0]


class _Shelf(PathHandler):
    """Serves shelf://name from a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["shelf://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return (self.folder / path.removeprefix("shelf://")).open(mode)


@pytest.mark.parametrize("scheme", ["memory", "shelf"])
def test_files_may_lie_wherever_fsspec_and_iopath_reach(text: Path, tmp_path: Path, scheme: str):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    archive = folder / "log.csv.gz"
    archive.write_bytes(gzip.compress(text.read_bytes()))
    if scheme == "memory":
        fsspec.filesystem("memory").pipe_file("/log.csv.gz", archive.read_bytes())
    else:
        serve(lambda paths: paths.register_handler(_Shelf(folder)))
    prepare(RawData((f"{scheme}://log.csv.gz",), SCHEMA), tmp_path / "far")
    prepare(RawData((str(text),), SCHEMA), tmp_path / "near")
    assert _rows(tmp_path / "far") == _rows(tmp_path / "near")
    with pytest.raises(ValueError, match=f"{scheme}://none.csv: cannot be opened"):
        prepare(RawData((f"{scheme}://none.csv",), SCHEMA), tmp_path / "none")


def test_splits_by_time_by_column_and_given_by_files(text: Path, tmp_path: Path):
    prepare(RawData((str(text),), SCHEMA, split=SplitConfig("time", "when")), tmp_path / "time")
    raw = [line.rstrip("\n").split(",") for line in _lines(400)]
    limit = sorted(int(row[5]) for row in raw)[319]
    train = [float(row[0]) for row in raw if int(row[5]) <= limit]
    assert open_split(tmp_path / "time", "train").load().labels.tolist() == train

    prepare(RawData((str(text),), SCHEMA, split=SplitConfig("column", "part")), tmp_path / "column")
    files = []
    for name in ("train", "valid", "test"):
        file = tmp_path / f"{name}.csv"
        file.write_text(HEADER + "".join(line for line in _lines(400) if line.endswith(f",{name}\n")))
        files.append(str(file))
    prepare(RawData(tuple(files), SCHEMA, split=SplitConfig("given")), tmp_path / "given")
    assert _rows(tmp_path / "column") == _rows(tmp_path / "given")
    with pytest.raises(ValueError, match=r"log\.csv: expected a file named train, "):
        prepare(RawData((str(text),), SCHEMA, split=SplitConfig("given")), tmp_path / "other")


def test_rejected_rows_are_told_with_line_and_reason(text: Path, tmp_path: Path):
    lines = [HEADER, *_lines(400)]
    lines[7] = "2,1,30,a,b,1,train\n"
    lines[8] = "1,1,old,a,b,1,train\n"
    lines[20] = "1,1,30,a,b,1\n"
    lines[21] = "\n"
    lines[30] = '1,1,30,"a\n0,1,30,x,y,1,train\nb",b,1,train\n'
    lines[40] = "1,1,30,a,b,1,nowhere\n"
    text.write_text("".join(lines))
    raw = RawData((str(text),), SCHEMA, split=SplitConfig("column", "part"))
    out = tmp_path / "data"
    with pytest.raises(
        ValueError, match=r"7 of 401 rows were rejected, more than max_rejects 0\.01 allows; the first is "
    ):
        prepare(raw, out)
    assert not out.exists()
    early = (tmp_path / "data.rejects.jsonl").read_text()
    prepare(raw, out, PreparationConfig(max_rejects=0.05))
    assert (out / "rejects.jsonl").read_text() == early and not (tmp_path / "data.rejects.jsonl").exists()
    rejects = {entry["line"]: entry["reason"] for entry in map(json.loads, early.splitlines())}
    assert rejects == {
        8: "label 'click': expected 0 or 1, found '2'",
        9: "column 'age': expected a finite number, found 'old'",
        21: "expected 7 columns, found 6",
        31: "a quote inside of a value, or one that is not closed on its line",
        32: "inside of a quoted value that goes over several lines",
        33: "a quote inside of a value, or one that is not closed on its line",
        43: "column 'part': expected train, training, validation, valid, val, test, found 'nowhere'",
    }
    assert read_manifest(out)["rejected"] == 7 and read_manifest(out)["rows"] == 394


def test_a_stray_quote_takes_few_lines_with_it(text: Path, tmp_path: Path):
    lines = [HEADER, *_lines(400)]
    lines[50] = '1,1,30,5" screen,b,1,train\n'
    lines[150] = '1,1,30,"open,b,1,train\n'
    text.write_text("".join(lines))
    prepare(RawData((str(text),), SCHEMA), tmp_path / "data")
    rejects = map(json.loads, (tmp_path / "data" / "rejects.jsonl").read_text().splitlines())
    assert [entry["line"] for entry in rejects] == [51, 151]


def test_a_finished_data_set_is_neither_repeated_nor_overwritten(text: Path, tmp_path: Path, capsys):
    out = tmp_path / "data"
    raw = RawData((str(text),), SCHEMA)
    schema = prepare(raw, out)
    before = _contents(out), out.stat().st_mtime_ns
    assert prepare(raw, out, PreparationConfig(threads=1)) == schema
    assert "up to date" in capsys.readouterr().err and (_contents(out), out.stat().st_mtime_ns) == before
    other = RawData((str(text),), SCHEMA, split=SplitConfig("time", "when"))
    with pytest.raises(ValueError, match="holds a data set prepared from something else; --overwrite true replaces it"):
        prepare(other, out)
    assert _contents(out) == before[0]
    prepare(other, out, PreparationConfig(overwrite=True))
    assert read_manifest(out)["split"]["split"] == "time" and not list(tmp_path.glob(".*"))
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match=r"else/manifest\.json: cannot be read"):
        prepare(raw, tmp_path / "else")


def test_overwriting_keeps_what_is_not_ours(text: Path, tmp_path: Path):
    out = tmp_path / "data"
    (out / "notes").mkdir(parents=True)
    (out / "notes" / "mine.txt").write_text("mine")
    raw, overwrite = RawData((str(text),), SCHEMA), PreparationConfig(overwrite=True)
    prepare(raw, out, overwrite)
    prepare(RawData((str(text),), SCHEMA, split=SplitConfig("time", "when")), out, overwrite)
    assert (out / "notes" / "mine.txt").read_text() == "mine" and read_manifest(out)["split"]["split"] == "time"
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"and no manifest\.json, so they are not known to be ours"):
        prepare(raw, out, overwrite)
    assert (out / "train").exists()


def test_two_at_once_are_refused(text: Path, tmp_path: Path):
    out = tmp_path / "data"
    with (
        lock(tmp_path / ".data.preparing"),
        pytest.raises(ValueError, match=r"\.data\.preparing: process .* is writing"),
    ):
        prepare(RawData((str(text),), SCHEMA), out)
    prepare(RawData((str(text),), SCHEMA), out)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "line 1: expected the names of the columns"),
        ("a.csv", b"\n\n", "line 1: expected the names of the columns"),
        ("a.csv", HEADER.encode(), "no row could be read"),
        ("a.csv", b"click,click\n1,1\n", r"line 1: columns named more than once: \['click'\]"),
        ("a.csv", b"click,price\n1,1\n", r"missing columns \['age', 'shop', 'brand'\]; found \['click', 'price'\]"),
        ("a.csv", b"\xff\xfe\x00click\n", r"a\.csv: cannot be read, it is UTF-16 text: convert it to UTF-8"),
        ("a.csv.gz", b"click,price\n", r"a\.csv\.gz: cannot be read"),
        ("a.csv.gz", gzip.compress(HEADER.encode() + b"1,1,1,a,b,1,train\n" * 50_000)[:-100], "cannot be read beyond"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.parquet", b"PAR1 and nothing else PAR1", "not a readable Parquet file"),
        ("none.csv", None, r"none\.csv: cannot be opened"),
        ("none*.csv", None, r"none\*\.csv: no file matches"),
    ],
)
def test_files_that_cannot_be_read_are_one_clear_error(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(RawData((str(tmp_path / name),), SCHEMA), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_parquet_file_without_rows_adds_none(text: Path, tmp_path: Path):
    table = pcsv.read_csv(text)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    schema = prepare(RawData((str(tmp_path / "*.parquet"),), SCHEMA), tmp_path / "data")
    assert schema == prepare(RawData((str(tmp_path / "a.parquet"),), SCHEMA), tmp_path / "other")
    assert _rows(tmp_path / "data") == _rows(tmp_path / "other")
    with pytest.raises(ValueError, match="no row could be read"):
        prepare(RawData((str(tmp_path / "b.parquet"),), SCHEMA), tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_killed_and_started_again_the_output_is_byte_identical(tmp_path: Path, compressed: bool):
    content = (HEADER + "".join(_lines(400)) * 1000).encode()
    log = tmp_path / ("log.csv.gz" if compressed else "log.csv")
    log.write_bytes(gzip.compress(content, 1) if compressed else content)
    out = tmp_path / "data"

    def start(folder: Path) -> BaseProcess:
        arguments = RawData((str(log),), SCHEMA), folder, PreparationConfig(piece_mib=1)
        process = forked().Process(target=prepare, args=arguments)
        process.start()
        return process

    work = tmp_path / ".data.preparing"
    stamps = {}
    for reached in ("parts/000003.json", "parts/000007.json", "splits/000002.json"):
        process = start(out)
        while not (work / reached).exists():
            assert process.is_alive(), f"it ended before it wrote {reached}"
            time.sleep(0.001)
        process.kill()
        process.join()
        assert not out.exists()
        for file in work.rglob("*.json"):
            made = file.stat().st_mtime_ns
            assert stamps.setdefault(file, made) == made, "a finished piece was written again"
    # What was finished and is damaged since is made again.
    (work / "splits" / "000001.json").write_text("{")
    part = work / "data" / "train" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))
    undisturbed = tmp_path / "undisturbed"
    for folder in (out, undisturbed):
        process = start(folder)
        process.join()
        assert process.exitcode == 0
    assert _contents(out) == _contents(undisturbed)
    assert not list(tmp_path.glob(".*"))


# Fuzzing: every value is drawn together with what it means, or None when its row must be rejected.
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
            words = _dictionary(out, sparse.table)
            counts = Counter(value for value in values if value is not MISSING)
            assert sorted(words) == sorted(word for word in counts if counts[word] >= sparse.min_count)
            meant = [0 if v is MISSING else words.index(v) + FIRST_WORD if v in words else 1 for v in values]
        elif sparse.ids == "hash":
            meant = [0 if v is MISSING else hash_text(v.encode()) % 96 + 1 for v in values]
        else:
            meant = [0 if v is MISSING else v for v in values]
        assert found == meant, sparse


@settings(max_examples=150)
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
            # An empty line is no row, also inside of a value that goes over several lines.
            refused += [line + index for index, part in enumerate(text.split(b"\n")[:-1]) if part.strip(b" ")]
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
