"""A prepared data set on disk: ``schema.json``, ``manifest.json`` and one Parquet file per split."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.files import read_text

SPLITS = ("train", "validation", "test")


def write_prepared(folder: Path, schema: Schema, splits: Mapping[str, pa.Table], source: str) -> None:
    """Writes a data set; the folder appears only when it is complete, and replaces an earlier one.

    Args:
        folder: where to.
        schema: of the tables.
        splits: a table per name in ``SPLITS``.
        source: where the rows come from, for the manifest.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        (temporary / "schema.json").write_text(schema.to_json())
        counts = {}
        for name in SPLITS:
            pq.write_table(splits[name], temporary / f"{name}.parquet", row_group_size=65_536)
            positives = pc.sum(splits[name].column(schema.label)).as_py()
            counts[name] = {"rows": splits[name].num_rows, "positives": int(positives or 0)}
        manifest = {"source": source, "splits": counts}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_schema(folder: Path) -> Schema:
    """The schema of a prepared data set.

    Raises:
        ValueError: when there is none or it is damaged.
    """
    return Schema.from_json(read_text(folder / "schema.json"))


def load_split(folder: Path, split: str) -> ClickData:
    """One split of a prepared data set, in memory.

    Raises:
        ValueError: for an unknown split, or a file that does not fit the schema.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, found {split!r}")
    return ClickData.from_parquet(folder / f"{split}.parquet", load_schema(folder))
