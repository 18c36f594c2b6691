import csv
import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.conftest import build_mlp
from support import SHARED, forked

from benchmarks.hostile_rows import HOSTILE, hostile_lines
from nasrec_torchrec.datasets import public
from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.crosses import add_crosses
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES, ReplacedError
from nasrec_torchrec.inference import predictor
from nasrec_torchrec.inference.config import ScoringConfig, ServingConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor, merge
from nasrec_torchrec.inference.reader_archive import write_reader
from nasrec_torchrec.inference.rows import RowReader
from nasrec_torchrec.inference.scoring import requests, score
from nasrec_torchrec.inference.server import create_app

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real rows are not on this machine")


def as_rows(text: str, form: TextFormat) -> list[dict[str, str]]:
    """Every line as the mapping of its columns that a caller would send."""
    quoting = csv.QUOTE_MINIMAL if form.quoting else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.delimiter, quoting=quoting)
    lines = list(reader)
    names: Sequence[str] = form.columns or lines.pop(0)
    return [dict(zip(names, line, strict=True)) for line in lines]


def prepare_three(folder: Path, text: str, schema: Schema, form: TextFormat) -> tuple[Path, str]:
    """Prepares thirds of a text for training, validation and test, and adds histories; and the text of the last."""
    lines = text.splitlines(keepends=True)
    header = "" if form.columns else lines.pop(0)
    third = len(lines) // 3
    files = []
    for number, name in enumerate(("train", "valid", "test")):
        (folder / f"{name}.csv").write_text(header + "".join(lines[number * third : (number + 1) * third]), newline="")
        files.append(str(folder / f"{name}.csv"))
    histories = [feature for feature in schema.sparse if feature.ids == "history"]
    raw = RawData(
        tuple(files), schema.without([feature.name for feature in histories]), form, split=SplitConfig("given")
    )
    data = folder / "data"
    prepare(raw, data, PreparationConfig(max_rejects=0.0))
    if histories:
        data = folder / "with-histories"
        add_crosses(folder / "data", data, histories)
    return data, (folder / "test.csv").read_text()


def cases() -> list:
    criteo = public.criteo_kaggle("", 5000, 16)
    shared = SHARED / "data"
    return [
        pytest.param(lambda: hostile_lines(600), HOSTILE, HOSTILE.text, id="hostile"),
        *(
            pytest.param(
                lambda name=name: (shared / name).read_text(), schema, form, id=name.split(".")[0], marks=needs_shared
            )
            for name, schema, form in (
                ("criteo_10k_head.txt", criteo.schema, criteo.text_format),
                ("avazu_9k.csv", public.avazu("", 5000, 16).schema, TextFormat()),
                ("frappe_x1/test.csv", public.frappe(Path(), 16).schema, TextFormat()),
            )
        ),
    ]


@pytest.mark.parametrize(("text", "schema", "form"), cases())
def test_rows_become_what_preparation_made_of_the_same_lines(tmp_path: Path, text, schema: Schema, form: TextFormat):
    data, last = prepare_three(tmp_path, text(), schema, form)
    files = open_split(data, "test")
    reader = RowReader.of_package(data, {"schema": json.loads(files.schema.to_json())})
    rows = as_rows(last, form)
    wanted = next(requests(files.load(), _Dense(files.schema), len(rows)))
    for size in (len(rows), 7):  # the second time, most values are known
        found = [reader.read(rows[first : first + size]).request for first in range(0, len(rows), size)]
        assert sum(map(len, found)) == len(wanted) > 100
        merged = merge(found)
        assert torch.equal(merged.lengths, wanted.lengths)
        assert torch.equal(merged.ids, wanted.ids)
        assert (wanted.dense is None) == (merged.dense is None)
        assert wanted.dense is None or torch.equal(merged.dense, wanted.dense)


class _Dense:
    def __init__(self, schema: Schema) -> None:
        self.dense_features = [feature.name for feature in schema.dense]


def reader_of(schema: Schema, **words: list[str]) -> RowReader:
    return RowReader(schema, {f"t_{name}": pa.array(known) for name, known in words.items()})


SMALL = Schema(
    "label",
    (DenseFeature("price", "log1p"),),
    (
        SparseFeature("user", 5, ids="dictionary"),
        SparseFeature("given", 10, ids="id"),
        SparseFeature("genres", 4, ids="dictionary", multi_hot=True),
    ),
    text=TextFormat(missing=("", "NA")),
)


def test_one_value_has_one_id_whatever_its_type_and_what_was_found_is_counted():
    reader = reader_of(SMALL, user=["5", "b", "true"], genres=["x", "y"])
    users = ["5", 5, 5.0, np.int64(5), True, "b", "c", None, float("nan"), "NA", ""]
    rows = [{"user": user, "given": 3, "label": 1, "genres": ["x", "z", None]} for user in users]
    read = reader.read([*rows, {"given": "12", "genres": "y|x"}])
    count = len(rows) + 1
    assert read.request.ids[:count].tolist() == [2, 2, 2, 2, 4, 3, 1, 0, 0, 0, 0, 0]
    assert read.request.ids[count : 2 * count].tolist() == [3] * len(rows) + [0]
    assert read.request.ids[2 * count :].tolist() == [2, 1, 0] * len(rows) + [3, 2]
    assert read.unknown[5:7] == [["genres"], ["user", "genres"]] and read.unknown[-1] == ["given"]
    assert read.extra == len(rows)  # the label
    counts = reader.counts
    assert (counts["user"].rows, counts["user"].missing, counts["user"].unknown) == (count, 5, 1)
    assert (counts["given"].unknown, counts["genres"].unknown) == (1, len(rows))
    assert (counts["price"].missing, counts["price"].values) == (count, 0)


def test_a_number_is_no_mark_of_a_missing_moment():
    schema = Schema("label", (), (SparseFeature("hour", ids="hour", of="when"),), text=TextFormat(missing=("", "-1")))
    request = RowReader(schema, {}).read([{"when": when} for when in (-1, -1.0, "-1", "", None)]).request
    assert request.ids.tolist() == [24, 24, 0, 0, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"price": "abc"}, "row 1: column 'price': expected a finite number, found 'abc'"),
        ({"price": [1.0]}, "row 1: column 'price': expected a finite number, found a list"),
        ({"price": [10**400]}, "row 1: column 'price': expected a finite number, found a list"),
        ({"price": float("inf")}, "row 1: column 'price': expected a finite number, found 'inf'"),
        ({"user": ["a"]}, "row 1: column 'user': expected single values, found a list; only multi_hot features"),
        ({"user": {}}, "row 1: column 'user': expected single values, found a dict"),
        ({"user": 1.5}, "row 1: column 'user': expected a whole number"),
        ({"given": "x"}, "row 1: column 'given': expected an id in 0..9, found 'x'"),
        ({"given": True}, "row 1: column 'given': expected integers, found bool"),
        ({"genres": 7}, "row 1: column 'genres': expected a list, or text that '|' separates, found '7'"),
        ({"genres": ["x", ["y"]]}, "row 1: column 'genres': expected single values, found a list in the list"),
        ({"usr": "a"}, "row 1: has none of the model's columns ['genres', 'given', 'price', 'user'], found ['usr']"),
        (3, "row 1: expected columns and their values, found int"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(row, message):
    reader = reader_of(SMALL, user=["a"], genres=["x"])
    with pytest.raises(ValueError) as raised:
        reader.read([{"user": "a"}, row])
    assert message in str(raised.value)
    assert reader.counts["user"].rows == 0  # a refused request counts nowhere


def test_values_that_are_read_together_keep_the_table_and_the_name_of_their_feature():
    sparse = tuple(SparseFeature(f"{kind}{rows}", rows, ids=kind) for kind in ("id", "hash", "hex") for rows in (7, 90))
    reader = RowReader(Schema("label", (), sparse), {})
    rows: list[dict[str, Any]] = [
        {feature.name: "50" for feature in sparse},
        {"id90": "7", "hash7": 3, "hex90": "f" * 40},
    ]
    read = reader.read(rows)
    for feature, ids in zip(sparse, read.request.ids.view(len(sparse), -1).tolist(), strict=True):
        alone = RowReader(Schema("label", (), (feature,)), {})
        assert [alone.read([{feature.name: row.get(feature.name)}]).request.ids.item() for row in rows] == ids
    assert read.unknown == [["id7"], []]
    for row, message in (
        ({"id7": "6", "id90": "x"}, "row 2: column 'id90': expected an id in 0..89, found 'x'"),
        ({"hash7": "new", "hash90": "\ud800"}, "row 2: column 'hash90': 'utf-8' codec can't encode"),
        ({"hex7": "1", "hex90": "g"}, "row 2: column 'hex90': expected hexadecimal digits, found 'g'"),
    ):
        with pytest.raises(ValueError) as caught:
            reader.read([{"id7": "1", "hash7": "new", "hex7": "5"}, {"id7": "2"}, row])
        assert message in str(caught.value)


def test_words_of_another_package_are_refused(tmp_path: Path):
    """A folder may be replaced between the loading of a model and the reading of its words."""
    data, _ = prepare_three(tmp_path, hostile_lines(60), HOSTILE, HOSTILE.text)
    files = {f"{DICTIONARIES}/{file.name}": file for file in (data / DICTIONARIES).iterdir()}
    manifest = {
        "schema": json.loads(open_split(data, "test").schema.to_json()),
        "sha256": {name: sha256(file) for name, file in files.items()},
    }
    RowReader.of_package(data, manifest)
    words = files[f"{DICTIONARIES}/t_word.parquet"]
    table = pq.read_table(words)
    pq.write_table(table.take(list(range(len(table)))[::-1]), words)
    with pytest.raises(ReplacedError, match=r"t_word.parquet: its checksum is not that of the loaded model"):
        RowReader.of_package(data, manifest)
    words.unlink()
    with pytest.raises(ReplacedError, match=r"t_word.parquet: cannot be read"):
        RowReader.of_package(data, manifest)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[], RowReader], list[dict[str, Any]]]:
    """Makes readers of the hostile file's words; and its last rows."""
    data, last = prepare_three(tmp_path_factory.mktemp("hostile"), hostile_lines(300), HOSTILE, HOSTILE.text)
    manifest = {"schema": json.loads(open_split(data, "test").schema.to_json())}
    return lambda: RowReader.of_package(data, manifest), as_rows(last, HOSTILE.text)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from([name for name in HOSTILE.raw_columns if name != "label"])),
    st.integers(0, 99),
    st.booleans(),
)
def test_shared_values_are_those_of_every_row(hostile, names: set[str], number: int, listed: bool):
    make, rows = hostile
    user = {name: value for name, value in rows[number].items() if name in names}
    if listed and "tags" in user:
        user["tags"] = user["tags"].split("|")
    rows = rows[: number % 7 + 1]
    items = [{name: value for name, value in row.items() if name not in user} for row in rows]
    apart, together = make(), make()
    wanted, found = apart.read([item | user for item in items]), together.read(items, user)
    for name in ("dense", "ids", "lengths"):
        assert torch.equal(getattr(found.request, name), getattr(wanted.request, name)), name
    assert found.unknown == wanted.unknown and found.extra == wanted.extra
    for name, counts in apart.counts.items():
        # A sum of equal numbers may round otherwise than their product.
        assert astuple(together.counts[name]) == pytest.approx(astuple(counts), rel=1e-6), name


def test_shared_values_that_cannot_be(hostile):
    reader, items = hostile[0](), [{"word": "a"}, {"word": "b", "price": 3}]
    for shared, message in (
        ({"folded": "x"}, "shared: column 'folded': expected an integer"),
        ({"price": "x"}, "row 1: columns ['price'] are in shared too; expected each in one place"),
        ({"age": "x"}, "shared: column 'age': expected a finite number, found 'x'"),
        ({"tags": 3}, "shared: column 'tags': expected a list"),
        ({"tags": ["a", [3]]}, "shared: column 'tags': expected single values, found a list in the list"),
        ({"given": [3]}, "shared: column 'given': expected single values, found a list; only multi_hot"),
        ([3], "shared: expected columns and their values, found list"),
    ):
        with pytest.raises(ValueError) as caught:
            reader.read(items, shared)
        assert message in str(caught.value)
    # A row may have nothing of its own; what one list becomes in many rows is bounded before it is repeated.
    assert len(reader.read([{}, {}], {"word": "a"}).request) == 2
    with pytest.raises(ValueError, match="row 0: has none of the model's columns"):
        reader.read([{}], {"other": 1})
    with pytest.raises(ValueError, match="rows: expected 1000000 ids at most, found 4"):
        reader.read([{}] * 400, {"tags": ["a"] * 10_000}, max_ids=1_000_000)


def test_shared_weights():
    sparse = tuple(SparseFeature(name, 10, multi_hot=True, weighted=True) for name in ("tags", "places"))
    user, item = {"tags": [1, 2], "tags_weights": [0.5, 2]}, {"places": [3], "places_weights": [4]}
    make = partial(RowReader, Schema("label", (), sparse), {})
    found, wanted = make().read([item] * 3, user).request, make().read([item | user] * 3).request
    assert found.weights.tolist() == wanted.weights.tolist() == [0.5, 2.0] * 3 + [4.0] * 3
    assert torch.equal(found.ids, wanted.ids) and torch.equal(found.lengths, wanted.lengths)
    with pytest.raises(ValueError, match="shared: expected 'tags' and 'tags_weights' together"):
        make().read([item | {"tags": [1]}], {"tags_weights": [1]})
    with pytest.raises(ValueError, match="shared: column 'tags_weights': expected one weight per value"):
        make().read([item], {"tags": [1], "tags_weights": []})


def test_weights_of_lists(tmp_path: Path):
    schema = Schema("label", (), (SparseFeature("tags", 10, multi_hot=True, weighted=True),))
    reader = RowReader(schema, {})
    request = reader.read(
        [{"tags": [1, 2], "tags_weights": [0.5, 2]}, {"tags": "3", "tags_weights": "0.25"}, {"tags": None}]
    ).request
    assert request.lengths.tolist() == [[2, 1, 0]] and request.ids.tolist() == [1, 2, 3]
    assert request.weights.tolist() == [0.5, 2.0, 0.25]
    with pytest.raises(ValueError, match="row 0: column 'tags_weights': expected one weight per value"):
        reader.read([{"tags": [1, 2], "tags_weights": [0.5]}])
    with pytest.raises(ValueError, match="row 0: column 'tags_weights': expected a finite number, found 'nan'"):
        reader.read([{"tags": [1, 2], "tags_weights": [0.5, None]}])


def _score_alone(folder: Path, rows: list[dict[str, str]]) -> None:
    """Scores rows as a service does that has copies of two files, PyTorch, NumPy and pyarrow."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nasrec_torchrec"]:
        del sys.modules[name]
    for name in ("torchrec", "fbgemm_gpu", "fsspec", "iopath", "jsonargparse", "msgspec", "upath", "yaml"):
        sys.modules[name] = None  # type: ignore[assignment]  # any import of it fails
    # An editable installation would find what the archive lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    shutil.copy(predictor.__file__, folder / "predictor.py")
    write_reader(folder / "reader.zip")
    sys.path[:0] = [str(folder), str(folder / "reader.zip")]
    copied = importlib.import_module("predictor")
    probabilities = copied.Predictor(folder / "package").rows(rows)
    assert sys.modules["nasrec_torchrec.inference.rows"].__file__.startswith(str(folder / "reader.zip"))
    torch.save(probabilities, folder / "alone.pt")


@pytest.mark.slow
def test_files_python_and_http_score_raw_rows_alike(tmp_path: Path):
    data, last = prepare_three(tmp_path, hostile_lines(300), HOSTILE, HOSTILE.text)
    schema = open_split(data, "test").schema
    package = tmp_path / "package"
    made = export(build_mlp(schema), schema, package, dictionaries=data / DICTIONARIES)
    rows = as_rows(last, HOSTILE.text)
    score(package, [str(tmp_path / "test.csv")], tmp_path / "scores", ScoringConfig(raw=True))
    table = pq.read_table(tmp_path / "scores" / "part-000000.parquet")
    files = torch.from_numpy(table.column("probability").to_numpy().copy())
    predictor = Predictor(package)
    assert torch.equal(predictor.rows(rows), files) and torch.equal(made.rows(rows), files)
    with TestClient(create_app(package, ServingConfig())) as client:
        answer = client.post("/v2/models/nasrec/rows", json={"rows": rows, "id": "7", "parameters": {"unknown": True}})
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert torch.equal(torch.tensor(document["outputs"][0]["data"], dtype=torch.float32), files)
        assert document["id"] == "7" and len(document["unknown"]) == len(rows)
        assert any("pair" in names for names in document["unknown"]) and document["model_version"] == predictor.version
        user = {"word": "a", "tags": ["a", "b"], "price": None, "label": 1}
        items = [{name: row[name] for name in row if name not in user} for row in rows]
        answer = client.post("/v2/models/nasrec/rows", json={"rows": items, "shared": user})
        wanted = predictor.rows([item | user for item in items])
        assert torch.equal(torch.tensor(answer.json()["outputs"][0]["data"]), wanted), answer.text
        assert torch.equal(predictor.rows(items, shared=user), wanted)
        version = f"/v2/models/nasrec/versions/{predictor.version}/rows"
        assert client.post(version, json={"rows": rows[:1]}).json()["outputs"][0]["shape"] == [1]
        for body, message in (
            ({"rows": [{"word": "a"}, {"price": "x"}]}, "row 1: column 'price': expected a finite number, found 'x'"),
            ({"rows": [3]}, "Expected `object`, got `int`"),
            ({"rows": [{"word": 1}] * 5000}, "rows: expected 4096 at most, found 5000"),
            ({}, "missing required field `rows`"),
            ({"rows": [{"word": 1}], "id": "x" * 2000}, "id: expected 1024 characters at most"),
            ({"rows": [{"word": 1}], "shared": {"word": 2}}, "row 0: columns ['word'] are in shared too"),
            ({"rows": [{"word": 1}], "shared": 3}, "Expected `object`, got `int`"),
            ({"rows": [{"word": 1}] * 4000, "shared": {"tags": ["a"] * 999}}, "rows: expected 1048576 ids at most"),
        ):
            answer = client.post("/v2/models/nasrec/rows", json=body)
            assert answer.status_code == 400 and message in answer.json()["error"], answer.text
        text = client.get("/metrics").text
        labels = f'feature="word",model="nasrec",version="{predictor.version}"'
        assert f"nasrec_feature_rows_total{{{labels}}} {2 * len(rows) + 1}.0" in text
        assert f'nasrec_extra_values_total{{model="nasrec"}} {2 * len(rows) + 1}.0' in text
        for name in (
            "nasrec_unknown_values_total",
            "nasrec_missing_drift",
            "nasrec_unknown_drift",
            "nasrec_mean_drift",
        ):
            feature = "price" if "mean" in name else "word"
            assert f'{name}{{feature="{feature}",model="nasrec"' in text
    alone = forked().Process(target=_score_alone, args=(tmp_path, rows))
    alone.start()
    alone.join(120)
    assert alone.exitcode == 0 and torch.equal(torch.load(tmp_path / "alone.pt"), files)
    (package / "dictionaries" / "t_word.parquet").unlink()
    with pytest.raises(ValueError, match="export with --data to have it"):
        Predictor(package, verify=False).rows(rows)
