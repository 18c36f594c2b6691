"""The Open Inference Protocol (KServe v2): bodies of requests and answers, without HTTP.

A body is JSON, or JSON followed by the bytes of some tensors (the binary tensor extension). Cheap checks come first:
the frame, then shapes and limits. Numbers become objects only if there are as many of them as the shape says.

The inputs are either the tensors of the model, or columns of raw values, named as in the training files and read by the
package's own transform.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from nasrec_torchrec.inference.predictor import OUTPUT, Predictor, Request
from nasrec_torchrec.inference.rows import RawRows, RowReader

EXTENSIONS = ["binary_tensor_data"]
_DATATYPES: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64}
_PYTHON: dict[str, Any] = {"FP32": float, "INT64": int}
_UNSUPPORTED = ("shared_memory_region", "classification")
# The types of a column of raw values: text as it stands in files, or numbers.
_COLUMNS: dict[str, Any] = {"BYTES": None, "FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}
_OF_COLUMN: dict[str, Any] = {"BYTES": str, "FP32": float, "FP64": float, "INT32": int, "INT64": int}
_OF_COLUMN = {name: kind | None for name, kind in _OF_COLUMN.items()}


class Input(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] | None = None


class Output(msgspec.Struct):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Wanted:
    """An output that a client gets.

    Args:
        name: its name.
        column: which column of the scores it is.
        binary: whether the client wants it as bytes after the JSON.
    """

    name: str
    column: int
    binary: bool = False

    def values(self, scores: torch.Tensor) -> torch.Tensor:
        """Returns its values ``(B,)`` of scores ``(B,)``, or ``(B, T)`` of a model of several labels."""
        return scores if scores.dim() == 1 else scores[:, self.column]


class _Body(msgspec.Struct):
    inputs: list[Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


class Contents(Protocol):
    """The values of inputs, in the order in which they are asked for."""

    def tensor(self, part: Input, count: int) -> torch.Tensor:
        """Returns the values of a tensor, whose shape fits."""

    def column(self, part: Input, count: int) -> list[Any]:
        """Returns the values of a column of raw values."""

    def end(self) -> None:
        """Checks that no values are left over."""


@dataclass(frozen=True)
class Limits:
    """How much a request may hold.

    Args:
        rows: largest number of rows.
        ids: largest number of ids, and of raw values.
    """

    rows: int
    ids: int


class _Rows(msgspec.Struct):
    rows: list[msgspec.Raw]
    shared: msgspec.Raw = msgspec.Raw(b"{}")
    id: str | None = None
    parameters: dict[str, Any] | None = None


_BODY, _ROWS, _ROW = msgspec.json.Decoder(_Body), msgspec.json.Decoder(_Rows), msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Inference:
    """What a client asks for.

    Args:
        request: tensors for the model.
        id: identifier that the answer repeats, if the client gave one.
        outputs: outputs that the answer has.
        extra: number of raw values that were passed over.
    """

    request: Request
    id: str | None
    outputs: tuple[Wanted, ...]
    extra: int = 0

    def encode(self, model: str, version: str, scores: torch.Tensor) -> tuple[bytes, dict[str, str]]:
        """Returns the body of the answer, and its headers."""
        outputs, tail = [], b""
        for wanted in self.outputs:
            output: dict[str, Any] = {"name": wanted.name, "datatype": "FP32", "shape": [len(scores)]}
            if wanted.binary:
                data = wanted.values(scores).numpy().astype("<f4").tobytes()
                output["parameters"] = {"binary_data_size": len(data)}
                tail += data
            else:
                output["data"] = wanted.values(scores).tolist()
            outputs.append(output)
        document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
        if self.id is not None:
            document["id"] = self.id
        header = msgspec.json.encode(document)
        if not tail:
            return header, {"content-type": "application/json"}
        return header + tail, {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(header)),
        }


@dataclass(frozen=True)
class RowsInference:
    """Raw rows of which a client asks for the probabilities.

    Args:
        read: what was read.
        id: identifier that the answer repeats, if the client gave one.
        unknown: whether the client wants to know of unknown values.
        outputs: outputs that the answer has.
    """

    read: RawRows
    id: str | None
    unknown: bool
    outputs: tuple[Wanted, ...]

    @property
    def request(self) -> Request:
        return self.read.request

    @property
    def extra(self) -> int:
        return self.read.extra

    def encode(self, model: str, version: str, scores: torch.Tensor) -> tuple[bytes, dict[str, str]]:
        """Returns the body of the answer, and its headers."""
        shape = {"datatype": "FP32", "shape": [len(scores)]}
        outputs = [{"name": one.name, **shape, "data": one.values(scores).tolist()} for one in self.outputs]
        document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
        if self.id is not None:
            document["id"] = self.id
        if self.unknown:
            document["unknown"] = self.read.unknown
        return msgspec.json.encode(document), {"content-type": "application/json"}


def decode(
    body: bytes | bytearray | memoryview,
    header_length: int | None,
    predictor: Predictor,
    reader: RowReader | ValueError,
    limits: Limits,
) -> Inference:
    """Reads the body of an inference request.

    Args:
        body: body of the request.
        header_length: number of bytes of the JSON before binary tensors; None if the whole body is JSON.
        predictor: model that the request is for.
        reader: reader of the model's raw rows, or why there is none.
        limits: how much the request may hold.

    Raises:
        ValueError: If the body is not valid. The message says what was found and what is expected.
    """
    view = memoryview(body)
    if header_length is not None and not 0 < header_length <= len(view):
        raise ValueError(
            f"inference-header-content-length: expected 1 to {len(view)}, the bytes of the body, found {header_length}"
        )
    parsed = _parse(view if header_length is None else view[:header_length])
    check_id(parsed.id)
    outputs = read_outputs(parsed.outputs, parsed.parameters, predictor.outputs)
    contents = _Data(view[len(view) if header_length is None else header_length :], limits)
    request, extra = read_inputs(parsed.inputs, contents, predictor, reader, limits)
    return Inference(request, parsed.id, outputs, extra)


def read_inputs(
    parts: Sequence[Input], contents: Contents, predictor: Predictor, reader: RowReader | ValueError, limits: Limits
) -> tuple[Request, int]:
    """Reads the inputs of a request: the tensors of the model, or columns of raw values.

    Args:
        parts: names, types and shapes of the inputs.
        contents: their values.
        predictor: model that the request is for.
        reader: reader of the model's raw rows, or why there is none.
        limits: how much the request may hold.

    Returns:
        The request, and the number of raw values that were passed over.

    Raises:
        ValueError: If something does not fit; the message says what was found and what is expected.
    """
    expected = {entry["name"]: entry for entry in describe_inputs(predictor)}
    names = [part.name for part in parts]
    for part in parts:
        for unsupported in _UNSUPPORTED:
            if unsupported in (part.parameters or {}):
                raise ValueError(f"{part.name}: parameters: {unsupported} is not supported")
    once = len(set(names)) == len(names)
    if once and set(names) == set(expected):
        most = {
            "dense": limits.rows * max(1, len(predictor.dense_features)),
            "lengths": limits.rows * len(predictor.features),
        }
        tensors = {
            part.name: contents.tensor(part, _check_shape(part, expected[part.name], most.get(part.name, limits.ids)))
            for part in parts
        }
        contents.end()
        request = Request(**tensors)
        predictor.check(request)
        return request, 0
    columns = frozenset() if isinstance(reader, ValueError) else reader.columns
    if once and names and columns.issuperset(names):
        assert isinstance(reader, RowReader)
        read = _read_columns(parts, contents, reader, limits)
        return read.request, read.extra
    raise ValueError(
        f"inputs: expected {list(expected)}, each once, found {_short(names)}; or columns of raw values, each once, "
        + (
            f"which this package cannot read: {reader}"
            if isinstance(reader, ValueError)
            else f"of {_short(sorted(columns))}"
        )
    )


def read_outputs(
    outputs: Sequence[Output] | None, parameters: dict[str, Any] | None, known: Sequence[str]
) -> tuple[Wanted, ...]:
    """Returns the outputs that are requested, all of them if none is.

    Args:
        outputs: outputs that the request names.
        parameters: parameters of the request.
        known: outputs of the model.

    Raises:
        ValueError: If an output is requested that the model does not have, or in a form that is not supported.
    """
    binary = bool((parameters or {}).get("binary_data_output", False))
    if not outputs:
        return tuple(Wanted(name, column, binary) for column, name in enumerate(known))
    found: dict[str, Wanted] = {}
    for wanted in outputs:
        if wanted.name not in known:
            raise ValueError(f"outputs: expected {' or '.join(map(repr, known))}, found {_short(wanted.name)}")
        for unsupported in _UNSUPPORTED:
            if unsupported in (wanted.parameters or {}):
                raise ValueError(f"{wanted.name}: parameters: {unsupported} is not supported")
        as_bytes = bool((wanted.parameters or {}).get("binary_data", binary))
        found[wanted.name] = Wanted(wanted.name, known.index(wanted.name), as_bytes)
    return tuple(found.values())


def decode_rows(
    body: bytes | bytearray | memoryview,
    reader: RowReader | ValueError,
    limits: Limits,
    outputs: Sequence[str] = (OUTPUT,),
) -> RowsInference:
    """Reads the body of a request with raw rows.

    Args:
        body: body of the request.
        reader: reader of the model's raw rows, or why there is none.
        limits: how much the request may hold.
        outputs: outputs of the model.

    Raises:
        ValueError: If something does not fit; the message says what, and what is expected.
    """
    if isinstance(reader, ValueError):
        raise reader
    # Values have one comma less than there are: counted before they become objects.
    if bytes(body).count(b",") >= limits.ids:
        raise ValueError(f"rows: expected {limits.ids} values at most")
    try:
        parsed = _ROWS.decode(body)
        check_id(parsed.id)
        if len(parsed.rows) > limits.rows:
            raise ValueError(f"rows: expected {limits.rows} at most, found {len(parsed.rows)}")
        read = reader.read([_ROW.decode(row) for row in parsed.rows], _ROW.decode(parsed.shared), limits.ids)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"body: {error}") from None
    except RecursionError:
        raise ValueError("body: nested too deeply") from None
    unknown = bool((parsed.parameters or {}).get("unknown", False))
    return RowsInference(read, parsed.id, unknown, read_outputs(None, None, outputs))


def describe_inputs(predictor: Predictor) -> list[dict[str, Any]]:
    """Returns names, datatypes and shapes of the inputs, where -1 stands for any size."""
    shapes = {
        "dense": ("FP32", [-1, len(predictor.dense_features)]),
        "ids": ("INT64", [-1]),
        "lengths": ("INT64", [len(predictor.features), -1]),
        "weights": ("FP32", [-1]),
    }
    names = predictor.manifest["inputs"]
    return [{"name": name, "datatype": shapes[name][0], "shape": shapes[name][1]} for name in names]


def _parse(text: memoryview) -> _Body:
    try:
        parsed = _BODY.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"body: {error}") from None
    except RecursionError:
        raise ValueError("body: nested too deeply") from None
    if not parsed.inputs:
        raise ValueError("inputs: expected at least one, found none")
    return parsed


def check_id(text: str | None) -> None:
    """Checks the identifier of a request.

    Raises:
        ValueError: If it is too long.
    """
    if text is not None and len(text) > 1024:
        raise ValueError(f"id: expected 1024 characters at most, found {len(text)}")


def _read_columns(parts: Sequence[Input], contents: Contents, reader: RowReader, limits: Limits) -> RawRows:
    rows = parts[0].shape[0] if parts[0].shape else -1
    for part in parts:
        if part.datatype not in _COLUMNS:
            raise ValueError(f"{part.name}: datatype: expected one of {list(_COLUMNS)}, found {_short(part.datatype)}")
        if part.shape not in ([rows], [rows, 1]) or not 0 <= rows <= limits.rows:
            raise ValueError(
                f"{part.name}: shape: expected [rows] or [rows, 1], equally many in all columns and {limits.rows} at "
                f"most, found {_short(part.shape)}"
            )
    if rows * len(parts) > limits.ids:
        raise ValueError(f"inputs: expected {limits.ids} values at most, found {rows * len(parts)}")
    columns = [contents.column(part, rows) for part in parts]
    contents.end()
    names = [part.name for part in parts]
    return reader.read([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], None, limits.ids)


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
    kind = np.dtype(_COLUMNS[part.datatype]).newbyteorder("<")
    if len(data) != count * kind.itemsize:
        raise ValueError(
            f"{part.name}: expected {count * kind.itemsize} bytes for shape {part.shape}, found {len(data)}"
        )
    return np.frombuffer(data, kind).astype(_COLUMNS[part.datatype])


class _Data:
    """The values in a body: JSON, or bytes behind it."""

    def __init__(self, tail: memoryview, limits: Limits) -> None:
        self._tail, self._limits = tail, limits

    def tensor(self, part: Input, count: int) -> torch.Tensor:
        data = self._binary(part, count * np.dtype(_DATATYPES[part.datatype]).itemsize)
        if data is None:
            return _from_json(part, count)
        return torch.from_numpy(numbers_from_bytes(part, data, count).reshape(part.shape))

    def column(self, part: Input, count: int) -> list[Any]:
        kind = _COLUMNS[part.datatype]
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
                f"found {_short(size)}, of which {len(self._tail)} bytes are left"
            )
        data, self._tail = self._tail[:size], self._tail[size:]
        return data


def _listed_numbers(part: Input, data: memoryview, count: int) -> list[Any]:
    return numbers_from_bytes(part, data, count).tolist()


def _check_shape(part: Input, wanted: dict[str, Any], most: int) -> int:
    """Returns the number of values of a tensor, after checking that the model accepts its type and shape."""
    if part.datatype != wanted["datatype"]:
        raise ValueError(f"{part.name}: datatype: expected {wanted['datatype']}, found {_short(part.datatype)}")
    fits = len(part.shape) == len(wanted["shape"]) and all(
        0 <= size <= most and allowed in (-1, size) for size, allowed in zip(part.shape, wanted["shape"], strict=True)
    )
    count = int(np.prod(part.shape, dtype=object)) if fits else 0
    if not fits or count > most:
        raise ValueError(
            f"{part.name}: shape: expected {wanted['shape']}, -1 being any, and {most} values at most, "
            f"found {_short(part.shape)}"
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


def _short(value: Any) -> str:
    """Returns a value as text that is safe to repeat in an answer."""
    return reprlib.repr(value)[:200]
