"""Rules for the widths of embedding tables; importable without torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from nasrec_torchrec.memory import Table

# FBGEMM's lookups read four columns of a table at once.
_COLUMNS_AT_ONCE = 4
_FLOAT_BYTES = 4


def check_width(width: Any, what: str) -> None:
    """Checks the embedding dimension of a table.

    Args:
        width: Number that the user gave.
        what: What it is the width of, for error messages.

    Raises:
        ValueError: If it is not a positive multiple of 4.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < 1 or width % _COLUMNS_AT_ONCE:
        raise ValueError(
            f"{what}: expected a positive multiple of {_COLUMNS_AT_ONCE}, which FBGEMM's lookups need, found {width!r}"
        )


def table_bytes(tables: Iterable[Table], widths: Mapping[str, int] | None = None) -> int:
    """Counts the bytes of the weights of embedding tables in float32.

    Args:
        tables: Tables with their embedding dimensions.
        widths: Embedding dimension of tables that are to have another one, by their names.
    """
    other = widths or {}
    return _FLOAT_BYTES * sum(table.num_embeddings * other.get(table.name, table.embedding_dim) for table in tables)


def table_sizes(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """Returns the name, the rows, the width and the bytes of every table as JSON values, the largest one first."""
    found = [
        {"table": table.name, "rows": table.num_embeddings, "width": table.embedding_dim, "bytes": table_bytes([table])}
        for table in tables
    ]
    return sorted(found, key=lambda size: (-size["bytes"], size["table"]))


def widths_text(widths: Mapping[str, int]) -> str:
    """Names the tables of every width in a few words, such as ``4 columns: user, item; 16 columns: shop``."""
    by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(width, []).append(name)
    return "; ".join(f"{width} columns: {', '.join(by_width[width])}" for width in sorted(by_width))


def check_tables(names: Iterable[str], tables: Iterable[str]) -> None:
    """Checks that the tables whose widths are chosen exist.

    Args:
        names: Names of these tables.
        tables: Names of all tables that there are.

    Raises:
        ValueError: If there is no such table.
    """
    known = sorted(tables)
    if unknown := sorted(set(names).difference(known)):
        raise ValueError(f"embedding_widths: there is no table {unknown}; the tables are {known}")


def check_widths(widths: Mapping[str, int], tables: Mapping[str, int], exact: bool = False) -> None:
    """Checks the widths that an architecture chooses against the tables that there are.

    Args:
        widths: Number of columns to read, by the name of the table.
        tables: Embedding dimension of every table.
        exact: Whether a table must have just these columns.

    Raises:
        ValueError: If a table does not exist, or has fewer columns or, with ``exact``, others.
    """
    check_tables(widths, tables)
    for name, width in widths.items():
        if width > tables[name] or (exact and width != tables[name]):
            expected = f"{tables[name]}" if exact else f"up to {tables[name]}"
            raise ValueError(
                f"embedding_widths: table '{name}': expected {expected}, the embedding dimension of the table, found "
                f"{width}"
            )
