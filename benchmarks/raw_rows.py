"""Compares what raw rows become offline and online, to the bit, for the public data sets.

    python benchmarks/raw_rows.py --criteo train_head.txt --avazu train_head.csv --frappe frappe_x1 --movielens ml-100k

Rows are prepared for training, validation and test. Those of the test split reach the model of a package in four more
ways: `score --raw`, `Predictor.rows`, the server's `rows`, and columns of text in the server's `infer`. The tensors are
compared with those of the prepared rows, and the probabilities of all ways, in batches of the same rows.
Generated rows that are hard to read are always among them, see hostile_rows.py.
"""

import csv
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from criteo_shaped import write_text
from fastapi.testclient import TestClient
from hostile_rows import HOSTILE, hostile_lines
from torch import Tensor

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets import movielens, public
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.crosses import add_crosses
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.inference.config import ScoringConfig, ServingConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor, merge
from nasrec_torchrec.inference.rows import RowReader
from nasrec_torchrec.inference.scoring import requests, score
from nasrec_torchrec.inference.server import create_app
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription


@dataclass(frozen=True)
class _Rows:
    """Files for training, validation and test, and the rows of the last as a caller would send them."""

    files: tuple[str, ...]
    schema: Schema
    form: TextFormat
    rows: list[dict[str, Any]]


def main(
    criteo: str | None = None,
    avazu: str | None = None,
    frappe: str | None = None,
    movielens: str | None = None,
    rows: int = 10_000,
    batch_size: int = 1000,
) -> None:
    """Prints how many rows of each data set were compared; a difference is an error.

    Args:
        criteo: Lines of Criteo Kaggle's train.txt. Generated ones are the training rows.
        avazu: First lines of Avazu's train.csv.
        frappe: Folder of Frappe as BARS distributes it.
        movielens: Folder with MovieLens-100K's ml-100k.inter, ml-100k.item and ml-100k.user.
        rows: Rows of each data set to compare; those that a file lacks are drawn from its columns.
        batch_size: Rows of a request.
    """
    makers: dict[str, Callable[[Path], _Rows]] = {"hostile": lambda folder: _hostile(folder, rows)}
    if criteo:
        makers["Criteo"] = lambda folder: _criteo(folder, Path(criteo), rows)
    if avazu:
        makers["Avazu"] = lambda folder: _avazu(folder, Path(avazu), rows)
    if frappe:
        makers["Frappe"] = lambda folder: _frappe(folder, Path(frappe), rows)
    if movielens:
        makers["MovieLens-100K"] = lambda folder: _movielens(folder, Path(movielens), rows)
    print("Equal to the bit, in training preparation, score --raw, Predictor.rows, and the server's rows and infer:")
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as temporary:
            count, seconds = _compare(Path(temporary), make(Path(temporary)), batch_size)
        microseconds = 1e6 * seconds / count
        print(f"{name:15} {count:>6,} rows, {microseconds:>4.0f} us of a core to read a row", flush=True)


def _compare(folder: Path, given: _Rows, batch_size: int) -> tuple[int, float]:
    """Raises ValueError at a difference; returns how many rows were compared, and the seconds to read them."""
    data, package = folder / "data", folder / "package"
    histories = [feature for feature in given.schema.sparse if feature.ids == "history"]
    schema = given.schema.without([feature.name for feature in histories])
    # Which rows a model is trained on changes no value of the others.
    raw = RawData(given.files, schema, given.form, split=SplitConfig("given", keep_negatives=0.5))
    prepare(raw, data, PreparationConfig(max_rejects=0))
    if histories:
        data = folder / "with-histories"
        add_crosses(folder / "data", data, histories)
    files = open_split(data, "test")
    torch.manual_seed(0)
    model = ModelDescription(files.schema, Baseline("mlp", (8, 16), (16, 1))).build().eval()
    predictor = export(model, files.schema, package, dictionaries=data / DICTIONARIES)
    wanted = list(requests(files.load(), predictor, batch_size))
    batches = [given.rows[first : first + batch_size] for first in range(0, len(given.rows), batch_size)]
    reader = RowReader.of_package(package, predictor.manifest)
    started = time.thread_time()
    read = [reader.read(batch).request for batch in batches]
    seconds = time.thread_time() - started
    for name in ("ids", "lengths", "dense"):
        _require_equal(f"the {name} of Predictor.rows", getattr(merge(read), name), getattr(merge(wanted), name))
    probabilities = torch.cat([predictor.predict(request) for request in wanted])
    for way, found in _ways(folder, package, predictor, given, batches):
        _require_equal(f"the probabilities of {way}", found, probabilities)
    return len(probabilities), seconds


def _ways(
    folder: Path, package: Path, predictor: Predictor, given: _Rows, batches: Sequence[list[dict[str, Any]]]
) -> Iterator[tuple[str, Tensor]]:
    config = ScoringConfig(raw=True, batch_size=len(batches[0]))
    score(package, [given.files[-1]], folder / "scores", config)
    parts = [pq.read_table(file) for file in sorted((folder / "scores").glob("part-*.parquet"))]
    yield "score --raw", torch.from_numpy(pa.concat_tables(parts).column("probability").to_numpy().copy())
    yield "Predictor.rows", torch.cat([predictor.rows(batch) for batch in batches])
    rows = len(batches[0])
    with TestClient(create_app(package, ServingConfig(max_rows=rows, max_batch_size=rows))) as client:

        def answer(path: str, body: dict[str, Any]) -> Tensor:
            answered = client.post(f"/v2/models/nasrec/{path}", json=body)
            if answered.status_code != 200:
                raise ValueError(f"{path}: {answered.text}")
            return torch.tensor(answered.json()["outputs"][0]["data"], dtype=torch.float32)

        yield "rows over HTTP", torch.cat([answer("rows", {"rows": batch}) for batch in batches])
        if all(type(value) is str for value in batches[0][0].values()):  # what is text in the files
            yield "infer over HTTP", torch.cat([answer("infer", _columns(batch, given.schema)) for batch in batches])


def _columns(batch: list[dict[str, Any]], schema: Schema) -> dict[str, Any]:
    names = [name for name in schema.raw_columns if name != schema.label]
    columns = {name: [row[name] for row in batch] for name in names}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(batch)], "data": column} for name, column in columns.items()
    ]
    return {"inputs": inputs}


def _require_equal(what: str, found: Tensor | None, wanted: Tensor | None) -> None:
    if found is None or wanted is None:
        equal = found is wanted
    else:
        # As bits, so that -0 is not 0.
        equal = found.dtype == wanted.dtype and found.numpy().tobytes() == wanted.numpy().tobytes()
    if not equal:
        raise ValueError(f"{what}: expected those of the prepared rows, found others")


def _hostile(folder: Path, rows: int) -> _Rows:
    head, *lines = hostile_lines(2 * rows).encode().splitlines()
    raw = RawData((), HOSTILE, HOSTILE.text)
    return _text(folder, [head, *lines[:rows]], [head, *lines[rows:]], raw)


def _criteo(folder: Path, file: Path, rows: int) -> _Rows:
    raw = public.criteo_kaggle("", 100_000, 16)
    write_text(folder / "generated.txt", rows)
    lines = (folder / "generated.txt").read_bytes().splitlines()
    return _text(folder, lines, _enough(file, rows, b"\t"), raw)


def _avazu(folder: Path, file: Path, rows: int) -> _Rows:
    lines = _enough(file, rows, b",", header=True)
    return _text(folder, lines, lines, public.avazu("", 100_000, 16))


def _frappe(folder: Path, source: Path, rows: int) -> _Rows:
    raw = public.frappe(source, 16)
    head, *lines = Path(raw.files[0]).read_bytes().splitlines()
    tested = _enough(Path(raw.files[-1]), rows, b",", header=True)
    assert tested[0] == head
    return _text(folder, [head, *lines[:rows]], tested, raw)


def _movielens(folder: Path, source: Path, rows: int) -> _Rows:
    """Of all ratings in their order, the last rows are compared, with users and items that the others do not have."""
    table = movielens.read(source)
    table = table.take(pa.array(np.argsort(table.column("timestamp").to_numpy(), kind="stable")))
    files = []
    tested = len(table) - rows
    for name, first, last in (("train", 0, tested // 2), ("valid", tested // 2, tested), ("test", tested, len(table))):
        pq.write_table(table.slice(first, last - first), folder / f"{name}.parquet")
        files.append(str(folder / f"{name}.parquet"))
    schema = movielens.schema(16)
    return _Rows(tuple(files), schema, TextFormat(), table.slice(tested).to_pylist())


def _enough(file: Path, rows: int, delimiter: bytes, header: bool = False) -> list[bytes]:
    """Returns the first lines of a file; those that it lacks have each value of another line."""
    lines = file.read_bytes().splitlines()[: rows + header]
    head, lines = lines[:header], lines[header:]
    columns = list(zip(*(line.split(delimiter) for line in lines), strict=True))
    rng = np.random.default_rng(0)
    drawn = [[column[place] for place in rng.integers(len(lines), size=rows - len(lines))] for column in columns]
    return [*head, *lines, *map(delimiter.join, zip(*drawn, strict=True))]


def _text(folder: Path, known: list[bytes], tested: list[bytes], raw: RawData) -> _Rows:
    """Writes lines for training and validation, and those that are compared; the first line may be a header."""
    form = raw.text_format or TextFormat()
    head = [] if form.columns else known[:1]
    known, tested = known[len(head) :], tested[len(head) :]
    half = len(known) // 2
    files = []
    for name, lines in (("train", known[:half]), ("valid", known[half:]), ("test", tested)):
        (folder / f"{name}.csv").write_bytes(b"\n".join([*head, *lines]) + b"\n")
        files.append(str(folder / f"{name}.csv"))
    names = form.columns or tuple(head[0].decode().split(form.delimiter))
    lines_of = (line.decode() for line in tested)
    if form.quoting:
        read = csv.reader(lines_of, delimiter=form.delimiter)
    else:
        read = csv.reader(lines_of, delimiter=form.delimiter, quoting=csv.QUOTE_NONE)
    rows: list[dict[str, Any]] = [dict(zip(names, line, strict=True)) for line in read]
    return _Rows(tuple(files), raw.schema, form, rows)


if __name__ == "__main__":
    run(main)
