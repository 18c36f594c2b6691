"""An HTTP service for exported packages that speaks the Open Inference Protocol (KServe v2)."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from nasrec_torchrec.inference import predictor as predictors
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.predictor import MANIFEST, Batcher, Predictor, QueueFull

_LOG = logging.getLogger("nasrec.serve")
_DATATYPES = {"FP32": np.float32, "INT64": np.int64}


class InferInput(BaseModel):
    """A tensor: its values in row-major order, nested or flat."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    """Tensors by the names that the model's metadata gives."""

    id: str | None = None
    inputs: list[InferInput] = Field(min_length=1)


class InferOutput(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferResponse(BaseModel):
    """Probabilities of a click, one for each row."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]


class Served:
    """The package that takes the traffic, which a newer one may replace while requests run."""

    def __init__(self, folder: Path, config: ServingConfig, metrics: "Metrics") -> None:
        self._folder, self._config, self._metrics = folder, config, metrics
        self._stopped = threading.Event()
        self._seen = self._stamp()
        self._load()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def close(self) -> None:
        self._stopped.set()
        self._watcher.join()
        self.batcher.close()

    def _load(self) -> None:
        predictor = Predictor(self._folder)
        config = self._config
        batcher = Batcher(
            predictor,
            config.max_batch_size,
            config.max_delay_ms / 1000,
            config.max_waiting,
            self._metrics.observe_batch,
        )
        # One assignment: a request uses the one or the other.
        self.current = predictor, batcher, predictor.manifest["sha256"][predictors.PACKAGE][:12]
        _LOG.info("serving %s, version %s", self._folder, self.version)

    @property
    def predictor(self) -> Predictor:
        return self.current[0]

    @property
    def batcher(self) -> Batcher:
        return self.current[1]

    @property
    def version(self) -> str:
        return self.current[2]

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = (self._folder / MANIFEST).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def _watch(self) -> None:
        while self._config.reload_seconds and not self._stopped.wait(self._config.reload_seconds):
            stamp = self._stamp()
            if stamp is None or stamp == self._seen:
                continue
            self._seen = stamp
            old = self.batcher
            try:
                self._load()
            except Exception as error:
                self._metrics.reloads.labels("refused").inc()
                _LOG.error("the new package is not served, the old one goes on: %s", error)
            else:
                self._metrics.reloads.labels("served").inc()
                old.close()


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        seconds = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        rows = tuple(2**power for power in range(14))
        self.latency = Histogram(
            "nasrec_request_seconds", "of an inference request", buckets=seconds, registry=self.registry
        )
        self.batch_rows = Histogram("nasrec_batch_rows", "scored together", buckets=rows, registry=self.registry)
        self.batch_seconds = Histogram(
            "nasrec_batch_seconds", "that a batch computes", buckets=seconds, registry=self.registry
        )
        self.requests = Counter("nasrec_requests", "by status", ["status"], registry=self.registry)
        self.reloads = Counter("nasrec_reloads", "of new packages", ["result"], registry=self.registry)
        self.waiting = Gauge("nasrec_waiting_rows", "in the queue or being scored", registry=self.registry)

    def observe_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)


def create_app(folder: Path, config: ServingConfig | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        folder: package that ``apps.export`` wrote; is looked at again and again, and a new one is verified before it
            takes the traffic.
        config: how.

    Raises:
        ValueError: when the package is damaged.
    """
    config = config or ServingConfig()
    torch.set_num_threads(config.threads)
    metrics = Metrics()
    served = Served(folder, config, metrics)
    metrics.waiting.set_function(lambda: served.batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        served.close()

    app = FastAPI(
        title="nasrec-torchrec",
        description="Click probabilities, by the Open Inference Protocol.",
        lifespan=lifespan,
    )
    # Who stops the server sets it first, see apps/serve.py.
    app.state.draining = False
    limit = config.max_body_mib << 20

    @app.middleware("http")
    async def bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            return _error(413, f"expected a body of {limit} bytes at most, found content-length {length}")
        if request.method == "POST" and "content-length" not in request.headers:
            return _error(411, "expected the header content-length")
        response = await call_next(request)
        if app.state.draining:
            response.headers["connection"] = "close"
        return response

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        metrics.requests.labels("400").inc()
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error(400, f"{where or 'body'}: {first['msg']}")

    def known(name: str) -> None:
        if name != config.name:
            raise HTTPException(404, f"unknown model {name!r}; this server has {config.name!r}")

    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "nasrec-torchrec", "version": "2", "extensions": []}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        if app.state.draining:
            raise HTTPException(503, "shutting down")
        return {"ready": True}

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        known(name)
        return {"name": name, "ready": True}

    @app.get("/v2/models/{name}")
    async def model_metadata(name: str) -> dict[str, Any]:
        known(name)
        return {
            "name": name,
            "versions": [served.version],
            "platform": "pytorch_aotinductor",
            "inputs": _described(served.predictor),
            "outputs": [{"name": "probability", "datatype": "FP32", "shape": [-1]}],
        }

    @app.post(
        "/v2/models/{name}/infer",
        responses={code: {"description": text} for code, text in _FAILURES.items()},
    )
    async def infer(name: str, request: InferRequest) -> InferResponse:
        known(name)
        started = time.perf_counter()
        # Both at once, so that a new package never answers for the checks of an old one.
        predictor, batcher, version = served.current
        try:
            asked = _tensors(predictor, request.inputs)
            if len(asked) > config.max_rows:
                raise ValueError(f"expected {config.max_rows} rows at most, found {len(asked)}")
            scores = await asyncio.wrap_future(_submit(served, batcher, asked))
        except QueueFull as error:
            metrics.requests.labels("429").inc()
            raise HTTPException(429, f"busy: {error}") from None
        except ValueError as error:
            metrics.requests.labels("400").inc()
            raise HTTPException(400, str(error)) from None
        metrics.requests.labels("200").inc()
        metrics.latency.observe(time.perf_counter() - started)
        output = InferOutput(name="probability", shape=[len(scores)], datatype="FP32", data=scores.tolist())
        return InferResponse(model_name=name, model_version=version, id=request.id, outputs=[output])

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


_FAILURES: dict[int | str, str] = {
    400: "The request does not fit the model; the reason is in `error`.",
    404: "Unknown model.",
    411: "No content-length.",
    413: "The body is too large.",
    429: "Too many rows wait; ask again later.",
}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _submit(served: Served, batcher: Batcher, asked: predictors.Request) -> Any:
    try:
        return batcher.submit(asked)
    except RuntimeError:  # a new package has taken over since
        return served.batcher.submit(asked)


def _described(predictor: Predictor) -> list[dict[str, Any]]:
    shapes = {
        "dense": ("FP32", [-1, len(predictor.dense_features)]),
        "ids": ("INT64", [-1]),
        "lengths": ("INT64", [len(predictor.features), -1]),
        "weights": ("FP32", [-1]),
    }
    names = predictor.manifest["inputs"]
    return [{"name": name, "datatype": shapes[name][0], "shape": shapes[name][1]} for name in names]


def _tensors(predictor: Predictor, inputs: Sequence[InferInput]) -> predictors.Request:
    """The request's tensors.

    Raises:
        ValueError: says which input does not fit, and why.
    """
    expected = {entry["name"]: entry for entry in _described(predictor)}
    tensors: dict[str, torch.Tensor] = {}
    for given in inputs:
        if given.name not in expected or given.name in tensors:
            raise ValueError(f"inputs: expected {list(expected)}, each once, found {[part.name for part in inputs]}")
        wanted = expected[given.name]
        if given.datatype != wanted["datatype"]:
            raise ValueError(f"{given.name}: datatype: expected {wanted['datatype']}, found {given.datatype!r}")
        fits = len(given.shape) == len(wanted["shape"]) and all(
            size >= 0 and most in (-1, size) for size, most in zip(given.shape, wanted["shape"], strict=True)
        )
        if not fits:
            raise ValueError(f"{given.name}: shape: expected {wanted['shape']}, -1 being any, found {given.shape}")
        tensors[given.name] = _tensor(given)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"inputs: missing {missing}")
    return predictors.Request(**tensors)


def _tensor(given: InferInput) -> torch.Tensor:
    kind = _DATATYPES[given.datatype]
    try:
        values = np.asarray(given.data)
    except (ValueError, OverflowError):
        raise ValueError(f"{given.name}: data: expected numbers, nested as the shape says or flat") from None
    whole = values.dtype.kind == "i"
    if values.size and not (whole or (kind is np.float32 and values.dtype.kind == "f")):
        what = "integers of 64 bits" if kind is np.int64 else "numbers"
        raise ValueError(f"{given.name}: data: expected {what}, found {_sample(values)}")
    if values.size != int(np.prod(given.shape, dtype=object)) or values.shape not in (
        tuple(given.shape),
        (values.size,),
    ):
        raise ValueError(f"{given.name}: data: expected {given.shape} values, found {list(values.shape)}")
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(values.astype(kind).reshape(given.shape)))


def _sample(values: np.ndarray) -> str:
    text = repr(values.flat[0] if values.size else values.dtype)
    return text if len(text) < 60 else f"{text[:60]}..."
