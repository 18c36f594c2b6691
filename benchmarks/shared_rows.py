"""Measures what it saves to send the values of a user once, where a request ranks N candidates for that user.

    python benchmarks/shared_rows.py

It reads the body of a request as the server does, of the same N rows in two forms: every row with all of its values,
and the user's values once beside rows with the values of the candidates alone.
"""

import statistics
import time

import msgspec
import numpy as np
import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference import protocol
from nasrec_torchrec.inference.input_values import Limits
from nasrec_torchrec.inference.rows import RowReader


def main(rows: int = 500, users: int = 28, repeats: int = 40, seed: int = 0) -> None:
    """Prints the size of a body and the time to read it, for both forms.

    Args:
        rows: Rows per request.
        users: Number of the 39 features that belong to the user.
        repeats: Number of requests of each form.
        seed: Seed of the values.
    """
    dense = tuple(DenseFeature(f"number_{place}", "log1p") for place in range(13))
    sparse = tuple(SparseFeature(f"category_{place}", 10_000, ids="hash") for place in range(26))
    reader = RowReader(Schema("label", dense, sparse), {})
    rng = np.random.default_rng(seed)
    names = [feature.name for feature in (*dense, *sparse)]
    # Both kinds of features are shared between user and candidate.
    shared_names = set(rng.permutation(names)[:users])

    def value(name: str) -> float | str:
        return int(rng.integers(100)) if name.startswith("number") else f"{rng.integers(5000):08x}"

    apart, together = [], []
    for _ in range(repeats):
        user = {name: value(name) for name in names if name in shared_names}
        items = [{name: value(name) for name in names if name not in shared_names} for _ in range(rows)]
        apart.append(msgspec.json.encode({"rows": [user | item for item in items]}))
        together.append(msgspec.json.encode({"shared": user, "rows": items}))
    limits = Limits(rows, 2**20)
    print(f"{rows} rows of 39 features, {users} of them the user's")
    times: dict[str, list[float]] = {"all values in every row": [], "the user's values once": []}
    for bodies in zip(apart, together, strict=True):
        read = []
        for form, body in zip(times, bodies, strict=True):
            started = time.thread_time()
            read.append(protocol.decode_rows(body, reader, limits).request)
            times[form].append(time.thread_time() - started)
        assert torch.equal(read[0].ids, read[1].ids) and torch.equal(read[0].dense, read[1].dense)
    for (form, seconds), body in zip(times.items(), (apart[0], together[0]), strict=True):
        median = statistics.median(seconds[repeats // 4 :])
        print(f"{form:24}{len(body) / 1024:>8.1f} KiB{1e3 * median:>8.2f} ms of a core")


if __name__ == "__main__":
    run(main)
