"""Preparing data sets as functions: what ``nasrec prepare`` does, for notebooks and scripts.

PyTorch and pyarrow are imported when one of them is called. All of them stream their files, in bounded memory, and a
preparation that was killed resumes when it is started again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, SplitFlags, TextFlags

if TYPE_CHECKING:
    from nasrec_torchrec.datasets.preparation import RawData
    from nasrec_torchrec.datasets.proposal import Proposal
    from nasrec_torchrec.datasets.statistics import Statistics

_DEFAULT_CONFIG = PreparationConfig()
_NO_SPLIT = SplitFlags()
_NO_FLAGS = TextFlags()


def propose(
    source: str | Sequence[str],
    out: Path | str | None = None,
    label: str | None = None,
    positive: str | None = None,
    label_above: float | None = None,
    sample_rows: int = 200_000,
    embedding_dim: int = 16,
    overwrite: bool = False,
    text: TextFlags = _NO_FLAGS,
    query: str | None = None,
) -> "Proposal":
    """Looks at raw files and proposes a schema that can be prepared as it is; see docs/data.md.

    Columns that reveal the label by themselves, keys and constants are left out. Comments in the file that is written
    say what was seen of each column.

    Args:
        source: files, folders, patterns with * and URIs, several separated by commas; .gz is compressed text. With a
            query, the database.
        out: YAML file to write the schema to; unset, none is written.
        label: column that says what was clicked; unset, one that is called label, clicked, target or the like.
        positive: value of the label that is a click, for labels other than 0 and 1, yes and no, true and false.
        label_above: number above which the label is a click, for a label of numbers.
        sample_rows: number of rows to look at, spread over all files.
        embedding_dim: width of the embedding tables.
        overwrite: whether to replace a file at the same place.
        text: how lines of text become columns, where that should not be found out.
        query: SQL query whose rows are looked at, see :func:`prepare`.

    Returns:
        The schema, and what was seen of every column.

    Raises:
        ValueError: If a file cannot be read, there is no label of two values, or a file is in the way.

    Example::

        from nasrec_torchrec import datasets
        print(datasets.propose("logs/*.csv.gz", "schema.yaml", label="clicked").schema)
    """
    from nasrec_torchrec.datasets import proposed
    from nasrec_torchrec.datasets.proposal import propose as propose_from
    from nasrec_torchrec.datasets.sampling import sample_files
    from nasrec_torchrec.runs.files import write_text
    from nasrec_torchrec.runs.paths import to_path

    if sample_rows < 1:
        raise ValueError(f"sample_rows: expected a positive number, found {sample_rows}")
    if out is not None and to_path(out).exists() and not overwrite:
        raise ValueError(f"{out}: is already there; --overwrite true replaces it")
    with _files(source, query) as files:
        found = propose_from(sample_files(files, text, sample_rows), label, positive, label_above, embedding_dim)
    if out is not None:
        command = proposed.command(found, source if isinstance(source, str) else ",".join(source), out, query)
        write_text(to_path(out), proposed.to_yaml(found, command))
    return found


def prepare(
    source: str | Sequence[str],
    schema: Path | str,
    out: Path | str,
    text: TextFlags = _NO_FLAGS,
    split: SplitFlags = _NO_SPLIT,
    config: PreparationConfig = _DEFAULT_CONFIG,
    query: str | None = None,
) -> dict[str, Any]:
    """Prepares CSV, TSV, JSON lines, Parquet or Arrow files, or the rows of a query, that a schema file describes; see
    docs/data.md.

    Args:
        source: files, folders, patterns with * and URIs, several separated by commas; .gz is compressed text. With a
            query, the database: postgresql://..., sqlite:///FILE, a file of DuckDB, or duckdb for a query that names
            its files itself.
        schema: JSON or YAML file with the schema.
        out: folder that receives the data set.
        text: how lines of text become columns, if that differs from what the schema says.
        split: how the rows are divided into train, validation and test, if that differs from what the schema says;
            a SplitConfig replaces all that it says.
        config: how the work is done.
        query: SQL query whose rows are prepared. DuckDB runs it over local files, such as "SELECT * FROM 'log.csv' JOIN
            'items.parquet' USING (item)".

    Returns:
        The folder, the number of rejected rows, and rows, positives and files of each split; of each task, the
        rows whose label is known and the positives among them.

    Raises:
        ValueError: If a file, the schema or too many rows cannot be used.

    Example::

        from nasrec_torchrec import datasets
        datasets.prepare("logs/*.csv.gz", "schema.yaml", "data/clicks")
    """
    from nasrec_torchrec.datasets.preparation import RawData
    from nasrec_torchrec.datasets.schema import Schema
    from nasrec_torchrec.runs.paths import to_path

    described = Schema.read(to_path(schema))
    rule = split if isinstance(split, SplitConfig) else split.over(described.split)
    with _files(source, query) as files:
        return _prepare(RawData(tuple(files), described, text.over(described.text), rule), out, config)


def prepare_criteo(
    source: str,
    out: Path | str,
    config: PreparationConfig = _DEFAULT_CONFIG,
    max_num_embeddings: int = 500_000,
    embedding_dim: int = 16,
) -> dict[str, Any]:
    """Prepares Criteo Kaggle, split 8/1/1 with equal click rates as in the research code.

    Args:
        source: train.txt, plain or .gz; a path or a URI.
        out: folder that receives the data set.
        config: how the work is done.
        max_num_embeddings: largest number of rows of a table.
        embedding_dim: width of the embedding tables.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import public

    return _prepare(public.criteo_kaggle(source, max_num_embeddings, embedding_dim), out, config)


def prepare_criteo1tb(
    source: str,
    out: Path | str,
    config: PreparationConfig = _DEFAULT_CONFIG,
    max_num_embeddings: int = 40_000_000,
    embedding_dim: int = 16,
) -> dict[str, Any]:
    """Prepares days of Criteo 1TB, split by time: the last twenty-fourth is validation and test.

    Args:
        source: the days, for instance 'day_*.gz'; paths or URIs, several separated by commas.
        out: folder that receives the data set.
        config: how the work is done.
        max_num_embeddings: largest number of rows of a table.
        embedding_dim: width of the embedding tables.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import public

    return _prepare(public.criteo_1tb(source.split(","), max_num_embeddings, embedding_dim), out, config)


def prepare_avazu(
    source: str,
    out: Path | str,
    config: PreparationConfig = _DEFAULT_CONFIG,
    max_num_embeddings: int = 500_000,
    embedding_dim: int = 16,
) -> dict[str, Any]:
    """Prepares Avazu, split 8/1/1 with equal click rates as in the research code.

    Args:
        source: train.csv, plain or .gz; a path or a URI.
        out: folder that receives the data set.
        config: how the work is done.
        max_num_embeddings: largest number of rows of a table.
        embedding_dim: width of the embedding tables.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import public

    return _prepare(public.avazu(source, max_num_embeddings, embedding_dim), out, config)


def prepare_kdd2012(
    source: str,
    out: Path | str,
    config: PreparationConfig = _DEFAULT_CONFIG,
    max_num_embeddings: int = 500_000,
    embedding_dim: int = 16,
) -> dict[str, Any]:
    """Prepares KDD Cup 2012 track 2, split 8/1/1 with equal click rates as in the research code.

    Args:
        source: folder or URI that holds training.txt and userid_profile.txt.
        out: folder that receives the data set.
        config: how the work is done.
        max_num_embeddings: largest number of rows of a table.
        embedding_dim: width of the embedding tables.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import public

    return _prepare(public.kdd_2012(source, max_num_embeddings, embedding_dim), out, config)


def prepare_frappe(
    source: Path | str, out: Path | str, config: PreparationConfig = _DEFAULT_CONFIG, embedding_dim: int = 16
) -> dict[str, Any]:
    """Prepares Frappe with its own splits.

    Args:
        source: folder that holds train.csv, valid.csv and test.csv.
        out: folder that receives the data set.
        config: how the work is done.
        embedding_dim: width of the embedding tables.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import public
    from nasrec_torchrec.runs.paths import to_path

    return _prepare(public.frappe(to_path(source), embedding_dim), out, config)


def prepare_movielens100k(
    out: Path | str, source: Path | str | None = None, embedding_dim: int = 16, overwrite: bool = False
) -> dict[str, Any]:
    """Prepares MovieLens-100K, split 80/10/10 by time.

    Args:
        out: folder that receives the data set.
        source: folder with the raw files; unset, they are taken from the package that carries them.
        embedding_dim: width of the embedding tables.
        overwrite: replace another data set at the same place.

    Returns:
        The same as :func:`prepare`.
    """
    from nasrec_torchrec.datasets import movielens
    from nasrec_torchrec.runs.paths import to_path

    out = to_path(out)
    movielens.prepare(out, None if source is None else to_path(source), embedding_dim, overwrite)
    return _summary(out)


def describe(
    folder: Path | str, /, split: str = "train", top: int = 5, picture: Path | str | None = None
) -> "tuple[Statistics, Path]":
    """Checks a prepared data set against its checksums and measures what is in it.

    Args:
        folder: folder of a prepared data set.
        split: split whose columns are measured.
        top: number of the most frequent values to print of each feature.
        picture: PNG file to write; if unset, statistics.png in the folder.

    Returns:
        What was measured, which prints as tables, and the file with the picture.

    Raises:
        ValueError: If the data set is incomplete or differs from its checksums.
    """
    from nasrec_torchrec.datasets.prepared import PICTURE
    from nasrec_torchrec.datasets.statistics import measure
    from nasrec_torchrec.runs.paths import to_path

    folder = to_path(folder)
    measured = measure(folder, split, top)
    return measured, measured.draw(folder / PICTURE if picture is None else to_path(picture))


@contextmanager
def _files(source: str | Sequence[str], query: str | None) -> Iterator[list[str]]:
    """Yields the files to read: those that are named, or one with the rows of a query."""
    if query is None:
        files = source.split(",") if isinstance(source, str) else list(source)
        if not any(files):
            raise ValueError("source: expected files, folders, patterns or URIs, found none")
        yield files
        return
    from nasrec_torchrec.datasets.queries import queried

    if not isinstance(source, str):
        raise ValueError("source: with a query, expected one database")
    with queried(source, query) as file:
        yield [file]


def _prepare(raw: "RawData", out: Path | str, config: PreparationConfig) -> dict[str, Any]:
    from nasrec_torchrec.datasets.preparation import prepare as prepare_raw
    from nasrec_torchrec.runs.paths import to_path

    out = to_path(out)
    prepare_raw(raw, out, config)
    return _summary(out)


def _summary(out: Path) -> dict[str, Any]:
    from nasrec_torchrec.datasets.prepared import read_manifest
    from nasrec_torchrec.runs.record import CONFIG, record_start

    if not (out / CONFIG).exists():
        record_start(out)
    manifest = read_manifest(out)
    splits = {
        name: {key: split[key] for key in ("rows", "positives", "tasks") if key in split}
        | {"files": len(split["files"])}
        for name, split in manifest["splits"].items()
    }
    return {"out": str(out), "rejected": manifest["rejected"], "splits": splits}
