"""Measures how fast a server reads raw rows of Criteo's shape: 13 numbers and 26 categorical features.

    python benchmarks/reading_rows.py

It reads the bodies of requests as the server does, from JSON to tensors. Each kind of ids is read with categorical
values that were all seen before, with values that all occur for the first time, and with half of each.
"""

import statistics
import time

import msgspec
import numpy as np
import pyarrow as pa

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.features import DenseFeature, IdRule, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference import protocol
from nasrec_torchrec.inference.input_values import Limits
from nasrec_torchrec.inference.rows import RowReader

_KINDS: tuple[IdRule, ...] = ("hex", "hash", "dictionary", "id")
_KNOWN = 20_000


def main(batch_sizes: tuple[int, ...] = (1, 64, 512), rows: int = 12_800, seed: int = 0) -> None:
    """Prints milliseconds of a core per request, and rows per second of a core.

    Args:
        batch_sizes: Rows per request.
        rows: Number of rows of each kind to read, in at most 100 requests.
        seed: Seed of the values.
    """
    rng = np.random.default_rng(seed)
    print("ids          values        rows   ms of a core    rows/s")
    for kind in _KINDS:
        reader = _reader(kind)
        limits = Limits(max(batch_sizes), 2**20)
        for size in batch_sizes:
            times: dict[str, list[float]] = {"seen": [], "half new": [], "new": []}
            fresh = 0
            for _ in range(min(100, rows // size)):
                for form, seconds in times.items():
                    share = {"seen": 0.0, "half new": 0.5, "new": 1.0}[form]
                    known = rng.integers(_KNOWN, size=(size, 26))
                    news = _KNOWN + fresh + np.arange(size * 26).reshape(size, 26)
                    fresh += size * 26
                    numbers = np.where(rng.random((size, 26)) < share, news, known)
                    body = _body(rng, kind, numbers)
                    if form == "seen":  # whatever it holds has been read before
                        protocol.decode_rows(body, reader, limits)
                    started = time.thread_time()
                    protocol.decode_rows(body, reader, limits)
                    seconds.append(time.thread_time() - started)
            for form, seconds in times.items():
                median = statistics.median(seconds)
                print(f"{kind:12} {form:10} {size:>7} {1e3 * median:>14.3f} {size / median:>9,.0f}", flush=True)


def _reader(kind: IdRule) -> RowReader:
    dense = tuple(DenseFeature(f"number_{place}", "log1p") for place in range(13))
    sparse = tuple(SparseFeature(f"category_{place}", 2**30, ids=kind) for place in range(26))
    words = pa.array([_value("dictionary", number) for number in range(2 * _KNOWN)])
    return RowReader(Schema("label", dense, sparse), {f"t_category_{place}": words for place in range(26)})


def _body(rng: np.random.Generator, kind: IdRule, numbers: np.ndarray) -> bytes:
    dense = rng.integers(1000, size=(len(numbers), 13))
    rows = []
    for own, ids in zip(dense.tolist(), numbers.tolist(), strict=True):
        row = {f"number_{place}": value for place, value in enumerate(own)}
        rows.append(row | {f"category_{place}": _value(kind, number) for place, number in enumerate(ids)})
    return msgspec.json.encode({"rows": rows})


def _value(kind: IdRule, number: int) -> str | int:
    return number if kind == "id" else f"{number * 2654435761 % 2**32:08x}"


if __name__ == "__main__":
    run(main)
