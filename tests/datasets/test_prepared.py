"""A data set is used as a whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import (
    check_dictionaries,
    check_files,
    digest_of,
    load_schema,
    open_split,
    read_manifest,
)
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema("click", (DenseFeature("price"),), (SparseFeature("shop", ids="dictionary", table="a.b"),))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    rows = [f"{n % 2},{n}.5,{'long name of a shop ' * 10}{n % 50}\n" for n in range(12_000)]
    (folder / "log.csv").write_text("click,price,shop\n" + "".join(rows))
    # In the order of time, so that every piece of the text becomes a file of one split or two.
    prepare(
        RawData((str(folder / "log.csv"),), SCHEMA, split=SplitConfig("time")),
        folder / "data",
        PreparationConfig(piece_mib=1),
    )
    return folder / "data"


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def _read(folder: Path) -> int:
    """Reads everything, as a training does."""
    rows = 0
    for split in ("train", "validation", "test"):
        files = open_split(folder, split)
        rows += sum(len(files.read(group).labels) for group in range(len(files.groups)))
    check_dictionaries(folder)
    return rows


def _first(folder: Path) -> Path:
    files = sorted((folder / "train").glob("*.parquet"))
    assert len(files) > 1
    return files[0]


def test_a_copied_data_set_is_the_same(data: Path):
    assert _read(data) == 12_000
    check_files(data)


def test_what_tells_rows_from_others_is_known_without_them(data: Path):
    expected = open_split(data, "train").digest
    assert expected != open_split(data, "test").digest
    shutil.rmtree(data / "train")
    assert digest_of(data, "train") == expected


def test_a_lost_file_is_named(data: Path):
    _first(data).unlink()
    with pytest.raises(ValueError, match=r"train/part-000000\.parquet: is missing, though manifest\.json tells of it"):
        open_split(data, "train")


def test_an_additional_file_is_named(data: Path):
    shutil.copy(_first(data), data / "train" / "part-000099.parquet")
    with pytest.raises(ValueError, match=r"train/part-000099\.parquet: is none of the files that manifest\.json tells"):
        open_split(data, "train")


def test_a_cut_file_is_named(data: Path):
    content = _first(data).read_bytes()
    _first(data).write_bytes(content[:-10])
    with pytest.raises(ValueError, match=rf"part-000000\.parquet: expected {len(content):,} bytes .* found"):
        open_split(data, "train")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_flipped_bit_is_found_before_a_row_is_used(data: Path, share: float):
    content = bytearray(_first(data).read_bytes())
    content[int(len(content) * share)] ^= 16
    _first(data).write_bytes(content)
    with pytest.raises(ValueError, match=r"part-000000\.parquet: (was changed or is damaged|cannot be read)"):
        _read(data)


def test_a_bit_flipped_in_the_schema_or_a_dictionary_is_found(data: Path):
    schema = data / "schema.json"
    text = schema.read_text()
    schema.write_text(text.replace('"min_count": 1', '"min_count": 3'))
    with pytest.raises(ValueError, match=r"schema\.json: was changed or is damaged"):
        load_schema(data)
    schema.write_text(text)
    (words,) = (data / "dictionaries").iterdir()
    assert words.name == "a_b.parquet"
    content = bytearray(words.read_bytes())
    content[20] ^= 1
    words.write_bytes(content)
    with pytest.raises(ValueError, match=r"a_b\.parquet: was changed or is damaged"):
        check_dictionaries(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("splits"), "splits: expected dict, found None"),
        (lambda manifest: manifest["splits"]["train"].update(rows="many"), "train: rows: expected int, found 'many'"),
        (lambda manifest: manifest["splits"]["train"]["files"][0].update(name="../x"), "expected the name of a file"),
        (lambda manifest: manifest.update(format="other"), "expected a manifest of format"),
    ],
)
def test_a_damaged_manifest_is_one_line(data: Path, change, message: str):
    file = data / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        read_manifest(data)


def test_a_split_without_rows_says_what_to_do(tmp_path: Path):
    (tmp_path / "log.csv").write_text("click,price,shop\n" + "0,1,a\n1,2,b\n" * 10)
    split = SplitConfig("time", validation_share=0)
    prepare(RawData((str(tmp_path / "log.csv"),), SCHEMA, split=split), tmp_path / "data")
    with pytest.raises(ValueError, match="the validation split has no rows; prepare the data with rows for it"):
        open_split(tmp_path / "data", "validation")
