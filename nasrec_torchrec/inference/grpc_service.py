"""The Open Inference Protocol over gRPC, for the same models and with the same answers as over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import torch

from nasrec_torchrec import __version__
from nasrec_torchrec.inference import protocol
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.input_values import Input, Limits, numbers_from_bytes, text_from_bytes, text_of
from nasrec_torchrec.inference.limits import before
from nasrec_torchrec.inference.messages import SERVICE, message
from nasrec_torchrec.inference.metrics import ServerMetrics
from nasrec_torchrec.inference.models import KEY, Models, Reader, UnknownModelError, describe
from nasrec_torchrec.inference.predictor import Predictor, QueueFull

# The field of InferTensorContents that holds the values of each type.
_FIELDS = {
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}
_KINDS = {"FP32": torch.float32, "INT64": torch.int64}
# A message of up to this many bytes is decoded in about a millisecond, so it needs no thread.
_SMALL = 2**16
_Call = Callable[[Any, Any], Awaitable[Any]]


@asynccontextmanager
async def running(
    models: Models, config: ServingConfig, metrics: ServerMetrics, state: Any
) -> AsyncIterator[grpc.aio.Server]:
    """Answers calls while the context is open, and then those that were accepted.

    Args:
        models: models to serve.
        config: port and limits.
        metrics: metrics to update.
        state: holds a true ``draining`` while the server shuts down.

    Raises:
        RuntimeError: If the port is taken.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=config.max_connections,
        options=[
            ("grpc.max_receive_message_length", config.max_body_mib << 20),
            # By default several servers may share a port, and a client would reach either.
            ("grpc.so_reuseport", 0),
        ],
    )
    server.add_generic_rpc_handlers((_Service(models, config, metrics, state).handler(),))
    host = f"[{config.host}]" if ":" in config.host else config.host
    state.grpc_port = server.add_insecure_port(f"{host}:{config.grpc_port}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(config.drain_s)


class _Service:
    def __init__(self, models: Models, config: ServingConfig, metrics: ServerMetrics, state: Any) -> None:
        self._models, self._metrics, self._state = models, metrics, state
        self._limits, self._seconds = Limits(config.max_rows, config.max_ids), config.body_seconds

    def handler(self) -> grpc.GenericRpcHandler:
        calls: dict[str, _Call] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        # To a client a stream of one message is a single message; here it gives the time-out of its arrival.
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(
                    self._receiving(call),
                    request_deserializer=message(f"{name}Request").FromString,
                    response_serializer=message(f"{name}Response").SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    def _receiving(self, call: _Call) -> Callable[[AsyncIterator[Any], Any], Awaitable[Any]]:
        async def receive(messages: AsyncIterator[Any], context: Any) -> Any:
            try:
                received = await before(time.monotonic() + self._seconds, anext(messages))
            except TimeoutError:
                reason = f"the message did not arrive within {self._seconds:g} seconds"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
            except StopAsyncIteration:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected one message, found none")
            try:
                return await call(received, context)
            except UnknownModelError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

        return receive

    async def _live(self, _: Any, __: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, _: Any, __: Any) -> Any:
        return message("ServerReadyResponse")(ready=not self._state.draining)

    async def _model_ready(self, asked: Any, _: Any) -> Any:
        self._models.find(asked.name, asked.version)
        return message("ModelReadyResponse")(ready=not self._state.draining)

    async def _server_metadata(self, _: Any, __: Any) -> Any:
        return message("ServerMetadataResponse")(
            name="nasrec-torchrec", version=__version__, extensions=protocol.EXTENSIONS
        )

    async def _model_metadata(self, asked: Any, _: Any) -> Any:
        described = describe(self._models, asked.name, asked.version)
        # The message has no place for where a version comes from.
        del described["parameters"]
        return message("ModelMetadataResponse")(**described)

    async def _infer(self, asked: Any, context: Any) -> Any:
        started = time.perf_counter()
        name, code = "", grpc.StatusCode.UNKNOWN
        try:
            key = next((value for key, value in context.invocation_metadata() or () if key == KEY), None)
            served = self._models.choose(asked.model_name, asked.model_version, key)
            name = served.name

            async def read(predictor: Predictor, reader: Reader) -> protocol.Inference:
                def decode() -> protocol.Inference:
                    return _decode(asked, predictor, reader, self._limits)

                return await asyncio.to_thread(decode) if asked.ByteSize() > _SMALL else decode()

            inference, version, scores = await self._models.score(served, read)
            code = grpc.StatusCode.OK
        except UnknownModelError:
            code = grpc.StatusCode.NOT_FOUND
            raise
        except QueueFull as error:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await context.abort(code, f"busy: {error}")
        except ValueError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, str(error))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            self._metrics.abandoned.labels(name).inc()
            raise
        finally:
            self._metrics.count_request(name, code.name)
        response = message("ModelInferResponse")(model_name=name, model_version=version, id=inference.id or "")
        # A message has its outputs as bytes or as numbers, all alike.
        binary = any(wanted.binary for wanted in inference.outputs)
        for wanted in inference.outputs:
            output = response.outputs.add(name=wanted.name, datatype="FP32", shape=[len(scores)])
            if binary:
                response.raw_output_contents.append(wanted.values(scores).numpy().astype("<f4").tobytes())
            else:
                output.contents.fp32_contents.extend(wanted.values(scores).tolist())
        self._metrics.latency.labels(name).observe(time.perf_counter() - started)
        return response


def _decode(asked: Any, predictor: Predictor, reader: Reader, limits: Limits) -> protocol.Inference:
    """Reads a ModelInferRequest, see :func:`~nasrec_torchrec.inference.protocol.decode`."""
    protocol.check_id(asked.id)
    outputs = [protocol.Output(output.name, _parameters(output.parameters)) for output in asked.outputs]
    # An answer takes the form of the request, unless the client says otherwise.
    parameters = {"binary_data_output": bool(asked.raw_input_contents), **_parameters(asked.parameters)}
    wanted = protocol.read_outputs(outputs, parameters, predictor.outputs)
    parts = [
        Input(part.name, list(part.shape), part.datatype, parameters=_parameters(part.parameters))
        for part in asked.inputs
    ]
    request, extra = protocol.read_inputs(parts, _Contents(asked), predictor, reader, limits)
    return protocol.Inference(request, asked.id or None, wanted, extra)


def _parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(it, it.WhichOneof("parameter_choice") or "bool_param") for name, it in found.items()}


class _Contents:
    """The values in a ModelInferRequest: all of them as bytes beside the inputs, or each as numbers in its input."""

    def __init__(self, asked: Any) -> None:
        self._raw: Sequence[bytes] | None = asked.raw_input_contents or None
        if self._raw is not None and len(self._raw) != len(asked.inputs):
            raise ValueError(f"raw_input_contents: expected {len(asked.inputs)}, one per input, found {len(self._raw)}")
        self._places = {part.name: place for place, part in enumerate(asked.inputs)}
        self._inputs = asked.inputs

    def tensor(self, part: Input, count: int) -> torch.Tensor:
        if self._raw is not None:
            data = numbers_from_bytes(part, self._raw[self._places[part.name]], count)
            return torch.from_numpy(data.reshape(part.shape))
        return torch.tensor(self._values(part, count), dtype=_KINDS[part.datatype]).reshape(part.shape)

    def column(self, part: Input, count: int) -> list[Any]:
        if self._raw is None:
            values = list(self._values(part, count))
            return text_of(part, values) if part.datatype == "BYTES" else values
        data = self._raw[self._places[part.name]]
        if part.datatype == "BYTES":
            return list(text_from_bytes(part, memoryview(data), count))
        return numbers_from_bytes(part, data, count).tolist()

    def end(self) -> None:
        """Every input has its own values, so none can be left over."""

    def _values(self, part: Input, count: int) -> Sequence[Any]:
        field = _FIELDS[part.datatype]
        values: Sequence[Any] = getattr(self._inputs[self._places[part.name]].contents, field)
        if len(values) != count:
            raise ValueError(
                f"{part.name}: contents.{field}: expected {count} values for shape {part.shape}, found {len(values)}"
            )
        return values
