"""Prepares a data set: schema, manifest and one Parquet file per split."""

from pathlib import Path
from typing import Literal

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets import movielens
from nasrec_torchrec.files import read_text


def main(
    out: Path, dataset: Literal["movielens100k"] = "movielens100k", source: Path | None = None, embedding_dim: int = 16
) -> None:
    """Prepares a data set: schema, manifest and one Parquet file per split.

    Args:
        out: folder that receives the data set; replaced when it exists.
        dataset: which one.
        source: folder with the raw files; unset, they are taken from the package that carries them.
        embedding_dim: width of the embedding tables.
    """
    movielens.prepare(out, source, embedding_dim)
    print(read_text(out / "manifest.json"))


if __name__ == "__main__":
    run(main)
