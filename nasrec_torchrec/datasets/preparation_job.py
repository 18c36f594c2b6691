"""What to prepare, and what makes one preparation the same as another."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import sources, splits, transform
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.contents import Content
from nasrec_torchrec.datasets.names import INTERNAL
from nasrec_torchrec.datasets.pieces import Reading, Rows, typed_schema, with_partitions
from nasrec_torchrec.datasets.prepared import MANIFEST_FORMAT
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.sources import Source
from nasrec_torchrec.datasets.transform import Extra

# Columns of the parsed rows besides those of the schema: what a split rule reads, and the row's line in its file.
SPLIT_KEY, LINE = f"{INTERNAL}split", f"{INTERNAL}line"


@dataclass(frozen=True)
class Derivation:
    """Columns that are derived from raw ones before these are parsed.

    Args:
        inputs: raw columns that are read.
        outputs: columns that are added.
        add: function that returns a table with the columns added.
        identity: text that changes whenever the result would change.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    add: Callable[[pa.Table], pa.Table]
    identity: str


@dataclass(frozen=True)
class RawData:
    """What to prepare.

    Args:
        files: paths and URIs of Parquet files and of text files, plain or compressed; ``*`` is allowed.
        schema: schema of the raw columns.
        text_format: format of the text files; by default what the schema says.
        split: how rows are divided; by default what the schema says, else stratified.
        title: title of the data set in the manifest.
        derivation: columns that are not in the files.
        identity: text that stands for the content of the files if they are temporary.
    """

    files: tuple[str, ...]
    schema: Schema
    text_format: TextFormat | None = None
    split: SplitConfig | None = None
    title: str = ""
    derivation: Derivation | None = None
    identity: str = ""


class Job:
    """A preparation to run.

    Args:
        raw: raw files and what they mean.
        out: folder to write.
        config: how to do the work.

    Raises:
        ValueError: If a file cannot be read, lacks a column, or has a column of a type that can never fit.
    """

    def __init__(self, raw: RawData, out: Path, config: PreparationConfig) -> None:
        self.raw, self.config, self.out = raw, config, out
        text = raw.text_format or raw.schema.text
        # What the schema says is what raw rows are read by when they are scored.
        self.schema = replace(raw.schema, text=text)
        self.split = raw.split or raw.schema.split or SplitConfig()
        self.threads = config.threads or os.cpu_count() or 1
        self.files = sources.find(raw.files)
        key = [self.split.split_column] if self.split.split_column else []
        derivation = raw.derivation
        made = derivation.outputs if derivation else ()
        histories = [feature.name for feature in raw.schema.sparse if feature.ids == "history"]
        if histories:
            raise ValueError(
                f"schema: sparse: histories are added to prepared data (see datasets.crosses), found {histories}"
            )
        if self.split.keep_negatives < 1 and raw.schema.tasks:
            raise ValueError(
                f"keep_negatives: expected 1 with several labels ({', '.join(raw.schema.labels)}), found "
                f"{self.split.keep_negatives:g}: rows are drawn by the first label, which shifts the rates of the "
                "others in a way that nothing corrects"
            )
        needed = [*raw.schema.raw_columns, *key, *(derivation.inputs if derivation else ())]
        wanted = [name for name in dict.fromkeys(needed) if name not in made]
        self.reading = Reading(self.files, lambda _: wanted, text, config.piece_mib)
        self.extra: dict[str, Extra] = {}
        if self.split.split_column:
            kind = "text" if self.split.split == "column" else "time"
            self.extra[SPLIT_KEY] = Extra(self.split.split_column, kind)  # type: ignore[arg-type]
        self.split_of_file: list[int | None] = [None] * len(self.files)
        if self.split.split == "given":
            self.split_of_file = [splits.of_file(file.uri) for file in self.files]
            unnamed = [file for file, index in zip(self.files, self.split_of_file, strict=True) if index is None]
            if unnamed:
                raise ValueError(
                    f"split given: {unnamed[0].uri}: expected a file named {', '.join(splits.NAMES)}, or in a folder "
                    "of such a name"
                )
        for file in self.files:
            self._check(file)

    def parse(self, table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
        """Reads raw rows, see :func:`~nasrec_torchrec.datasets.transform.parse`."""
        if self.raw.derivation:
            table = self.raw.derivation.add(table)
        return transform.parse(table, self.schema, self.extra)

    def parse_rows(self, rows: Rows) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
        """Reads the rows of a piece.

        Returns:
            tuple: The rows that could be read, the line ``(N,)`` of each, and the reason for each line that is none.

        Raises:
            ValueError: If the type of a column can never fit. The message names the piece and the column.
        """
        try:
            parsed, bad = self.parse(rows.table)
        except ValueError as error:
            raise ValueError(f"{rows.where}: {error}") from None
        rejects = rows.rejects | {int(rows.lines[row]): reason for row, reason in bad.items()}
        return parsed, np.delete(rows.lines, list(bad)).astype(np.int64), rejects

    def identity(self, contents: Sequence[Content]) -> str:
        """Returns a text that is equal for two preparations with the same result."""
        description = {
            "format": MANIFEST_FORMAT,
            "schema": self.schema.to_dict(),
            "split": self.split.to_dict(),
            "split_of_file": self.split_of_file,
            # Without times, which earlier versions did not keep, histories cannot count what was earlier.
            **({"times": True} if self.split.split == "time" and self.split.split_column else {}),
            "piece_mib": self.config.piece_mib,
            "derivation": self.raw.derivation.identity if self.raw.derivation else None,
            **({"partitions": folders} if any(folders := [file.partitions for file in self.files]) else {}),
            "files": self.raw.identity or [content.sha256 for content in contents],
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def _check(self, source: Source) -> None:
        """Finds types that can never fit before the first row is read."""
        self.reading.header(source)
        if source.typed:
            empty = with_partitions(typed_schema(source).empty_table(), source)
            try:
                self.parse(empty.select(self.reading.wanted(())))
            except ValueError as error:
                raise ValueError(f"{source.uri}: {error}") from None
