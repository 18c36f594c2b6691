from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.statistics import measure

_LINES = {
    "train": ["1,2,red,a|b", "0,4,red,a", "0,,,", "1,6,blue,b|b|c"],
    "validation": ["1,1,green,a"],
    "test": ["0,1,red,", "0,1,blue,d"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = []
    for name, lines in _LINES.items():
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join(["click,price,colour,tags", *lines]) + "\n")
    schema = Schema(
        "click",
        (DenseFeature("price"),),
        (SparseFeature("colour", ids="dictionary"), SparseFeature("tags", 1000, "hash", multi_hot=True)),
        embedding_dim=8,
    )
    prepare(RawData(tuple(map(str, files)), schema, split=SplitConfig("given")), tmp_path / "data")
    return tmp_path / "data"


def test_numbers_are_those_of_the_rows(folder: Path):
    found = measure(folder)
    assert found.splits == {"train": (4, 0.5), "validation": (1, 1.0), "test": (2, 0.0)}
    mean, deviation, low, high, zeros = found.dense["price"]
    assert (mean, low, high, zeros) == (3.0, 0.0, 6.0, 0.25) and deviation == pytest.approx(5**0.5)
    colour, tags = found.sparse
    assert (colour.num_embeddings, colour.distinct, colour.missing, colour.unknown) == (4, 3, 0.25, 0.0)
    assert colour.top == (("red", 0.5), ("(missing)", 0.25), ("blue", 0.25))
    assert (tags.distinct, tags.missing, tags.unknown, tags.mean_length) == (3, 0.25, None, 1.5)
    assert [share for _, share in tags.top] == [3 / 6, 2 / 6, 1 / 6]
    assert found.table_bytes == {"t_tags": 4 * 1000 * 8, "t_colour": 4 * 4 * 8}
    assert next(iter(found.table_bytes)) == "t_tags", "the largest comes first"
    assert measure(folder, "validation").sparse[0].unknown == 1.0
    assert len(measure(folder, top=1).sparse[1].top) == 1


def test_text_and_picture_name_everything(folder: Path):
    found = measure(folder)
    text = str(found)
    for word in ("train", "50.00%", "price", "colour", "tags", "red 50.0%", "t_tags", "rejected rows: 0"):
        assert word in text
    assert found.draw(folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_changed_file_is_found(folder: Path):
    file = next((folder / "test").glob("*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(ValueError, match=r"test/part-\d+\.parquet: is missing or was changed"):
        measure(folder)
    file.unlink()
    with pytest.raises(ValueError, match="is missing or was changed"):
        measure(folder)
    pq.write_table(pq.read_table(folder / "train"), file)
    with pytest.raises(ValueError, match="is missing or was changed"):
        measure(folder)
    with pytest.raises(ValueError, match="split: expected one of"):
        measure(folder, "dev")
