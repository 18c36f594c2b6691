import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import StratifiedKFold
from support import SHARED

from nasrec_torchrec.datasets import public, transform
from nasrec_torchrec.datasets.config import PreparationConfig
from nasrec_torchrec.datasets.features import FIRST_WORD
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real rows are not on this machine")


def _expected(schema: Schema, columns: dict[str, list[str]]) -> list[tuple[float, list[float], list[int]]]:
    """Label, dense values and ids of every row, by the rules of the research code, one value at a time."""
    rows = []
    for number in range(len(columns[schema.label])):
        dense = [columns[feature.name][number] for feature in schema.dense]
        sparse = [(columns[feature.name][number], feature.num_embeddings) for feature in schema.sparse]
        # fmod(-1) + 1 is 0; Avazu has -1 where a value is missing.
        ids = [int(text, 16) % (rows - 1) + 1 if text not in ("", "-1") else 0 for text, rows in sparse]
        rows.append(
            (
                float(float(columns[schema.label][number]) > (schema.label_above or 0)),
                [math.log(max(float(text or 0), 0) + 1) for text in dense],
                ids,
            )
        )
    return rows


def _check(raw: RawData, columns: dict[str, list[str]], out: Path) -> None:
    """Prepares, and compares every row of every split."""
    schema = prepare(raw, out, PreparationConfig(max_rejects=0.05))
    rows = _expected(schema, columns)
    labels = [label for label, _, _ in rows]
    folds = StratifiedKFold(10, shuffle=True, random_state=2018).split(labels, labels)
    members = [test for _, test in folds]
    chosen = {"train": np.concatenate(members[:8]), "validation": members[8], "test": members[9]}
    for split in SPLITS:
        data = open_split(out, split).load()
        expected = [rows[index] for index in sorted(chosen[split])]
        assert data.labels.tolist() == [label for label, _, _ in expected]
        assert np.allclose(data.dense.numpy(), np.array([dense for _, dense, _ in expected]), rtol=1e-6, atol=1e-6)
        ids = np.stack([data.sparse[name].values().numpy() for name in schema.feature_names], axis=1)
        assert np.array_equal(ids, np.array([ids for _, _, ids in expected]))


def _criteo(lines: list[str]) -> dict[str, list[str]]:
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    return dict(zip(names, map(list, zip(*(line.split("\t") for line in lines), strict=True)), strict=True))


def _generated(count: int) -> list[str]:
    rng = np.random.default_rng(0)

    def line() -> str:
        dense = ["" if rng.random() < 0.2 else str(rng.integers(-3, 5000)) for _ in range(13)]
        sparse = ["" if rng.random() < 0.1 else f"{rng.integers(2**32):08x}" for _ in range(26)]
        return "\t".join([str(int(rng.random() < 0.3)), *dense, *sparse])

    return [line() for _ in range(count)]


@pytest.mark.parametrize("source", ["generated", pytest.param("criteo_10k_head.txt", marks=needs_shared)])
def test_criteo_row_by_row(tmp_path: Path, source: str):
    lines = _generated(300) if source == "generated" else (SHARED / "data" / source).read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    _check(public.criteo_kaggle(str(tmp_path / "train.txt"), 500_000, 16), _criteo(lines), tmp_path / "data")


def test_days_of_criteo_1tb_are_split_by_time(tmp_path: Path):
    lines = _generated(480)
    for day in range(24):
        content = "".join(line + "\n" for line in lines[day * 20 : day * 20 + 20])
        (tmp_path / f"day_{day}.gz").write_bytes(gzip.compress(content.encode()))
    schema = prepare(public.criteo_1tb([str(tmp_path / "day_*.gz")], 1000, 8), tmp_path / "data")
    rows = _expected(schema, _criteo(lines))
    ends = {"train": (0, 460), "validation": (460, 470), "test": (470, 480)}
    for split, (first, last) in ends.items():
        data = open_split(tmp_path / "data", split).load()
        ids = np.stack([data.sparse[name].values().numpy() for name in schema.feature_names], axis=1)
        assert np.array_equal(ids, np.array([ids for _, _, ids in rows[first:last]]))


@needs_shared
def test_avazu_row_by_row(tmp_path: Path):
    file = SHARED / "data" / "avazu_9k.csv"
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    _check(public.avazu(str(file), 500_000, 16), columns, tmp_path / "data")


def _write_kdd(folder: Path, rows: list[list[str]], profile: dict[int, tuple[int, int]]) -> dict[str, list[str]]:
    """Both raw files; returns the joined columns."""
    folder.mkdir()
    (folder / "training.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    lines = [f"{user}\t{gender}\t{age}\n" for user, (gender, age) in profile.items()]
    (folder / "userid_profile.txt").write_text("".join(lines))
    names = ["click", "impression", "url", "ad", "advertiser", "depth", "position"]
    names += ["query", "keyword", "title", "description", "user"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    for index, name in enumerate(("gender", "age")):
        known = (profile.get(int(user)) for user in columns["user"])
        columns[name] = [str(entry[index]) if entry else "" for entry in known]
    return columns


@pytest.mark.parametrize("source", ["generated", pytest.param("kdd12_click_prediction_small.csv", marks=needs_shared)])
def test_kdd_row_by_row(tmp_path: Path, source: str):
    rng = np.random.default_rng(0)
    if source == "generated":
        rows = [[str(number) for number in rng.integers(0, 3, 12)] for _ in range(200)]
    else:
        with (SHARED / "data" / source).open() as opened:
            rows = list(csv.reader(opened))[1:]
    # Whoever made the sample wrote some hashes of URLs as floating-point numbers: such rows must be rejected.
    damaged = [line for line, row in enumerate(rows, start=1) if "e+" in row[2]]
    users = sorted({int(row[-1]) for row in rows})
    profile = {user: (int(rng.integers(3)), int(rng.integers(1, 7))) for user in users if rng.random() < 0.7}
    columns = _write_kdd(tmp_path / "raw", rows, profile)
    whole = np.setdiff1d(np.arange(len(rows)), np.array(damaged, int) - 1)
    columns = {name: [column[row] for row in whole] for name, column in columns.items()}
    _check(public.kdd_2012(str(tmp_path / "raw"), 500_000, 16), columns, tmp_path / "data")
    rejects = map(json.loads, (tmp_path / "data" / "rejects.jsonl").read_text().splitlines())
    assert [entry["line"] for entry in rejects] == damaged


def test_a_damaged_profile_is_one_clear_error(tmp_path: Path):
    _write_kdd(tmp_path / "raw", [["0"] * 12], {1: (1, 2)})
    profile = tmp_path / "raw" / "userid_profile.txt"
    profile.write_text("1\tmale\t2\n")
    with pytest.raises(ValueError, match=r"userid_profile\.txt: expected user, gender and age, three integers a line"):
        public.kdd_2012(str(tmp_path / "raw"), 1000, 16)
    profile.unlink()
    with pytest.raises(ValueError, match=r"userid_profile\.txt: cannot be opened"):
        public.kdd_2012(str(tmp_path / "raw"), 1000, 16)


@needs_shared
def test_frappe_keeps_its_splits(tmp_path: Path):
    source = SHARED / "data" / "frappe_x1"
    schema = prepare(public.frappe(source, 12), tmp_path / "data")
    assert {split: len(open_split(tmp_path / "data", split)) for split in SPLITS} == {
        "train": 202_027,
        "validation": 57_722,
        "test": 28_860,
    }
    with (source / "valid.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    data = open_split(tmp_path / "data", "validation").load()
    assert data.labels.tolist() == [float(row["label"]) for row in rows]
    for feature in schema.sparse:
        words = pq.read_table(tmp_path / "data" / "dictionaries" / f"t_{feature.name}.parquet")["word"].to_pylist()
        ids = {word: index for index, word in enumerate(words, start=FIRST_WORD)}
        assert data.sparse[feature.name].values().tolist() == [ids.get(row[feature.name], 1) for row in rows]


@pytest.mark.parametrize("number", range(6))
def test_the_original_implementations_values(number: int):
    file = Path(__file__).resolve().parents[1] / "golden" / "transforms.json"
    case = json.loads(file.read_text())["cases"][number]
    largest = max(case["num_embeddings"])
    raw = {
        "criteo": lambda: public.criteo_kaggle("", largest, 16).schema,
        "avazu": lambda: public.avazu("", largest, 16).schema,
        "kdd": lambda: public.kdd_schema(largest, 16),
    }[case["dataset"]]()
    assert [feature.num_embeddings for feature in raw.sparse] == case["num_embeddings"]
    lines = [line.split("\t") for line in case["lines"]]
    names = [raw.label, *(feature.name for feature in raw.dense), *raw.feature_names]
    if not raw.dense:
        # The original gives Avazu a dense column of zeros.
        assert {value for row in case["dense"] for value in row} == {0.0}
        names.insert(1, "nothing")
    table = pa.table({name: [line[index] or None for line in lines] for index, name in enumerate(names)})
    parsed, rejects = transform.parse(table, raw)
    assert not rejects and parsed[raw.label].to_pylist() == case["labels"]
    finished, _ = transform.finish(parsed, raw, {})
    for index, feature in enumerate(raw.dense):
        expected = [row[index] for row in case["dense"]]
        assert finished[feature.name].to_pylist() == pytest.approx(expected, rel=1e-6)
    for index, sparse in enumerate(raw.sparse):
        assert parsed[sparse.name].to_pylist() == [row[index] for row in case["ids"]]
