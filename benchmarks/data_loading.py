"""Measures rows per second from disk to KeyedJaggedTensor batches, in turns in one process on one thread.

    python benchmarks/data_loading.py

There are three readers: (a) ours, which yields shuffled batches from prepared Parquet files; (b) pyarrow alone, which
decodes the same columns to numpy without batches, checks or shuffling; (c) what research code usually does, which is to
read text with the csv module and convert every batch in Python.
"""

import csv
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from criteo_shaped import write_text
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.preparation import prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.public import criteo_kaggle
from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.datasets.schema import Schema


def main(rows: int = 2_000_000, batch_size: int = 8192, rounds: int = 5, text_rows: int = 100_000) -> None:
    """Times the three readers in turns.

    Args:
        rows: Number of rows to generate.
        batch_size: Number of rows of a batch.
        rounds: Number of passes of each reader over the data.
        text_rows: Number of rows that the text reader converts in a pass.
    """
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        text, data = Path(folder) / "train.txt", Path(folder) / "data"
        write_text(text, rows)
        everything = SplitConfig("time", validation_share=0, test_share=0)
        schema = prepare(replace(criteo_kaggle(str(text), 500_000, 16), split=everything), data)
        files = open_split(data, "train")
        readers: dict[str, Callable[[], int]] = {
            "a": lambda: _count(TrainingReader(files, batch_size, 0)),
            "b": lambda: _decode(files),
            "c": lambda: _count(_convert(text, schema, batch_size, text_rows)),
        }
        _decode(files)  # both find the files in the page cache
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(rounds):
            for name, read in readers.items():
                started = time.perf_counter()
                rates[name].append(read() / (time.perf_counter() - started))
            print(f"round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:,.0f} rows/s" for name in readers))
    median = {name: statistics.median(found) for name, found in rates.items()}
    print(f"{rows:,} rows, batches of {batch_size:,}, medians of {rounds} rounds, pyarrow {pa.__version__}")
    print(f"  a  reader to KeyedJaggedTensor batches  {median['a']:>12,.0f} rows/s")
    print(f"  b  pyarrow decode to numpy              {median['b']:>12,.0f} rows/s   a / b = {_ratio(rates, 'b'):.2f}")
    print(f"  c  csv and Python conversion            {median['c']:>12,.0f} rows/s   a / c = {_ratio(rates, 'c'):.0f}")


def _ratio(rates: dict[str, list[float]], other: str) -> float:
    return statistics.median(a / b for a, b in zip(rates["a"], rates[other], strict=True))


def _count(batches: Iterator[Batch] | TrainingReader) -> int:
    return sum(batch.labels.numel() for batch in batches)


def _decode(files: ClickFiles) -> int:
    rows = 0
    for file in files.files:
        with pq.ParquetFile(file, memory_map=True) as opened:
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, columns=files.schema.columns, use_threads=False)
                for column in table.columns:
                    column.to_numpy()
                rows += table.num_rows
    return rows


def _convert(text: Path, schema: Schema, batch_size: int, rows: int) -> Iterator[Batch]:
    dense = len(schema.dense)
    moduli = [feature.num_embeddings - 1 for feature in schema.sparse if feature.num_embeddings]
    with text.open(newline="") as opened:
        lines = itertools.islice(csv.reader(opened, delimiter="\t"), rows)
        while batch := list(itertools.islice(lines, batch_size)):
            labels = torch.tensor([float(line[0]) for line in batch])
            numbers = [[math.log(max(int(v), 0) + 1) if v else 0.0 for v in line[1 : 1 + dense]] for line in batch]
            ids = [
                [int(v, 16) % modulus + 1 if v else 0 for v, modulus in zip(line[1 + dense :], moduli, strict=True)]
                for line in batch
            ]
            values = torch.tensor(ids).T.flatten()
            lengths = torch.ones(values.numel(), dtype=torch.int64)
            yield Batch(torch.tensor(numbers), KeyedJaggedTensor(schema.feature_names, values, lengths=lengths), labels)


if __name__ == "__main__":
    run(main)
