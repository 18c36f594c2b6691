import gzip
import hashlib
import json
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from iopath.common.file_io import PathHandler
from support import dictionary_words, forked

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.ids import hash_text
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split, read_manifest
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS
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
    assert dictionary_words(out, "t_brand") == words and schema.sparse[1].num_embeddings == len(words) + FIRST_WORD
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


def test_features_that_share_a_table_share_itsdictionary_words(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text("y,seen,target\n" + "0,a|b,b\n1,b|b|c,a\n" * 10)
    sparse = (
        SparseFeature("seen", ids="dictionary", multi_hot=True, table="item"),
        SparseFeature("target", ids="dictionary", table="item"),
    )
    schema = prepare(RawData((str(path),), Schema("y", (), sparse)), tmp_path / "data")
    assert dictionary_words(tmp_path / "data", "item") == ["b", "a", "c"] and [
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
        found.append((_rows(out), dictionary_words(out, "t_brand"), schema.sparse))
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
