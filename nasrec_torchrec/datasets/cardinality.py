"""The number of distinct values of columns over all rows of files, estimated by DuckDB's HyperLogLog."""

import sys
from collections.abc import Sequence

from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.sources import Source
from nasrec_torchrec.runs.files import local_names

# Reading more than this would keep somebody waiting who asked for a proposal.
_MOST_BYTES = 4 << 30


def estimated_distinct(files: Sequence[Source], text: TextFormat | None, columns: Sequence[str]) -> dict[str, int]:
    """Estimates how many distinct values columns have, within a few percent.

    Args:
        files: text with delimiters, or Parquet.
        text: how text is read; None for Parquet.
        columns: columns to count.

    Returns:
        The estimates; none if DuckDB is not installed, or if the files are remote, large or of another kind.
    """
    kinds = {(file.kind, file.compression) for file in files}
    readable = len(kinds) == 1 and kinds <= {("parquet", None), ("text", None), ("text", "gzip"), ("text", "zstd")}
    names = local_names([file.uri for file in files])
    if not columns or not readable or names is None or sum(file.size for file in files) > _MOST_BYTES:
        return {}
    try:
        import duckdb
    except ImportError:
        return {}
    listed = _literal(names)
    table = f"read_parquet({listed})" if text is None else f"read_csv({listed}, {_options(text, files[0])})"
    counted = ", ".join(f"approx_count_distinct({_quoted(column)})" for column in columns)
    try:
        with duckdb.connect() as connection:
            (found,) = connection.execute(f"SELECT {counted} FROM {table}").fetchall()
    except duckdb.Error as error:  # the sample has to do
        print(f"DuckDB cannot count the distinct values of all rows: {str(error).splitlines()[0]}", file=sys.stderr)
        return {}
    return dict(zip(columns, found, strict=True))


def _options(text: TextFormat, source: Source) -> str:
    quote = '"' if text.quoting else ""
    named = f"names={_literal(list(text.columns))}, header=false" if text.columns else "header=true"
    return (
        f"delim={_literal(text.delimiter)}, quote={_literal(quote)}, {named}, all_varchar=true, ignore_errors=true, "
        f"null_padding=true, compression={_literal(source.compression or 'none')}"
    )


def _literal(value: str | list[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "'" + value.replace("'", "''") + "'"


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
