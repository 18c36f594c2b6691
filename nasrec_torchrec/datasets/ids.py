"""What the values of a categorical column become: ids, or text that a dictionary will number."""

import binascii
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.quality import NO_ROW
from nasrec_torchrec.datasets.values import Rejects

_HEX = re.compile(r"-?[0-9a-fA-F]+")


def read_ids(
    feature: SparseFeature, flat: pa.Array, refused: Rejects, scoring: bool = False, limits: np.ndarray | None = None
) -> pa.Array:
    """Reads values by the rule of a feature.

    Args:
        feature: feature that has a column of its own and is not of a moment.
        flat: plain values.
        refused: receives the position and reason of each value that cannot be read.
        scoring: whether an id outside its table becomes ``NO_ROW`` instead of being refused.
        limits: the ``id_limit`` of each value, where values of several features with the same rule are read together;
            that of ``feature`` by default.

    Returns:
        pa.Array: The ids, 0 where a value is missing; or the text of the values if a dictionary will number them, null
        where one is missing.

    Raises:
        ValueError: If values of this type never fit.
    """
    if feature.ids in ("dictionary", "hash", "dynamic"):
        if feature.values == "integer":
            text = values.whole(flat, refused, "an integer")
        else:
            # An empty text of a Parquet file is as missing as one between two delimiters.
            text = values.without_empty(values.text(flat, refused))
        if feature.ids == "dictionary":
            return text
    each = np.full(len(flat), feature.id_limit) if limits is None else limits
    match feature.ids:
        case "hash" | "dynamic":
            hashes = _per_distinct(text.cast(pa.binary()), _hashes)
            ids, given = hashes % (each - 1).astype(np.uint64) + np.uint64(1), _given(text)
        case "hex":
            ids, given = _fold(*_hexadecimal(flat, refused), each, refused, "hexadecimal digits")
        case "modulo":
            expected = "an integer, -1 or more"
            ids, given = _fold(*_integers(flat, refused, expected), each, refused, expected)
        case _:

            def in_table(position: int) -> str:
                return f"an id in 0..{each[position] - 1}"

            words, ids = _integers(flat, refused, in_table)
            fits, given = np.asarray((ids >= 0) & (ids < each), bool), _given(words)
            if scoring:
                ids = np.where(fits, ids, NO_ROW)
            else:
                values.refuse(words, given & ~fits, refused, in_table)
                given &= fits
    kind = pa.int32() if limits is None and feature.id_limit < 2**31 else pa.int64()
    return pa.array(np.where(given, ids, 0).astype(np.int64)).cast(kind)


def hash_text(value: bytes) -> int:
    """Computes the hash for ``hash`` and ``dynamic`` ids: the first 8 bytes of BLAKE2b, little-endian.

    It never changes.
    """
    return int(_hashes([value])[0])


def _hashes(words: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join([blake2b(word, digest_size=8).digest() for word in words]), "<u8")


def _given(flat: pa.Array) -> np.ndarray:
    return flat.is_valid().to_numpy(zero_copy_only=False)


def _per_distinct(words: pa.Array, convert: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
    """Converts each distinct text once to a number; 0 where there is none."""
    distinct = words.dictionary_encode()
    numbers = convert(distinct.dictionary.to_pylist())
    return np.append(numbers, np.zeros(1, numbers.dtype))[pc.fill_null(distinct.indices, -1).to_numpy()]


def _exact(numbers: list[int]) -> np.ndarray:
    """Returns integers in 64 bits, or as Python's own where those do not hold all."""
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        return np.array(numbers, object)


def _integers(flat: pa.Array, refused: Rejects, expected: values.Expected) -> tuple[pa.Array, np.ndarray]:
    """Returns integers as text, null where missing or refused, and as numbers."""
    words = values.whole(flat, refused, expected)
    if pa.types.is_signed_integer(flat.type):
        return words, pc.fill_null(flat.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if (pc.max(pc.binary_length(words)).as_py() or 0) < 19:
        return words, pc.fill_null(words.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return words, _per_distinct(words, lambda texts: _exact(list(map(int, texts))))


def _hexadecimal(flat: pa.Array, refused: Rejects) -> tuple[pa.Array, np.ndarray]:
    """Returns hexadecimal digits as text, null where missing or refused, and as numbers."""
    if not values.is_text(flat.type):
        raise ValueError(f"expected hexadecimal text, found {flat.type}")
    encoded = values.without_empty(flat).cast(pa.binary())
    present = encoded.drop_null()
    # Most ids, such as Criteo's of eight digits, fit into 64 bits: decode them in one go.
    if len(present) > 0 and pc.max(pc.binary_length(present)).as_py() < 16:
        with suppress(pa.ArrowInvalid, binascii.Error):
            padded = pc.ascii_lpad(present.cast(pa.string()), 16, "0")
            offsets = np.frombuffer(padded.buffers()[1], np.int32)[padded.offset : padded.offset + len(padded) + 1]
            decoded = binascii.unhexlify(memoryview(padded.buffers()[2])[offsets[0] : offsets[-1]])
            numbers = np.zeros(len(encoded), np.int64)
            numbers[_given(encoded)] = np.frombuffer(decoded, ">u8")
            return encoded, numbers

    def is_number(word: str) -> bool | None:
        # int() refuses texts of more than 4,300 digits; no id is that long.
        return True if len(word) <= 4000 and _HEX.fullmatch(word) else None

    words = values.text(encoded, refused)
    fits = values.per_distinct(words, is_number, pa.bool_(), refused, "hexadecimal digits")
    words = pc.if_else(fits, words, pa.scalar(None, pa.string()))
    return words, _per_distinct(words, lambda texts: _exact([int(text, 16) for text in texts]))


def _fold(
    words: pa.Array, numbers: np.ndarray, limits: np.ndarray, refused: Rejects, expected: str
) -> tuple[np.ndarray, np.ndarray]:
    """Computes fmod(value, limit - 1) + 1, as in the research code: -1 means missing, and lower values have no row.

    Returns:
        The ids, and where there is one.
    """
    given = _given(words)
    fits = np.asarray(numbers >= -1, bool)
    values.refuse(words, given & ~fits, refused, expected)
    return np.where(numbers == -1, 0, numbers % (limits - 1) + 1), given & fits
