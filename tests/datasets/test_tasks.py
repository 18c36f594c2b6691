"""Further labels in the schema: read by their own rules, unknown where they have no value, and carried by batches."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import torch
from support import run_program

from nasrec_torchrec.datasets import reader
from nasrec_torchrec.datasets.crosses import add_crosses
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.labels import Task
from nasrec_torchrec.datasets.prepared import label_alone, load_schema, open_split, read_manifest
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.statistics import measure

ROWS = 2_000
SCHEMA = """
label: clicked
tasks:
- {name: bought, label_values: {"y": 1, "n": 0}, loss_weight: 0.5}
- {name: liked, column: stars, label_above: 3}
sparse:
- {name: item, ids: dictionary}
- {name: place, ids: dictionary}
embedding_dim: 8
"""
PLAIN = '{"label": "y", "sparse": [{"name": "f", "num_embeddings": 9, "ids": "id"}]}'


def write_log(folder: Path) -> Path:
    """A log in which only clicked rows say whether something was bought, and in which some stars are missing."""
    random = np.random.default_rng(0)
    item, place = random.integers(0, 8, ROWS), random.integers(0, 3, ROWS)
    clicked = random.random(ROWS) < 0.3 + 0.05 * item
    bought = np.where(clicked, np.where(random.random(ROWS) < 0.1 + 0.1 * item, "y", "n"), "")
    stars = random.integers(1, 6, ROWS).astype(str)
    stars[::7] = ""
    table = {"clicked": clicked.astype(int), "bought": bought, "stars": stars, "item": item, "place": place}
    pcsv.write_csv(pa.table(table), folder / "log.csv")
    return folder / "log.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "schema.yaml").write_text(SCHEMA)
    with write_log(folder).open("a") as log:
        log.write('1,"maybe","4",0,0\n1,"y","five",0,0\n,"y","4",0,0\n')
    sources = ["--source", folder / "log.csv", "--schema", folder / "schema.yaml"]
    words = ["prepare", "table", *sources, "--out", folder / "data"]
    done = run_program("nasrec", *words, terminal=True)
    assert done.returncode == 0, done.stderr
    head, _, first, second = done.stdout.splitlines()[:4]
    assert head.split() == ["split", "rows", "clicks", "click", "rate"]
    assert first.startswith("train ") and second.startswith("train, ") and first.endswith("%")
    assert done.stdout.endswith(f"3 rows rejected, see {folder}/data/rejects.jsonl\nwrote {folder}/data\n")
    # Scripts read JSON, and people get it when they ask.
    piped = json.loads(run_program("nasrec", *words).stdout)
    assert piped["rejected"] == 3 and piped == json.loads(run_program("nasrec", *words, "--json", terminal=True).stdout)
    yield folder / "data"


def test_a_value_that_is_no_label_rejects_its_row_and_a_missing_one_is_unknown(data: Path):
    rejects = [json.loads(line)["reason"] for line in (data / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [
        "label 'bought': expected one of ['n', 'y'], or nothing where it is not known, found 'maybe'",
        "label 'stars': expected a finite number, or nothing where it is not known, found 'five'",
        "label 'clicked': expected 0 or 1, found nothing",
    ]
    manifest = read_manifest(data)
    for split, described in manifest["splits"].items():
        rows = pa.concat_tables([pq.read_table(data / split / file["name"]) for file in described["files"]])
        clicks = rows["clicked"].to_numpy()
        bought, liked = (rows[name].to_pylist() for name in ("bought", "liked"))
        assert [value is None for value in bought] == (clicks == 0).tolist()
        assert described["tasks"] == {
            "bought": {"rows": int(clicks.sum()), "positives": bought.count(1)},
            "liked": {"rows": sum(value is not None for value in liked), "positives": liked.count(1)},
        }
    known = manifest["splits"]["train"]["tasks"]["liked"]
    assert 0.35 < known["positives"] / known["rows"] < 0.45  # 4 and 5 of five stars


def test_describe_shows_the_rates_of_every_label(data: Path):
    done = run_program("nasrec", "prepare", "describe", data)
    counted = read_manifest(data)["splits"]["test"]["tasks"]["bought"]
    assert "bought, where it is known\n" in done.stdout
    assert f"test        {counted['rows']:>14,}{counted['positives'] / counted['rows']:>9.2%}" in done.stdout
    assert measure(data).to_json()["tasks"]["bought"]["test"]["rows"] == counted["rows"]


def test_batches_carry_the_labels_only_for_those_who_ask(data: Path, monkeypatch: pytest.MonkeyPatch):
    # The process in the background, which takes seconds to start, sends what iterating over its plan yields.
    monkeypatch.setattr(reader, "DataLoader", lambda plan, **_options: plan)
    files = open_split(data, "train", tasks=True)
    every = files.load().labels
    assert files.schema.labels == ["clicked", "bought", "liked"] and every.shape == (len(files), 3)
    assert torch.equal(every[:, 1].isnan(), every[:, 0] == 0) and not every[:, 0].isnan().any()
    for background in (False, True):
        batches = list(reader.TrainingReader(files, 128, 0, background=background))
        assert all(batch.labels.shape == (128, 3) for batch in batches)
        assert all(torch.equal(batch.labels[:, 1].isnan(), batch.labels[:, 0] == 0) for batch in batches)
    parts = [batch.labels for rank in range(2) for batch in files.evaluation_batches(64, rank, 2)]
    assert torch.equal(files.restore(torch.cat(parts)).nan_to_num(2), every.nan_to_num(2))
    alone = open_split(data, "train").load().labels
    assert torch.equal(alone, every[:, 0])
    assert label_alone(data) == f"{data}: of its labels, 'clicked' alone is read here, and not 'bought', 'liked'"


def test_added_features_leave_the_labels_as_they_are(data: Path, tmp_path: Path):
    cross = SparseFeature("both", 50, ids="hash", cross=("item", "place"))
    assert add_crosses(data, tmp_path / "crossed", [cross]).tasks == load_schema(data, tasks=True).tasks
    before, after = (open_split(folder, "test", tasks=True).load().labels for folder in (data, tmp_path / "crossed"))
    assert torch.equal(before.nan_to_num(2), after.nan_to_num(2))
    assert read_manifest(tmp_path / "crossed")["splits"]["test"]["tasks"]


def test_a_label_that_is_neither_0_nor_1_is_refused_when_it_is_read(tmp_path: Path):
    schema = replace(Schema.from_json(PLAIN), tasks=(Task("t"),))
    pq.write_table(pa.table({"y": [0, 1], "f": [1, 2], "t": [None, 2]}), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=r"column 't': expected 0 or 1, found 2\.0 in row 1"):
        ClickFiles.open(tmp_path, schema).load()


def test_a_schema_with_one_label_is_written_as_before():
    schema = Schema.from_json(PLAIN)
    assert "tasks" not in schema.to_dict() and schema.columns == ["y", "f"]
    several = replace(schema, tasks=("t", Task("u", "raw", label_values={"no": 0, "yes": 1})))
    assert Schema.from_json(several.to_json()) == several and several.without_tasks() == schema
    assert several.columns == ["y", "t", "u", "f"] and several.raw_columns == ["y", "t", "raw", "f"]
    assert several.input_columns == ["f"]
    weighted = replace(several, tasks=(Task("t", loss_weight=9), several.tasks[1]))
    assert several.difference(weighted) is None and several.reduced_to(schema) == schema
    assert "tasks are [] here and [('t', 't', None, ())" in str(schema.difference(several))


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ('["f"]', r"columns named more than once: \['f'\]"),
        ('[{"name": "t", "weight": 2}]', "schema: task 't': expected the keys"),
        ('[{"name": "t", "loss_weight": 0}]', "t: loss_weight: expected a number above 0, found 0"),
        ('[{"name": "t", "label_above": 1, "label_values": {"a": 0, "b": 1}}]', "t: label_above and label_values"),
        ('[{"name": "t", "label_values": {"a": 0, "b": 2}}]', "t: label_values: expected a value for 0 and one for 1"),
        ('{"t": 1}', "schema: tasks: expected a list of names or objects"),
    ],
)
def test_wrong_tasks_are_refused(tasks: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        Schema.from_json(PLAIN.replace('"y",', f'"y", "tasks": {tasks},'))


def test_rows_are_not_drawn_by_one_of_several_labels(data: Path, tmp_path: Path):
    sources = ["--source", data.parent / "log.csv", "--schema", data.parent / "schema.yaml", "--out", tmp_path / "few"]
    done = run_program("nasrec", "prepare", "table", *sources, "--keep-negatives", "0.5")
    assert "keep_negatives: expected 1 with several labels (clicked, bought, liked), found 0.5" in done.stderr
