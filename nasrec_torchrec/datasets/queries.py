"""Rows that an SQL query returns: of local files by DuckDB, or of a database by DuckDB or ADBC."""

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.runs.redaction import redact

# Drivers of databases by the scheme of their URI.
_DRIVERS = {
    "postgresql": "adbc_driver_postgresql",
    "postgres": "adbc_driver_postgresql",
    "sqlite": "adbc_driver_sqlite",
}
# The source of a query that names its files itself.
_IN_MEMORY = "duckdb"
_NAME = "query.parquet"


@contextmanager
def queried(source: str, query: str) -> Iterator[str]:
    """Yields a temporary Parquet file with the rows that a query returns.

    Args:
        source: URI of a database (``postgresql://...``, ``sqlite:///file``), a file of DuckDB, or ``duckdb`` for a
            query that names its files itself, such as ``SELECT * FROM 'logs/*.csv' JOIN 'items.parquet' USING (item)``.
        query: query in SQL.

    Raises:
        ValueError: If the library for it is not installed, or the query fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _NAME
        try:
            _write(source, query, file)
        except (OSError, ValueError):
            raise
        except Exception as error:  # databases raise exceptions of their own
            raise ValueError(f"query: {redact(' '.join(str(error).split()))[:1000]}") from None
        yield str(file)


def _write(source: str, query: str, file: Path) -> None:
    scheme, separator, _ = source.partition("://")
    if separator and scheme not in _DRIVERS:
        schemes = ", ".join(f"{known}://" for known in sorted(_DRIVERS))
        raise ValueError(
            f"source: with --query, expected a URI that begins with one of {schemes}, a file of DuckDB, or "
            f"{_IN_MEMORY!r} for a query that names its files itself; found {redact(source)!r}"
        )
    if separator:
        driver = _library(f"{_DRIVERS[scheme]}.dbapi", _DRIVERS[scheme].replace("_", "-"))
        where = source.removeprefix("sqlite:///") if scheme == "sqlite" else source
        with closing(driver.connect(where)) as connection, closing(connection.cursor()) as cursor:
            if scheme != "sqlite":
                query = _with_plain_types(query, cursor.adbc_execute_schema(query.rstrip().rstrip(";")))
            cursor.execute(query)
            _copy(cursor.fetch_record_batch(), file)
        return
    duckdb = _library("duckdb", "duckdb")
    stored = source != _IN_MEMORY
    if stored and not Path(source).exists():
        raise ValueError(
            f"source: with --query, expected {_IN_MEMORY!r}, a file of DuckDB or a URI, found no file at {source!r}"
        )
    with closing(duckdb.connect(source if stored else ":memory:", read_only=stored)) as connection:
        relation = connection.sql(query)
        if relation is None:
            raise ValueError("query: expected a query that returns rows, such as SELECT ...")
        _copy(pa.RecordBatchReader.from_stream(relation), file)


def _with_plain_types(query: str, schema: pa.Schema) -> str:
    """Returns the query with columns of PostgreSQL's own types as numbers and text, in the form that it gives them."""
    columns = []
    for field in schema:
        name = '"' + field.name.replace('"', '""') + '"'
        metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = metadata.get("POSTGRESQL:type", "")
        if kind == "numeric":
            columns.append(f"CAST({name} AS {_number_type(int(metadata.get('POSTGRESQL:typmod', -1)))}) AS {name}")
        elif kind == "interval":
            columns.append(f"CAST(EXTRACT(EPOCH FROM {name}) AS float8) AS {name}")
        elif kind == "bpchar" or isinstance(field.type, pa.BaseExtensionType):  # padded text; uuid, json, inet, ...
            columns.append(f"CAST({name} AS text) AS {name}")
        else:
            columns.append(name)
    if columns == [f'"{name}"' for name in schema.names]:
        return query
    return f"SELECT {', '.join(columns)} FROM (\n{query.rstrip().rstrip(';')}\n) AS rows_of_query"


def _number_type(modifier: int) -> str:
    """Returns a type for a ``numeric``, whose digits in all and behind the point are in the modifier, if known."""
    digits, behind = ((modifier - 4) >> 16, (modifier - 4) & 0x7FF) if modifier >= 4 else (0, 1)
    if behind:
        return "float8"
    return "int8" if digits <= 18 else "text"


def _copy(reader: pa.RecordBatchReader, file: Path) -> None:
    with pq.ParquetWriter(file, reader.schema, compression="zstd", compression_level=1) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"query: needs {package}, which is not installed: pip install 'nasrec-torchrec[sql]'"
        ) from None
