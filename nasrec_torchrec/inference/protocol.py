"""The Open Inference Protocol (KServe v2): bodies of requests and answers, without HTTP.

A body is JSON, or JSON followed by the bytes of some tensors (the binary tensor extension). Cheap checks come first:
the frame, then shapes and limits. Numbers become objects only if there are as many of them as the shape says.
"""

import reprlib
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.inference.rows import RawRows, RowReader

EXTENSIONS = ["binary_tensor_data"]
OUTPUT = "probability"
_DATATYPES: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64}
_PYTHON: dict[str, Any] = {"FP32": float, "INT64": int}
_UNSUPPORTED = ("shared_memory_region", "classification")


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class _Rows(msgspec.Struct):
    rows: list[msgspec.Raw]
    id: str | None = None
    parameters: dict[str, Any] | None = None


_BODY, _ROWS, _ROW = msgspec.json.Decoder(_Body), msgspec.json.Decoder(_Rows), msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Inference:
    """What a client asks for.

    Args:
        request: tensors for the model.
        id: identifier that the answer repeats, if the client gave one.
        binary: whether the client wants the output as bytes after the JSON.
        names: names of the requested outputs.
    """

    request: Request
    id: str | None
    binary: bool
    names: tuple[str, ...]


def decode(
    body: bytes | bytearray | memoryview, header_length: int | None, predictor: Predictor, max_rows: int, max_ids: int
) -> Inference:
    """Reads the body of an inference request.

    Args:
        body: body of the request.
        header_length: number of bytes of the JSON before binary tensors; None if the whole body is JSON.
        predictor: model that the request is for.
        max_rows: largest number of rows in a request.
        max_ids: largest number of ids in a request.

    Raises:
        ValueError: If the body is not valid. The message says what was found and what is expected.
    """
    view = memoryview(body)
    if header_length is not None and not 0 < header_length <= len(view):
        raise ValueError(
            f"inference-header-content-length: expected 1 to {len(view)}, the bytes of the body, found {header_length}"
        )
    parsed = _parse(view if header_length is None else view[:header_length])
    _check_id(parsed.id)
    binary, names = _outputs(parsed)
    expected = {entry["name"]: entry for entry in describe_inputs(predictor)}
    given = {part.name: part for part in parsed.inputs}
    if list(given) != [part.name for part in parsed.inputs] or set(given) != set(expected):
        found = [part.name for part in parsed.inputs]
        raise ValueError(f"inputs: expected {list(expected)}, each once, found {_short(found)}")
    tensors, tail = {}, view[len(view) if header_length is None else header_length :]
    limits = {"dense": max_rows * max(1, len(predictor.dense_features)), "lengths": max_rows * len(predictor.features)}
    for part in parsed.inputs:
        count = _check_shape(part, expected[part.name], limits.get(part.name, max_ids))
        for unsupported in _UNSUPPORTED:
            if unsupported in (part.parameters or {}):
                raise ValueError(f"{part.name}: parameters: {unsupported} is not supported")
        size = (part.parameters or {}).get("binary_data_size")
        if size is None:
            tensors[part.name] = _from_json(part, count)
            continue
        kind = np.dtype(_DATATYPES[part.datatype]).newbyteorder("<")
        if bytes(part.data) or size != count * kind.itemsize or len(tail) < size:
            raise ValueError(
                f"{part.name}: binary_data_size: expected {count * kind.itemsize} for shape {part.shape} and as many "
                f"bytes behind the JSON instead of data, found {_short(size)}, of which {len(tail)} bytes are left"
            )
        tensors[part.name] = torch.from_numpy(
            np.frombuffer(tail[:size], kind).reshape(part.shape).astype(_DATATYPES[part.datatype])
        )
        tail = tail[size:]
    if len(tail):
        raise ValueError(f"body: {len(tail)} bytes are left over behind the last tensor")
    request = Request(**tensors)
    predictor.check(request)
    return Inference(request, parsed.id, binary, names)


def encode(inference: Inference, model: str, version: str, scores: torch.Tensor) -> tuple[bytes, dict[str, str]]:
    """Returns the body of an answer, and its headers."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [len(scores)]}
    tail = b""
    if inference.binary:
        tail = scores.numpy().astype("<f4").tobytes()
        output["parameters"] = {"binary_data_size": len(tail)}
    else:
        output["data"] = scores.tolist()
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [output]}
    if not inference.names:
        document["outputs"] = []
    if inference.id is not None:
        document["id"] = inference.id
    header = msgspec.json.encode(document)
    if not tail:
        return header, {"content-type": "application/json"}
    return header + tail, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(header)),
    }


def decode_rows(
    body: bytes | bytearray | memoryview, reader: RowReader, max_rows: int, max_ids: int
) -> tuple[RawRows, str | None, bool]:
    """Reads the body of a request with raw rows.

    Args:
        body: body of the request.
        reader: reader of the model's raw rows.
        max_rows: rows of a request.
        max_ids: values of a request, and ids.

    Returns:
        What was read, the request's id, and whether the client wants to know of unknown values.

    Raises:
        ValueError: If something does not fit; the message says what, and what is expected.
    """
    # Values have one comma less than there are: counted before they become objects.
    if bytes(body).count(b",") >= max_ids:
        raise ValueError(f"rows: expected {max_ids} values at most")
    try:
        parsed = _ROWS.decode(body)
        _check_id(parsed.id)
        if len(parsed.rows) > max_rows:
            raise ValueError(f"rows: expected {max_rows} at most, found {len(parsed.rows)}")
        read = reader.read([_ROW.decode(row) for row in parsed.rows])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"body: {error}") from None
    except RecursionError:
        raise ValueError("body: nested too deeply") from None
    if read.request.ids.numel() > max_ids:
        raise ValueError(f"rows: expected {max_ids} ids at most, found {read.request.ids.numel()}")
    return read, parsed.id, bool((parsed.parameters or {}).get("unknown", False))


def encode_rows(
    read: RawRows, id: str | None, unknown: bool, model: str, version: str, scores: torch.Tensor
) -> tuple[bytes, dict[str, str]]:
    """Returns the body of an answer to raw rows, and its headers."""
    output = {"name": OUTPUT, "datatype": "FP32", "shape": [len(scores)], "data": scores.tolist()}
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [output]}
    if id is not None:
        document["id"] = id
    if unknown:
        document["unknown"] = read.unknown
    return msgspec.json.encode(document), {"content-type": "application/json"}


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


def _check_id(text: str | None) -> None:
    if text is not None and len(text) > 1024:
        raise ValueError(f"id: expected 1024 characters at most, found {len(text)}")


def _outputs(parsed: _Body) -> tuple[bool, tuple[str, ...]]:
    """Returns whether the output is requested as bytes, and which outputs are requested."""
    binary = bool((parsed.parameters or {}).get("binary_data_output", False))
    if parsed.outputs is None:
        return binary, (OUTPUT,)
    for wanted in parsed.outputs:
        if wanted.name != OUTPUT:
            raise ValueError(f"outputs: expected {OUTPUT!r}, found {_short(wanted.name)}")
        for unsupported in _UNSUPPORTED:
            if unsupported in (wanted.parameters or {}):
                raise ValueError(f"{wanted.name}: parameters: {unsupported} is not supported")
        binary = bool((wanted.parameters or {}).get("binary_data", binary))
    return binary, tuple(wanted.name for wanted in parsed.outputs) or (OUTPUT,)


def _check_shape(part: _Input, wanted: dict[str, Any], most: int) -> int:
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


def _from_json(part: _Input, count: int) -> torch.Tensor:
    text, kind = bytes(part.data), _PYTHON[part.datatype]
    # Numbers in lists have one comma less than there are, flat or nested: counted before they become objects.
    if not text or text.count(b",") + 1 != max(count, 1):
        found = text.count(b",") + 1 if text else 0
        raise ValueError(f"{part.name}: data: expected {count} values for shape {part.shape}, found {found}")
    nested = len(part.shape) == 2 and text[1:].lstrip()[:1] == b"["
    try:
        values = msgspec.json.decode(text, type=list[list[kind]] if nested else list[kind])  # type: ignore[valid-type]
        if nested:
            if [len(row) for row in values] != [part.shape[1]] * part.shape[0]:
                raise ValueError(f"expected {part.shape[0]} lists of {part.shape[1]} values")
            values = [value for row in values for value in row]
        if len(values) != count:
            raise ValueError(f"expected {count} values for shape {part.shape}, found {len(values)}")
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(values, _DATATYPES[part.datatype]).reshape(part.shape))
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"{part.name}: data: {error}") from None
    except RecursionError:
        raise ValueError(f"{part.name}: data: nested too deeply") from None
    except OverflowError:
        raise ValueError(f"{part.name}: data: expected integers of 64 bits") from None


def _short(value: Any) -> str:
    """Returns a value as text that is safe to repeat in an answer."""
    return reprlib.repr(value)[:200]
