"""The words of dictionary ids, as a data set and a package hold them beside their rows or their model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.schema import Schema

DICTIONARIES = "dictionaries"


class ReplacedError(ValueError):
    """A file of a package is no longer the one that belongs to the loaded model."""


def read_dictionaries(
    package: Path, schema: Schema, sums: Mapping[str, str] = MappingProxyType({})
) -> dict[str, pa.Array]:
    """Reads the words of dictionary ids.

    Args:
        package: folder of the package.
        schema: schema of the model.
        sums: checksums of the package's files, by their names. The model and its words must belong together, even if
            the folder was replaced after the model was loaded.

    Raises:
        ValueError: If the model needs dictionaries and the package has none.
        ReplacedError: If a dictionary is not the one of the checksum.
    """
    found = {}
    for table in {feature.table for feature in schema.sparse if feature.ids in ("dictionary", "history")}:
        name = f"{DICTIONARIES}/{safe_name(table)}.parquet"
        file, kind = package / name, ReplacedError if name in sums else ValueError
        try:
            # What is compared is what is used: the file is read once.
            content = file.read_bytes()
            if name in sums and hashlib.sha256(content).hexdigest() != sums[name]:
                raise ReplacedError(f"{file}: its checksum is not that of the loaded model; load the package again")
            found[table] = read_dictionary(file, content)
        except ReplacedError:
            raise
        except (OSError, ValueError) as error:
            reason = f"{file}: cannot be read: {error.strerror}" if isinstance(error, OSError) else error
            raise kind(f"{reason}; export with --data to have it") from None
    return found


def read_dictionary(file: Path, content: bytes | None = None) -> pa.Array:
    """Reads the words of a dictionary; those of a history are a struct with their counts.

    Args:
        file: file of the dictionary.
        content: what the file holds, if it has been read already.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        table = pq.read_table(file if content is None else pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    if table.num_columns == 1:
        return table.column(0).combine_chunks()
    return table.combine_chunks().to_struct_array().combine_chunks()
