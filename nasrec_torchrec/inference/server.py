"""An HTTP service for exported packages that speaks the Open Inference Protocol (KServe v2)."""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from nasrec_torchrec import __version__
from nasrec_torchrec.inference import grpc_service, protocol
from nasrec_torchrec.inference.api_page import api_page
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.input_values import Limits
from nasrec_torchrec.inference.limits import MODEL, Bodies, BoundedProtocol, CountedAnswers, error_response, unless_gone
from nasrec_torchrec.inference.metrics import ServerMetrics
from nasrec_torchrec.inference.models import KEY, Models, Reader, UnknownModelError, describe
from nasrec_torchrec.inference.predictor import Predictor, QueueFull
from nasrec_torchrec.runs.files import local_folder

_LOG = logging.getLogger("nasrec.serve")
# A body of up to this many bytes is decoded in about a millisecond, so it needs no thread.
_SMALL = 2**16
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request does not fit the model; the reason is in `error`."},
    404: {"description": "There is no such model or version."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many rows wait; ask again later."},
    503: {"description": "Too many bodies or connections are open, or the server shuts down."},
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "enum": ["FP32", "INT64"]},
        "data": {"type": "array", "items": {}, "description": "values in row-major order, nested or flat"},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
_ROWS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["rows"],
                    "properties": {
                        "id": {"type": "string"},
                        "rows": {
                            "type": "array",
                            "items": {"type": "object", "description": "raw values by column"},
                        },
                        "shared": {"type": "object", "description": "raw values that hold for every row"},
                        "parameters": {"type": "object", "properties": {"unknown": {"type": "boolean"}}},
                    },
                }
            }
        },
    }
}
_INFER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
                        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def create_app(
    folder: Path | Mapping[str, Path], config: ServingConfig | None = None, metrics: ServerMetrics | None = None
) -> FastAPI:
    """Returns the service as an ASGI application.

    Args:
        folder: package that ``nasrec export`` wrote, or the packages of several models by their names. They are checked
            repeatedly; a new package is verified before it receives the traffic.
        config: how requests are served.
        metrics: metrics to update.

    Raises:
        ValueError: If a package is damaged.
    """
    config, metrics = config or ServingConfig(), metrics or ServerMetrics()
    torch.set_num_threads(config.threads)
    models = Models(folder if isinstance(folder, Mapping) else {config.name: folder}, config, metrics)
    bodies, limits = Bodies(config), Limits(config.max_rows, config.max_ids)
    metrics.held.set_function(lambda: bodies.held)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            if config.grpc_port is None:
                yield
            else:
                async with grpc_service.running(models, config, metrics, app.state):
                    yield
        finally:
            models.close()

    app = FastAPI(
        title="nasrec-torchrec",
        description="Click probabilities, over the Open Inference Protocol.",
        lifespan=lifespan,
        redirect_slashes=False,
        # Those of FastAPI load scripts from other hosts, which a server may not reach.
        docs_url=None,
        redoc_url=None,
    )
    # Set when the server is asked to stop, before it closes its socket.
    app.state.draining = False
    app.add_middleware(CountedAnswers, metrics=metrics, draining=app.state)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(UnknownModelError)
    async def unknown(_: Request, error: UnknownModelError) -> Response:
        return error_response(404, str(error))

    def readable(*paths: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(endpoint: Callable[..., Any]) -> Callable[..., Any]:
            for path in paths:
                app.get(path, include_in_schema=path == path.rstrip("/"))(endpoint)
                app.head(path, include_in_schema=False)(endpoint)
            return endpoint

        return add

    def ready() -> None:
        if app.state.draining:
            raise HTTPException(503, "shutting down")

    async def answer(
        request: Request,
        name: str,
        version: str | None,
        read: Callable[[bytearray, Predictor, Reader], Awaitable[protocol.Inference | protocol.RowsInference]],
    ) -> Response:
        started = time.perf_counter()
        served = models.choose(name, version, request.headers.get(KEY))
        request.scope[MODEL] = served.name
        try:
            async with bodies.read(request) as body:
                asked, answered, scores = await unless_gone(request, models.score(served, partial(read, body)))
        except ClientDisconnect:
            metrics.abandoned.labels(served.name).inc()
            raise
        except QueueFull as error:
            raise HTTPException(429, f"busy: {error}") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        content, headers = asked.encode(served.name, answered, scores)
        metrics.latency.labels(served.name).observe(time.perf_counter() - started)
        return Response(content, headers=headers)

    @readable("/v2", "/v2/")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "nasrec-torchrec", "version": __version__, "extensions": protocol.EXTENSIONS}

    @readable("/v2/health/live")
    async def server_live() -> dict[str, bool]:
        return {"live": True}

    @readable("/v2/health/ready")
    async def server_ready() -> dict[str, bool]:
        ready()
        return {"ready": True}

    @readable("/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        models.find(name, version)
        ready()
        return {"name": name, "ready": True}

    @readable("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return describe(models, name, version)

    @app.post("/v2/models/{name}/infer", responses=_FAILURES, openapi_extra=_INFER)
    @app.post("/v2/models/{name}/versions/{version}/infer", responses=_FAILURES, openapi_extra=_INFER)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        header_length = _header_length(request)

        async def read(body: bytearray, predictor: Predictor, reader: Reader) -> protocol.Inference:
            return protocol.decode(body, header_length, predictor, reader, limits)

        return await answer(request, name, version, read)

    @app.post("/v2/models/{name}/rows", responses=_FAILURES, openapi_extra=_ROWS)
    @app.post("/v2/models/{name}/versions/{version}/rows", responses=_FAILURES, openapi_extra=_ROWS)
    async def rows(request: Request, name: str, version: str | None = None) -> Response:
        async def read(body: bytearray, predictor: Predictor, reader: Reader) -> protocol.RowsInference:
            # Other requests continue while a large body is decoded.
            decode = partial(protocol.decode_rows, body, reader, limits, predictor.outputs)
            return await asyncio.to_thread(decode) if len(body) > _SMALL else decode()

        return await answer(request, name, version, read)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def description() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))

    return app


def serve(packages: Path | Mapping[str, Path], config: ServingConfig) -> None:
    """Serves packages until SIGTERM or Ctrl-C, then answers the accepted requests.

    Args:
        packages: folder that ``nasrec export`` wrote, or those of several models by their names; a remote one is copied
            once, at the start.
        config: how requests are served.

    Raises:
        ValueError: If a port is taken, or a package is damaged.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    _LOG.setLevel(logging.INFO)
    # Bind first, because loading the package may take long.
    with ExitStack() as stack:
        listener = stack.enter_context(_bind(config.host, config.port, "port"))
        if config.grpc_port:
            # gRPC binds when it starts, but would not say in a line why it cannot.
            _bind(config.host, config.grpc_port, "grpc_port").close()
        named = packages if isinstance(packages, Mapping) else {config.name: packages}
        folders = {name: stack.enter_context(local_folder(package)) for name, package in named.items()}
        metrics = ServerMetrics()
        app = create_app(folders, config, metrics)
        bounds = replace(config, max_connections=_connections(config.max_connections))
        options = uvicorn.Config(
            app,
            http=partial(BoundedProtocol, bounds=bounds, metrics=metrics),  # type: ignore[arg-type]
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.drain_s),
            timeout_keep_alive=75,
            access_log=False,
            server_header=False,
            log_level="info",
        )
        _LOG.info("listening at %s port %d, for %d connections", *listener.getsockname()[:2], bounds.max_connections)
        _Server(options, config.notice_s).run([listener])


class _Server(uvicorn.Server):
    """Warns clients and load balancers before it closes its socket, and exits with code 0 after a signal."""

    def __init__(self, config: uvicorn.Config, notice_s: float) -> None:
        super().__init__(config)
        self._notice_s = notice_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler raises the signal again after the shutdown: exit code -15, and no cleanup.
        state = self.config.app.state  # type: ignore[union-attr]
        if state.draining:  # the second signal skips the notice, the third one the answers
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
            return
        state.draining = True
        timer = threading.Timer(self._notice_s, self._close_door)
        timer.daemon = True
        timer.start()

    def _close_door(self) -> None:
        self.should_exit = True


def _bind(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"{flag}: cannot listen at {host} port {port}: {error.strerror or error}") from None
    return listener


def _connections(wanted: int) -> int:
    """Returns how many connections the limit of open files allows, besides the files that the process needs itself."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        in_use = len(os.listdir("/proc/self/fd"))
    except OSError:
        in_use = 64
    return wanted if allowed == resource.RLIM_INFINITY else max(1, min(wanted, allowed - in_use - 16))


def _header_length(request: Request) -> int | None:
    text = request.headers.get("inference-header-content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise HTTPException(400, f"inference-header-content-length: expected a number, found {text!r:.30}")
    return int(text)
