"""The values of the inputs of a request in the Open Inference Protocol: as JSON, or as bytes behind the JSON."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

_DATATYPES: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64}
_PYTHON: dict[str, Any] = {"FP32": float, "INT64": int}
_NUMBERS: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}
# The types of a column of raw values: text as it stands in files, or numbers.
COLUMN_TYPES = {"BYTES": None, **_NUMBERS}
_OF_COLUMN: dict[str, Any] = {"BYTES": str, "FP32": float, "FP64": float, "INT32": int, "INT64": int}
_OF_COLUMN = {name: kind | None for name, kind in _OF_COLUMN.items()}


class Input(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Limits:
    """How much a request may hold.

    Args:
        rows: largest number of rows.
        ids: largest number of ids, and of raw values.
    """

    rows: int
    ids: int


class Contents(Protocol):
    """The values of inputs, in the order in which they are asked for."""

    def tensor(self, part: Input, count: int) -> torch.Tensor:
        """Returns the values of a tensor, whose shape fits."""

    def column(self, part: Input, count: int) -> list[Any]:
        """Returns the values of a column of raw values."""

    def end(self) -> None:
        """Checks that no values are left over."""


def text_of(part: Input, values: Sequence[bytes]) -> list[str]:
    """Returns the text of an input of BYTES.

    Raises:
        ValueError: If it is no UTF-8.
    """
    try:
        return [bytes(value).decode() for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{part.name}: expected text in UTF-8: {error}") from None


def text_from_bytes(part: Input, data: memoryview, count: int) -> list[str]:
    """Returns the text of an input of BYTES, of which each value follows its length in 4 bytes.

    Raises:
        ValueError: If there is more or less of it.
    """
    found: list[memoryview] = []
    place = 0
    while len(found) < count and place + 4 <= len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    if len(found) != count or place != len(data):
        raise ValueError(
            f"{part.name}: expected {count} values, each behind its length in 4 bytes, in {len(data)} bytes"
        )
    return text_of(part, found)  # type: ignore[arg-type]


def numbers_from_bytes(part: Input, data: memoryview | bytes, count: int) -> np.ndarray:
    """Returns the numbers of an input as they lie in memory, in the order of their bytes that x86 uses.

    Raises:
        ValueError: If there are more or fewer of them.
    """
    kind = np.dtype(COLUMN_TYPES[part.datatype]).newbyteorder("<")
    if len(data) != count * kind.itemsize:
        raise ValueError(
            f"{part.name}: expected {count * kind.itemsize} bytes for shape {part.shape}, found {len(data)}"
        )
    return np.frombuffer(data, kind).astype(COLUMN_TYPES[part.datatype])


class BodyContents:
    """The values in a body: JSON, or bytes behind it."""

    def __init__(self, tail: memoryview, limits: Limits) -> None:
        self._tail, self._limits = tail, limits

    def tensor(self, part: Input, count: int) -> torch.Tensor:
        data = self._binary(part, count * np.dtype(_DATATYPES[part.datatype]).itemsize)
        if data is None:
            return _from_json(part, count)
        return torch.from_numpy(numbers_from_bytes(part, data, count).reshape(part.shape))

    def column(self, part: Input, count: int) -> list[Any]:
        kind = COLUMN_TYPES[part.datatype]
        data = self._binary(part, None if kind is None else count * np.dtype(kind).itemsize)
        if data is not None:
            read = text_from_bytes if kind is None else _listed_numbers
            return read(part, data, count)
        if bytes(part.data).count(b",") >= self._limits.ids:
            raise ValueError(f"{part.name}: data: expected {count} values for shape {part.shape}")
        return _json_values(part, count, _OF_COLUMN[part.datatype], len(part.shape) == 2)

    def end(self) -> None:
        if len(self._tail):
            raise ValueError(f"body: {len(self._tail)} bytes are left over behind the last tensor")

    def _binary(self, part: Input, expected: int | None) -> memoryview | None:
        """Takes the bytes of an input; None if it is JSON."""
        size = (part.parameters or {}).get("binary_data_size")
        if size is None:
            return None
        fits = type(size) is int and 0 <= size <= len(self._tail) and expected in (None, size)
        if bytes(part.data) or not fits:
            wanted = "a size" if expected is None else f"{expected} for shape {part.shape}"
            raise ValueError(
                f"{part.name}: binary_data_size: expected {wanted} and as many bytes behind the JSON instead of data, "
                f"found {short(size)}, of which {len(self._tail)} bytes are left"
            )
        data, self._tail = self._tail[:size], self._tail[size:]
        return data


def _listed_numbers(part: Input, data: memoryview, count: int) -> list[Any]:
    return numbers_from_bytes(part, data, count).tolist()


def check_shape(part: Input, wanted: dict[str, Any], most: int) -> int:
    """Returns the number of values of a tensor, after checking that the model accepts its type and shape.

    Args:
        part: the tensor.
        wanted: the type and shape that the model accepts, where -1 stands for any size.
        most: largest number of values.

    Raises:
        ValueError: If it does not.
    """
    if part.datatype != wanted["datatype"]:
        raise ValueError(f"{part.name}: datatype: expected {wanted['datatype']}, found {short(part.datatype)}")
    fits = len(part.shape) == len(wanted["shape"]) and all(
        0 <= size <= most and allowed in (-1, size) for size, allowed in zip(part.shape, wanted["shape"], strict=True)
    )
    count = int(np.prod(part.shape, dtype=object)) if fits else 0
    if not fits or count > most:
        raise ValueError(
            f"{part.name}: shape: expected {wanted['shape']}, -1 being any, and {most} values at most, "
            f"found {short(part.shape)}"
        )
    return count


def _from_json(part: Input, count: int) -> torch.Tensor:
    text, kind = bytes(part.data), _PYTHON[part.datatype]
    # Numbers in lists have one comma less than there are, flat or nested: counted before they become objects.
    if not text or text.count(b",") + 1 != max(count, 1):
        found = text.count(b",") + 1 if text else 0
        raise ValueError(f"{part.name}: data: expected {count} values for shape {part.shape}, found {found}")
    values = _json_values(part, count, kind, len(part.shape) == 2)
    try:
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(values, _DATATYPES[part.datatype]).reshape(part.shape))
    except OverflowError:
        raise ValueError(f"{part.name}: data: expected integers of 64 bits") from None


def _json_values(part: Input, count: int, kind: type, matrix: bool) -> list[Any]:
    """Returns the values of an input's JSON, which are nested in rows or flat."""
    text = bytes(part.data)
    nested = matrix and text[1:].lstrip()[:1] == b"["
    try:
        values = msgspec.json.decode(text, type=list[list[kind]] if nested else list[kind])  # type: ignore[valid-type]
        if nested:
            if [len(row) for row in values] != [part.shape[1]] * part.shape[0]:
                raise ValueError(f"expected {part.shape[0]} lists of {part.shape[1]} values")
            values = [value for row in values for value in row]
        if len(values) != count:
            raise ValueError(f"expected {count} values for shape {part.shape}, found {len(values)}")
        return values
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{part.name}: data: {error}") from None
    except RecursionError:
        raise ValueError(f"{part.name}: data: nested too deeply") from None


def short(value: Any) -> str:
    """Returns a value as text that is safe to repeat in an answer."""
    return reprlib.repr(value)[:200]
