"""Scores requests with an exported package.

This file alone is enough, copy it into a service: it needs PyTorch, and FBGEMM where a package's tables are quantized.

    predictor = Predictor("package")
    probabilities = predictor.predict(predictor.request([{"age": 0.5, "user": 3, "tags": [7, 9]}]))
"""

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Must be set before a package is loaded: wrong types and shapes then raise instead of being misread.
os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")

import torch
from torch import Tensor
from torch._inductor.package import load_package

FORMAT = "nasrec-torchrec/package/2"
MANIFEST, PACKAGE, GOLDEN = "model.json", "model.pt2", "golden.json"


@dataclass(frozen=True)
class Request:
    """Rows to score.

    Args:
        ids: ``(T,)`` int64 of all features in the order of the manifest: first all ids of the first feature, row by
            row. Any number is allowed; one that the model does not know is looked up as 0, the missing id.
        lengths: ``(F_sparse, B)`` int64, how many ids each row has of each feature.
        dense: ``(B, F_dense)`` float32; None for a model without dense features.
        weights: ``(T,)`` float32 for a model of weighted ids, else None.
    """

    ids: Tensor
    lengths: Tensor
    dense: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.lengths.shape[1]


class Predictor:
    """A loaded package. Safe to use from several threads.

    Args:
        folder: that ``apps.export`` wrote.
        runners: calls that may run at the same time; the weights are held once.
        verify: compare the files with their checksums, and a stored response with the model's.
        chunk_size: rows that a CPU computes at a time, which bounds the memory of large requests.

    Raises:
        ValueError: when the package is damaged, or does not give on this machine what it gave where it was made.
    """

    def __init__(self, folder: str | Path, runners: int = 1, verify: bool = True, chunk_size: int = 512) -> None:
        folder = Path(folder)
        self.manifest: dict[str, Any] = _read(folder / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{folder / MANIFEST}: expected a manifest of format '{FORMAT}'")
        if verify:
            for name, known in self.manifest["sha256"].items():
                if _sha256(folder / name) != known:
                    raise ValueError(f"{folder / name}: its checksum is not that of the manifest")
        if "fbgemm_gpu" in self.manifest["requires"]:
            import fbgemm_gpu  # noqa: F401  registers the operator that looks quantized tables up
        schema = self.manifest["schema"]
        self.features: list[str] = [feature["name"] for feature in schema["sparse"]]
        self.dense_features: list[str] = [feature["name"] for feature in schema["dense"]]
        self.weighted = "weights" in self.manifest["inputs"]
        self.device = torch.device(self.manifest["device"])
        self._chunk_size = chunk_size if self.device.type == "cpu" else 2**30
        self._free = threading.BoundedSemaphore(runners)
        try:
            self._model = load_package(str(folder / PACKAGE), num_runners=runners)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{folder / PACKAGE}: cannot be loaded: {str(error).splitlines()[0]}") from None
        if verify:
            self._verify(folder / GOLDEN)

    def predict(self, request: Request) -> Tensor:
        """Probabilities of a click, ``(B,)`` float32.

        Raises:
            ValueError: when the tensors do not fit the model or each other.
        """
        return torch.sigmoid(self.logits(request))

    def logits(self, request: Request) -> Tensor:
        """Their logits, see :meth:`predict`."""
        self.check(request)
        if not len(request):
            return torch.empty(0)
        with self._free, torch.inference_mode():
            parts = split(request, self._chunk_size) if len(request) > self._chunk_size else [request]
            return torch.cat([self._run(part) for part in parts])

    def _run(self, request: Request) -> Tensor:
        named = {
            "dense": request.dense,
            "ids": request.ids,
            "lengths": request.lengths,
            "weights": request.weights,
        }
        inputs = [named[name].to(self.device).contiguous() for name in self.manifest["inputs"]]  # type: ignore[union-attr]
        return self._model(*inputs).cpu()

    def check(self, request: Request) -> None:
        """Raises ValueError, saying what is wrong, unless the model can score the request."""
        lengths, ids, dense, weights = request.lengths, request.ids, request.dense, request.weights
        _require(lengths, "lengths", torch.int64, (len(self.features), None))
        _require(ids, "ids", torch.int64, (None,))
        if len(lengths.flatten()) and int(lengths.min()) < 0:
            raise ValueError(f"lengths: expected numbers of ids, found {int(lengths.min())}")
        # Each is bounded before they are added: a sum may not overflow into a number that looks right.
        if (lengths.numel() and int(lengths.max()) > ids.numel()) or int(lengths.sum()) != ids.numel():
            raise ValueError(f"ids: the lengths ask for {sum(lengths.flatten().tolist())}, found {ids.numel()}")
        if self.dense_features:
            if dense is None:
                raise ValueError(f"dense: missing; expected a column for each of {self.dense_features}")
            _require(dense, "dense", torch.float32, (len(request), len(self.dense_features)))
            if not bool(torch.isfinite(dense).all()):
                raise ValueError("dense: expected finite numbers")
        elif dense is not None and dense.numel():
            raise ValueError("dense: this model has no dense features")
        if self.weighted:
            if weights is None:
                raise ValueError("weights: missing; expected one for each id")
            _require(weights, "weights", torch.float32, (ids.numel(),))
            if not bool(torch.isfinite(weights).all()):
                raise ValueError("weights: expected finite numbers")
        elif weights is not None:
            raise ValueError("weights: the ids of this model are not weighted")

    def request(self, rows: Sequence[Mapping[str, Any]]) -> Request:
        """Rows as values by the names of the features: a number, or a list of ids; a missing one is no id, or 0.

        For weighted ids a list of ``[id, weight]`` pairs.

        Raises:
            ValueError: for a name that the model does not know, or a value of another kind.
        """
        known = {*self.features, *self.dense_features}
        bags: dict[str, list[list[Any]]] = {name: [] for name in self.features}
        dense = []
        for number, row in enumerate(rows):
            unknown = sorted(set(row) - known)
            if unknown:
                raise ValueError(f"row {number}: unknown features {unknown}; the model has {sorted(known)}")
            for name, bag in bags.items():
                value = row.get(name, [])
                bag.append(list(value) if isinstance(value, list | tuple) else [value])
            dense.append([row.get(name, 0.0) for name in self.dense_features])
        try:
            lengths = torch.tensor([[len(bag) for bag in bags[name]] for name in self.features], dtype=torch.int64)
            flat = [value for name in self.features for bag in bags[name] for value in bag]
            weights = torch.tensor([weight for _, weight in flat], dtype=torch.float32) if self.weighted else None
            ids = torch.tensor([value[0] for value in flat] if self.weighted else flat, dtype=torch.int64)
            columns = torch.tensor(dense, dtype=torch.float32).reshape(len(rows), len(self.dense_features))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"rows: expected numbers: {error}") from None
        return Request(ids, lengths.reshape(len(self.features), len(rows)), columns, weights)

    def _verify(self, file: Path) -> None:
        golden = _read(file)
        types = {"ids": torch.int64, "lengths": torch.int64, "dense": torch.float32, "weights": torch.float32}
        tensors: dict[str, Any] = {
            name: torch.tensor(value, dtype=types[name]) for name, value in golden["request"].items()
        }
        request = Request(**tensors)
        expected = torch.tensor(golden["logits"])
        # By itself, row by row, and often enough to fill a batch.
        often = [request] * max(1, 512 // len(request))
        try:
            logits = torch.stack(
                [
                    self.logits(request),
                    torch.cat([self.logits(row) for row in split(request, 1)]),
                    *self.logits(merge(often)).split(len(request)),
                ]
            )
        except RuntimeError as error:
            raise ValueError(f"{file}: the model does not take the request: {str(error).splitlines()[0]}") from None
        difference = float((logits - expected).abs().max())
        if not difference <= golden["tolerance"] * max(1.0, float(expected.abs().max())):
            raise ValueError(
                f"{file}: the model's logits differ by {difference:.2g} from those where it was exported; "
                "export it on a machine like this one"
            )


class QueueFull(Exception):  # noqa: N818  as queue.Full is named
    """More rows wait than are allowed."""


class Batcher:
    """Scores requests of many threads together: while one batch runs, the next one gathers.

    Args:
        predictor: that scores.
        max_batch_size: rows of a batch; a larger request is a batch of its own.
        max_delay: seconds that a request waits for others at most when nothing runs.
        max_waiting: rows that may wait; beyond, requests are refused.
        observe: told the rows and seconds of every batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        max_batch_size: int = 512,
        max_delay: float = 0.001,
        max_waiting: int = 4096,
        observe: Any = None,
    ) -> None:
        self._predictor, self._observe = predictor, observe
        self._max_batch_size, self._max_delay, self._max_waiting = max_batch_size, max_delay, max_waiting
        self._queue: queue.SimpleQueue[tuple[Request, Future[Tensor]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.waiting = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> "Future[Tensor]":
        """Probabilities, later.

        Raises:
            ValueError: at once, for a request that does not fit the model.
            QueueFull: when too many rows wait.
            RuntimeError: when it is closed.
        """
        self._predictor.check(request)
        future: Future[Tensor] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            if self.waiting and self.waiting + len(request) > self._max_waiting:
                raise QueueFull(f"{self.waiting} rows wait already, {self._max_waiting} may")
            self.waiting += len(request)
            self._queue.put((request, future))
        return future

    def close(self) -> None:
        """Scores what was accepted, and ends."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        kept: tuple[Request, Future[Tensor]] | None = None
        while True:
            first = kept or self._queue.get()
            kept = None
            if first is None:
                return
            batch, rows, ended = [first], len(first[0]), False
            until = time.monotonic() + self._max_delay
            while rows < self._max_batch_size:
                try:
                    item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                    break
                if rows + len(item[0]) > self._max_batch_size:
                    kept = item
                    break
                batch.append(item)
                rows += len(item[0])
            self._score(batch, rows)
            if ended:
                return

    def _score(self, batch: "list[tuple[Request, Future[Tensor]]]", rows: int) -> None:
        started = time.perf_counter()
        try:
            scores = self._predictor.predict(merge([request for request, _ in batch]))
            for (_, future), part in zip(batch, scores.split([len(request) for request, _ in batch]), strict=True):
                future.set_result(part)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            with self._lock:
                self.waiting -= rows
            if self._observe is not None:
                self._observe(rows, time.perf_counter() - started)


def merge(requests: Sequence[Request]) -> Request:
    """Requests one after another, as one."""
    if len(requests) == 1:
        return requests[0]
    # Ids lie feature by feature, so those of each request are dealt out anew.
    per_feature = [request.lengths.sum(1).tolist() for request in requests]

    def dealt(tensors: Sequence[Tensor]) -> Tensor:
        parts = [tensor.split(counts) for tensor, counts in zip(tensors, per_feature, strict=True)]
        return torch.cat([part for feature in zip(*parts, strict=True) for part in feature])

    dense, weights = [request.dense for request in requests], [request.weights for request in requests]
    return Request(
        dealt([request.ids for request in requests]),
        torch.cat([request.lengths for request in requests], dim=1),
        None if dense[0] is None else torch.cat([part for part in dense if part is not None]),
        None if weights[0] is None else dealt([part for part in weights if part is not None]),
    )


def split(request: Request, size: int) -> list[Request]:
    """A request as several of at most ``size`` rows; :func:`merge` makes it one again."""
    rows = len(request)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), request.lengths.flatten().cumsum(0)])
    parts = []
    for first in range(0, rows, size):
        last = min(first + size, rows)
        starts = torch.arange(request.lengths.shape[0]) * rows
        spans = list(zip(ends[starts + first].tolist(), ends[starts + last].tolist(), strict=True))
        parts.append(
            Request(
                torch.cat([request.ids[start:end] for start, end in spans]),
                request.lengths[:, first:last],
                None if request.dense is None else request.dense[first:last],
                None if request.weights is None else torch.cat([request.weights[start:end] for start, end in spans]),
            )
        )
    return parts


def _require(tensor: Tensor, name: str, kind: torch.dtype, shape: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(shape) and all(
        size is None or size == found for size, found in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype != kind or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected {kind} of shape ({wanted}), found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return document


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
