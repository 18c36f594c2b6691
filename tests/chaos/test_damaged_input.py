"""Damaged documents, tables and requests are refused with a ValueError, or are still what they should be."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chaos.budget import SEED, Tally
from chaos.damage import damaged, fuzzed, values
from hypothesis import given, seed
from hypothesis import strategies as st
from support import SMALL_SPACE, click_table, make_click_data, make_schema

from nasrec_torchrec import Architecture
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.description import ModelDescription

pytestmark = pytest.mark.chaos
SCHEMA = make_schema()


def _read(read: Any, document: Any, tally: Tally) -> None:
    """A document is refused, or it means what its own JSON means."""
    tally.tries += 1
    try:
        found = read(json.dumps(document))
    except ValueError:
        tally.count("refused")
        return
    assert read(found.to_json()) == found


ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
DESCRIPTION = ModelDescription(SCHEMA, ARCHITECTURE)


@given(damaged(json.loads(SCHEMA.to_json())))
@seed(SEED)
@fuzzed
def test_schemas(tally: Tally, document: Any) -> None:
    tally.what = "damaged schemas"
    _read(Schema.from_json, document, tally)


@given(damaged(json.loads(ARCHITECTURE.to_json())) | values)
@seed(SEED)
@fuzzed
def test_architectures(tally: Tally, document: Any) -> None:
    tally.what = "damaged architectures"
    _read(Architecture.from_json, document, tally)


@given(damaged(json.loads(DESCRIPTION.to_json())))
@seed(SEED)
@fuzzed
def test_model_descriptions(tally: Tally, document: Any) -> None:
    tally.what = "damaged descriptions of models (model.json)"
    _read(ModelDescription.from_json, document, tally)


def _table() -> pa.Table:
    return click_table(make_click_data(SCHEMA, 50), SCHEMA)


TYPES = [pa.string(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.binary(), pa.null()]


@given(data=st.data())
@seed(SEED)
@fuzzed
def test_parquet_files(tmp_path: Path, tally: Tally, data: st.DataObject) -> None:
    tally.what = "Parquet files with columns of other types, without values, twice or missing"
    tally.tries += 1
    table = _table()
    for _ in range(data.draw(st.integers(1, 2))):
        index = data.draw(st.integers(0, table.num_columns - 1))
        name, column = table.column_names[index], table.column(index)
        change = data.draw(st.sampled_from(["type", "null", "drop", "double", "list"]))
        if change == "drop":
            table = table.remove_column(index)
        elif change == "double":
            table = table.append_column(name, column)
        elif change == "list":
            table = table.set_column(index, name, pa.array([[value] for value in column.to_pylist()]))
        elif change == "null":
            table = table.set_column(index, name, pa.nulls(len(table), column.type))
        else:
            kind = data.draw(st.sampled_from(TYPES))
            table = table.set_column(
                index,
                name,
                pa.nulls(len(table), kind)
                if kind != pa.string()
                else pa.array([str(value) for value in column.to_pylist()]),
            )
        if not table.num_columns:
            break
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file)
    try:
        files = ClickFiles.open(file, SCHEMA)
        rows = files.read(0)
    except ValueError:
        tally.count("refused")
        return
    assert len(rows.labels) == 50 and bool(torch.isfinite(rows.dense).all())


@given(st.integers(0, 10_000), st.integers(0, 7), st.booleans())
@seed(SEED)
@fuzzed
def test_bits_of_parquet_files(tmp_path: Path, tally: Tally, place: int, bit: int, cut: bool) -> None:
    tally.what = "Parquet files with a flipped bit, or cut"
    tally.tries += 1
    file = tmp_path / "rows.parquet"
    pq.write_table(_table(), file)
    content = bytearray(file.read_bytes())
    place %= len(content)
    content[place] ^= 1 << bit
    file.write_bytes(content[:place] if cut else content)
    try:
        ClickFiles.open(file, SCHEMA).read(0)
    except ValueError:
        tally.count("refused")
