"""The Open Inference Protocol (KServe v2): bodies of requests and answers, without HTTP.

A body is JSON, or JSON followed by the bytes of some tensors (the binary tensor extension). Cheap checks come first:
the frame, then shapes and limits. Numbers become objects only if there are as many of them as the shape says.

The inputs are either the tensors of the model, or columns of raw values, named as in the training files and read by the
package's own transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from nasrec_torchrec.inference.input_values import (
    COLUMN_TYPES,
    BodyContents,
    Contents,
    Input,
    Limits,
    check_shape,
    short,
)
from nasrec_torchrec.inference.predictor import OUTPUT, Predictor, Request
from nasrec_torchrec.inference.rows import RawRows, RowReader

EXTENSIONS = ["binary_tensor_data"]
_UNSUPPORTED = ("shared_memory_region", "classification")


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
    contents = BodyContents(view[len(view) if header_length is None else header_length :], limits)
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
            part.name: contents.tensor(part, check_shape(part, expected[part.name], most.get(part.name, limits.ids)))
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
        f"inputs: expected {list(expected)}, each once, found {short(names)}; or columns of raw values, each once, "
        + (
            f"which this package cannot read: {reader}"
            if isinstance(reader, ValueError)
            else f"of {short(sorted(columns))}"
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
            raise ValueError(f"outputs: expected {' or '.join(map(repr, known))}, found {short(wanted.name)}")
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
        if part.datatype not in COLUMN_TYPES:
            raise ValueError(
                f"{part.name}: datatype: expected one of {list(COLUMN_TYPES)}, found {short(part.datatype)}"
            )
        if part.shape not in ([rows], [rows, 1]) or not 0 <= rows <= limits.rows:
            raise ValueError(
                f"{part.name}: shape: expected [rows] or [rows, 1], equally many in all columns and {limits.rows} at "
                f"most, found {short(part.shape)}"
            )
    if rows * len(parts) > limits.ids:
        raise ValueError(f"inputs: expected {limits.ids} values at most, found {rows * len(parts)}")
    columns = [contents.column(part, rows) for part in parts]
    contents.end()
    names = [part.name for part in parts]
    return reader.read([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], None, limits.ids)
