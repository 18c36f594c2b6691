"""Generated rows in the format of Criteo Kaggle's train.txt: 13 integers and 26 hexadecimal ids, some missing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from nasrec_torchrec.datasets.public import criteo_kaggle
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path

_BLOCK = 250_000


def write_text(file: Path, rows: int) -> None:
    """Writes rows as tab-separated text.

    Frequencies follow a power law, and a row has about 240 bytes, as in the original.
    """
    rng = np.random.default_rng(0)
    with (
        atomic_path(file) as temporary,
        temporary.open("wb") as out,
        progress_bar(rows, "generate", "row", True) as bar,
    ):
        for start in range(0, rows, _BLOCK):
            table = _block(rng, min(_BLOCK, rows - start))
            options = pcsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            pcsv.write_csv(table, out, options)
            bar.update(table.num_rows)


def _block(rng: np.random.Generator, rows: int) -> pa.Table:
    schema = criteo_kaggle("", 2**31, 16).schema
    columns = {schema.label: pa.array((rng.random(rows) < 0.25).astype(np.int8))}
    for feature in schema.dense:
        columns[feature.name] = pa.array(rng.geometric(0.02, rows) - 2, mask=rng.random(rows) < 0.2)
    for sparse in schema.sparse:
        assert sparse.num_embeddings is not None
        # An odd factor spreads the numbers over all 32 bits and keeps them apart.
        values = rng.zipf(1.2, rows) % sparse.num_embeddings * 2654435761 % 2**32
        digits = np.frombuffer(values.astype(">u4").tobytes().hex().encode(), "S8")
        columns[sparse.name] = pa.array(digits, pa.binary(), mask=rng.random(rows) < 0.1).cast(pa.string())
    return pa.table(columns)
