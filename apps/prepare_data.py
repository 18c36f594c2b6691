"""Prepares raw click logs: schema, manifest, and sharded Parquet files per split."""

import json
from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets import movielens, public
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFlags
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import read_manifest
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.statistics import measure
from nasrec_torchrec.runs.record import CONFIG, record_start


def criteo(
    source: str, out: Path, config: PreparationConfig, max_num_embeddings: int = 500_000, embedding_dim: int = 16
) -> None:
    """Prepares Criteo Kaggle, split 8/1/1 with equal click rates like the research code does.

    Args:
        source: train.txt, plain or .gz; a path or a URI.
        out: folder that receives the data set.
        max_num_embeddings: rows of a table, at most.
        embedding_dim: width of the embedding tables.
    """
    _prepare(public.criteo_kaggle(source, max_num_embeddings, embedding_dim), out, config)


def criteo1tb(
    source: str, out: Path, config: PreparationConfig, max_num_embeddings: int = 40_000_000, embedding_dim: int = 16
) -> None:
    """Prepares days of Criteo 1TB, split by time: the last twenty-fourth is validation and test.

    Args:
        source: the days, for instance 'day_*.gz'; paths or URIs, several separated by commas.
        out: folder that receives the data set.
        max_num_embeddings: rows of a table, at most.
        embedding_dim: width of the embedding tables.
    """
    _prepare(public.criteo_1tb(source.split(","), max_num_embeddings, embedding_dim), out, config)


def avazu(
    source: str, out: Path, config: PreparationConfig, max_num_embeddings: int = 500_000, embedding_dim: int = 16
) -> None:
    """Prepares Avazu, split 8/1/1 with equal click rates like the research code does.

    Args:
        source: train.csv, plain or .gz; a path or a URI.
        out: folder that receives the data set.
        max_num_embeddings: rows of a table, at most.
        embedding_dim: width of the embedding tables.
    """
    _prepare(public.avazu(source, max_num_embeddings, embedding_dim), out, config)


def kdd2012(
    source: str, out: Path, config: PreparationConfig, max_num_embeddings: int = 500_000, embedding_dim: int = 16
) -> None:
    """Prepares KDD Cup 2012 track 2, split 8/1/1 with equal click rates like the research code does.

    Args:
        source: folder or URI that holds training.txt and userid_profile.txt.
        out: folder that receives the data set.
        max_num_embeddings: rows of a table, at most.
        embedding_dim: width of the embedding tables.
    """
    _prepare(public.kdd_2012(source, max_num_embeddings, embedding_dim), out, config)


def frappe(source: Path, out: Path, config: PreparationConfig, embedding_dim: int = 16) -> None:
    """Prepares Frappe with the splits it comes in.

    Args:
        source: folder that holds train.csv, valid.csv and test.csv.
        out: folder that receives the data set.
        embedding_dim: width of the embedding tables.
    """
    _prepare(public.frappe(source, embedding_dim), out, config)


def movielens100k(out: Path, source: Path | None = None, embedding_dim: int = 16, overwrite: bool = False) -> None:
    """Prepares MovieLens-100K, split 80/10/10 by time.

    Args:
        out: folder that receives the data set.
        source: folder with the raw files; unset, they are taken from the package that carries them.
        embedding_dim: width of the embedding tables.
        overwrite: replace another data set at the same place.
    """
    movielens.prepare(out, source, embedding_dim, overwrite)
    _report(out)


def table(source: str, schema: Path, out: Path, text: TextFlags, split: SplitConfig, config: PreparationConfig) -> None:
    """Prepares any CSV, TSV or Parquet files that a schema file describes; see docs/data.md.

    Args:
        source: files, patterns with * and URIs, several separated by commas; .gz is compressed text.
        schema: JSON or YAML file.
        out: folder that receives the data set.
    """
    columns = Schema.read(schema)
    raw = RawData(tuple(source.split(",")), columns, text.over(columns.text), split)
    _prepare(raw, out, config)


def describe(folder: Path, /, split: str = "train", top: int = 5, picture: Path | None = None) -> None:
    """Checks a prepared data set against its checksums and prints what is in it, with a picture.

    Args:
        folder: of the data set.
        split: whose columns are measured.
        top: most frequent values to print of each feature.
        picture: PNG file to write; unset, statistics.png in the folder.
    """
    measured = measure(folder, split, top)
    print(measured.text())
    print(f"picture: {measured.draw(picture or folder / 'statistics.png')}")


def _prepare(raw: RawData, out: Path, config: PreparationConfig) -> None:
    prepare(raw, out, config)
    _report(out)


def _report(out: Path) -> None:
    if not (out / CONFIG).exists():
        record_start(out)
    manifest = read_manifest(out)
    splits = {
        name: {key: split[key] for key in ("rows", "positives")} | {"files": len(split["files"])}
        for name, split in manifest["splits"].items()
    }
    print(json.dumps({"out": str(out), "rejected": manifest["rejected"], "splits": splits}, indent=2))


if __name__ == "__main__":
    run(criteo, criteo1tb, avazu, kdd2012, frappe, movielens100k, table, describe)
