"""Damaged documents, tables and requests are refused with a ValueError, or are still what they should be."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import SMALL_SPACE, click_table, make_click_data, make_schema

from nasrec_torchrec import Architecture
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.description import ModelDescription

pytestmark = pytest.mark.chaos
SCHEMA = make_schema()
fuzzed = settings(
    max_examples=300,
    derandomize=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "0", "nan", "../x", "\x00", 10**400]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def _places(document: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in a JSON document."""
    inner: list[tuple[Any, ...]] = []
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        inner.append((*place, key))
        if isinstance(value, dict | list):
            inner += _places(value, (*place, key))
    return inner


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one to three places hold something else, or nothing."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        holder = document
        for key in path:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "remove", "double", "add"]))
        if change == "replace":
            holder[last] = draw(values)
        elif change == "remove":
            del holder[last]
        elif change == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = draw(values)
    return document


def _read(read: Any, document: Any) -> Any:
    try:
        return read(json.dumps(document))
    except ValueError:
        return None


ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
DESCRIPTION = ModelDescription(SCHEMA, ARCHITECTURE)


@given(damaged(json.loads(SCHEMA.to_json())))
@fuzzed
def test_schemas(document: Any) -> None:
    found = _read(Schema.from_json, document)
    if found is not None:
        assert Schema.from_json(found.to_json()) == found


@given(damaged(json.loads(ARCHITECTURE.to_json())) | values)
@fuzzed
def test_architectures(document: Any) -> None:
    found = _read(Architecture.from_json, document)
    if found is not None:
        assert Architecture.from_json(found.to_json()) == found


@given(damaged(json.loads(DESCRIPTION.to_json())))
@fuzzed
def test_model_descriptions(document: Any) -> None:
    found = _read(ModelDescription.from_json, document)
    if found is not None:
        assert ModelDescription.from_json(found.to_json()) == found


def _table() -> pa.Table:
    return click_table(make_click_data(SCHEMA, 50), SCHEMA)


TYPES = [pa.string(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.binary(), pa.null()]


@given(data=st.data())
@fuzzed
def test_parquet_files(tmp_path: Path, data: st.DataObject) -> None:
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
        return
    assert len(rows.labels) == 50 and bool(torch.isfinite(rows.dense).all())


@given(st.integers(0, 10_000), st.integers(0, 7), st.booleans())
@fuzzed
def test_bits_of_parquet_files(tmp_path: Path, place: int, bit: int, cut: bool) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(_table(), file)
    content = bytearray(file.read_bytes())
    place %= len(content)
    content[place] ^= 1 << bit
    file.write_bytes(content[:place] if cut else content)
    with contextlib.suppress(ValueError):
        ClickFiles.open(file, SCHEMA).read(0)
