"""Scores requests with an exported package.

Copy this file into a service; it needs only PyTorch, and FBGEMM if the tables of a package are quantized.

    predictor = Predictor("package")
    probabilities = predictor.predict(predictor.request([{"age": 0.5, "user": 3, "tags": [7, 9]}]))

The same rule for ids holds wherever a package is used: an id is a 64-bit integer, and anything else is refused. An id
that the table of its feature does not have (below 0 or beyond the last row) is looked up as 0, the missing id, and
counted in :attr:`Predictor.unknown_ids`.
"""

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import queue
import shutil
import struct
import tempfile
import threading
import time
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

# Must be set before a package is loaded: wrong types and shapes then raise instead of being misread.
os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")

import torch
from torch import Tensor
from torch._inductor.package import load_package

FORMAT = "nasrec-torchrec/package/3"
MANIFEST, PACKAGE, GOLDEN = "model.json", "model.pt2", "golden.json"
# Folder of the tables that a process maps into its memory.
TABLES = "tables"
# What a model of one label predicts.
OUTPUT = "probability"
_LOG = logging.getLogger("nasrec.predictor")


@dataclass(frozen=True)
class Request:
    """Rows to score.

    Args:
        ids: ``(T,)`` int64, the ids of all features in the order of the manifest: first all ids of the first feature,
            row by row. Any number is allowed; one that the model does not know is looked up as 0, the missing id.
        lengths: ``(F_sparse, B)`` int64, the number of ids of each feature in each row.
        dense: ``(B, F_dense)`` float32; None for a model without dense features.
        weights: ``(T,)`` float32 for a model with weighted ids, otherwise None.
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
        folder: folder that ``nasrec export`` wrote.
        runners: number of calls that may run at the same time; they share the weights.
        verify: whether to compare the files with their checksums, and a stored response with the model's.
        chunk_size: number of rows that a CPU computes at a time, which bounds the memory of large requests.

    Attributes:
        folder: folder of the package, from which the first call of :meth:`rows` reads the words of dictionaries.
        outputs: names of what the model predicts: ``probability`` of a single label, and the labels if it has several.
        manifest: content of the package's ``model.json``.
        version: twelve digits that differ between packages if any of their files does.
        close: function that removes the temporary files of a package that is no longer used.
        ids: number of ids of each feature that were looked up since the package was loaded.
        unknown_ids: number of these that the table of the feature does not have.

    Raises:
        ValueError: If the package is damaged, or does not reproduce its stored response on this machine.
    """

    def __init__(self, folder: str | Path, runners: int = 1, verify: bool = True, chunk_size: int = 512) -> None:
        self.folder = folder = Path(folder)
        self._reader: Any = None
        self.manifest: dict[str, Any] = read_manifest(folder, verify)
        sums, mapped = self.manifest["sha256"], self.manifest.get("mapped", [])
        if verify:
            later = {MANIFEST, PACKAGE, *(table["file"] for table in mapped)}
            for name in sums:
                if name not in later:
                    with _reading(folder / name) as opened:
                        _compare(opened, sums[name])
        self._tables = [_map(folder, table, sums[table["file"]] if verify else "") for table in mapped]
        if "fbgemm_gpu" in self.manifest["requires"]:
            import fbgemm_gpu  # noqa: F401  registers the operator that looks quantized tables up
        schema = self.manifest["schema"]
        self.features: list[str] = [feature["name"] for feature in schema["sparse"]]
        self.dense_features: list[str] = [feature["name"] for feature in schema["dense"]]
        self.outputs: list[str] = outputs_of(self.manifest)
        self.weighted = "weights" in self.manifest["inputs"]
        self.device = torch.device(self.manifest["device"])
        self._rows = torch.tensor([_id_limit(feature) for feature in schema["sparse"]])
        self._chunk_size = chunk_size if self.device.type == "cpu" else 2**30
        self._free = threading.BoundedSemaphore(runners)
        self._counting = threading.Lock()
        self.version = version_of(self.manifest)
        self._model, folder_and_lock = _load(folder / PACKAGE, sums[PACKAGE] if verify else "", runners)
        # If nobody calls it, the garbage collector does, or the end of the process.
        self.close = weakref.finalize(self, _remove, os.getpid(), *folder_and_lock)
        self._count_from_now_on()
        if verify:
            self._verify(folder / GOLDEN)
            self._count_from_now_on()

    def predict(self, request: Request) -> Tensor:
        """Returns the click probabilities, ``(B,)`` float32; of several labels ``(B, T)``, in the order of ``outputs``.

        Raises:
            ValueError: If the tensors do not fit the model or each other.
        """
        return torch.sigmoid(self.logits(request))

    def rows(self, rows: Sequence[Mapping[str, Any]], shared: Mapping[str, Any] | None = None) -> Tensor:
        """Returns the probabilities of raw rows as :meth:`predict` does; it transforms them as the preparation did.

        Only this method needs more than this file: nasrec_torchrec, or the archive of its reader, see
        :mod:`nasrec_torchrec.inference.reader_archive`. What a row may hold stands in
        :mod:`nasrec_torchrec.inference.rows`.

        Args:
            rows: raw values by column.
            shared: values that all rows have, such as those of the user whose candidates the rows are.

        Raises:
            ValueError: If a value cannot be read; the message names the row, the column and the value. Or if the
                package lacks the words of its dictionaries.
        """
        if self._reader is None:
            from nasrec_torchrec.inference.rows import RowReader

            self._reader = RowReader.of_package(self.folder, self.manifest)
        return self.predict(self._reader.read(rows, shared).request)

    def logits(self, request: Request) -> Tensor:
        """Returns the logits in float32; see :meth:`predict`."""
        self.check(request)
        if not len(request):
            return torch.empty(0, *self._per_row)
        with self._free, torch.inference_mode():
            parts = split(request, self._chunk_size) if len(request) > self._chunk_size else [request]
            logits = torch.cat([self._run(part) for part in parts])
        self._count(request)
        return logits

    @property
    def _per_row(self) -> tuple[int, ...]:
        """The shape of the logits of a row."""
        return () if len(self.outputs) == 1 else (len(self.outputs),)

    def _run(self, request: Request) -> Tensor:
        named = {
            "dense": request.dense,
            "ids": request.ids,
            "lengths": request.lengths,
            "weights": request.weights,
        }
        inputs = [_row_major(named[name]).to(self.device) for name in self.manifest["inputs"]]  # type: ignore[arg-type]
        return self._model(*inputs, *self._tables).cpu()

    def unknown(self, request: Request) -> dict[str, int]:
        """Counts the ids of each feature that its table does not have, in a request that :meth:`check` accepts."""
        per_feature = request.lengths.sum(1)
        outside = (request.ids < 0) | (request.ids >= self._rows.repeat_interleave(per_feature))
        if not bool(outside.any()):
            return dict.fromkeys(self.features, 0)
        counts = [int(part.sum()) for part in outside.split(per_feature.tolist())]
        return dict(zip(self.features, counts, strict=True))

    def _count(self, request: Request) -> None:
        counts, unknown = request.lengths.sum(1).tolist(), self.unknown(request)
        with self._counting:
            for name, count in zip(self.features, counts, strict=True):
                self.ids[name] += count
                self.unknown_ids[name] += unknown[name]

    def _count_from_now_on(self) -> None:
        self.ids, self.unknown_ids = dict.fromkeys(self.features, 0), dict.fromkeys(self.features, 0)

    def check(self, request: Request) -> None:
        """Checks that the model can score a request.

        Raises:
            ValueError: If it cannot; the message says why.
        """
        lengths, ids, dense, weights = request.lengths, request.ids, request.dense, request.weights
        _require(lengths, "lengths", torch.int64, (len(self.features), None))
        _require(ids, "ids", torch.int64, (None,))
        if len(lengths.flatten()) and int(lengths.min()) < 0:
            raise ValueError(f"lengths: expected numbers of ids, found {int(lengths.min())}")
        # Each is bounded before they are added, because an overflowing sum could look right.
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
        """Makes a request from rows of prepared values, which are named by feature.

        An id is an integer (3.0 is 3). A multi-hot feature has a list of ids, and a weighted one a list of ``[id,
        weight]`` pairs. A dense value is a finite number. A value that is None or left out is missing, which means no
        id, or 0.

        Raises:
            ValueError: If the model does not know a name, or a value is of another kind; the message names the row, the
                feature and the value.
        """
        known = {*self.features, *self.dense_features}
        dense, bags, weights = [], {name: [] for name in self.features}, {name: [] for name in self.features}  # type: ignore[var-annotated]
        lengths: dict[str, list[int]] = {name: [] for name in self.features}
        for number, row in enumerate(rows):
            unknown = sorted(set(row) - known)
            if unknown:
                raise ValueError(f"row {number}: unknown features {unknown}; the model has {sorted(known)}")
            try:
                for name in self.features:
                    entries = _entries(row.get(name))
                    if self.weighted:
                        pairs = [_pair(entry) for entry in entries]
                        weights[name] += [weight for _, weight in pairs]
                        entries = [value for value, _ in pairs]
                    bags[name] += [_whole(entry) for entry in entries]
                    lengths[name].append(len(entries))
                for name in self.dense_features:
                    value = row.get(name)
                    dense.append(0.0 if value is None else _finite(value))
            except ValueError as error:
                raise ValueError(f"row {number}: {name}: {error}") from None
        return Request(
            torch.tensor([value for name in self.features for value in bags[name]], dtype=torch.int64),
            torch.tensor([lengths[name] for name in self.features], dtype=torch.int64).view(
                len(self.features), len(rows)
            ),
            torch.tensor(dense, dtype=torch.float32).view(len(rows), len(self.dense_features)),
            torch.tensor([value for name in self.features for value in weights[name]]) if self.weighted else None,
        )

    def _verify(self, file: Path) -> None:
        golden = _read(file)
        types = {"ids": torch.int64, "lengths": torch.int64, "dense": torch.float32, "weights": torch.float32}
        try:
            request = Request(
                **{name: torch.tensor(value, dtype=types[name]) for name, value in golden["request"].items()}
            )
            expected, tolerance = torch.tensor(golden["logits"], dtype=torch.float32), float(golden["tolerance"])
            self.check(request)
            shape = len(request), *self._per_row
            if not len(request) or expected.shape != shape:
                raise ValueError(f"expected logits of shape {shape}, at least one, found {tuple(expected.shape)}")
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{file}: not a request and its response: {error!r}") from None
        # As it is, row by row, and repeated until a batch is full.
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
        if not difference <= tolerance * max(1.0, float(expected.abs().max())):
            raise ValueError(
                f"{file}: the model's logits differ by {difference:.2g} from those where it was exported; "
                "export it on a machine like this one"
            )


class QueueFull(Exception):  # noqa: N818  as queue.Full is named
    """Too many rows are waiting already."""


_Waiting = tuple[Request, "Future[Tensor]", float]


class Batcher:
    """Scores requests of many threads in common batches: while one batch runs, the next one collects requests.

    Args:
        predictor: predictor that scores the requests.
        max_batch_size: largest number of rows in a batch; a larger request is a batch of its own.
        max_delay: longest time in seconds that a request waits for others while nothing runs.
        max_waiting: largest number of waiting rows; further requests are refused.
        observe: function that is called with the number of rows and the seconds of every batch.
        waited: function that is called with the seconds that each request waited for its batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        max_batch_size: int = 512,
        max_delay: float = 0.001,
        max_waiting: int = 4096,
        observe: Callable[[int, float], None] | None = None,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self._predictor, self._observe, self._waited = predictor, observe, waited
        self._max_batch_size, self._max_delay, self._max_waiting = max_batch_size, max_delay, max_waiting
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.waiting = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> "Future[Tensor]":
        """Returns the future of the probabilities; cancelling it does not affect other requests.

        Raises:
            ValueError: If the request does not fit the model.
            QueueFull: If too many rows are waiting.
            RuntimeError: If the batcher is closed.
        """
        self._predictor.check(request)
        future: Future[Tensor] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            if self.waiting and self.waiting + _weight(request) > self._max_waiting:
                raise QueueFull(f"{self.waiting} rows wait already, {self._max_waiting} may")
            self.waiting += _weight(request)
            self._queue.put((request, future, time.perf_counter()))
        return future

    def close(self) -> None:
        """Scores the accepted requests and ends the thread."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        kept: _Waiting | None = None
        ended = False
        while not ended or kept is not None:
            first = kept or self._next()
            kept = None
            if first is None:
                return
            batch, rows = [first], len(first[0])
            until = time.monotonic() + self._max_delay
            while rows < self._max_batch_size and not ended:
                try:
                    item = self._next(until)
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                elif rows + len(item[0]) > self._max_batch_size:
                    kept = item
                    break
                else:
                    batch.append(item)
                    rows += len(item[0])
            self._score(batch)

    def _next(self, until: float | None = None) -> "_Waiting | None":
        """Returns the next request that nobody has cancelled; None when the batcher closes."""
        while True:
            item = self._queue.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            if item is None or not item[1].cancelled():
                return item
            self._leave([item])

    def _leave(self, batch: "list[_Waiting]") -> None:
        with self._lock:
            self.waiting -= sum(_weight(request) for request, _, _ in batch)

    def _score(self, batch: "list[_Waiting]") -> None:
        started = time.perf_counter()
        # From here on a future can no longer be cancelled.
        waits = [started - since for _, _, since in batch]
        wanted = [(request, future) for request, future, _ in batch if future.set_running_or_notify_cancel()]
        rows = sum(len(request) for request, _ in wanted)
        try:
            scores = self._predictor.predict(merge([request for request, _ in wanted])) if wanted else torch.empty(0)
            for (_, future), part in zip(wanted, scores.split([len(request) for request, _ in wanted]), strict=True):
                future.set_result(part)
        except Exception:
            # One request may have made the batch fail, so each gets an answer or an error of its own.
            for request, future in wanted:
                try:
                    future.set_result(self._predictor.predict(request))
                except Exception as error:
                    future.set_exception(error)
        self._leave(batch)
        if wanted:
            try:
                if self._observe is not None:
                    self._observe(rows, time.perf_counter() - started)
                if self._waited is not None:
                    for seconds in waits:
                        self._waited(seconds)
            except Exception:
                _LOG.exception("the observer of batches failed")


def _weight(request: Request) -> int:
    """Returns the number of rows that a waiting request counts as; a request without rows counts as one."""
    return max(1, len(request))


def merge(requests: Sequence[Request]) -> Request:
    """Joins requests into one, in their order."""
    if len(requests) == 1:
        return requests[0]
    # Ids are stored feature by feature, so those of all requests are interleaved.
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
    """Splits a request into several of at most ``size`` rows; :func:`merge` joins them again."""
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
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        size is None or size == found for size, found in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype != kind or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected {kind} of shape ({wanted}), found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _row_major(tensor: Tensor) -> Tensor:
    """Returns the tensor with the strides that compiled code expects, even if a dimension has no element or one."""
    expected = [math.prod(max(size, 1) for size in tensor.shape[place + 1 :]) for place in range(tensor.dim())]
    if list(tensor.stride()) == expected:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _plain(value: Any) -> Any:
    """Converts a NumPy or PyTorch value to a Python value."""
    return value.tolist() if hasattr(value, "tolist") else value


def _entries(value: Any) -> list[Any]:
    value = _plain(value)
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _whole(value: Any) -> int:
    number = _plain(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and -(2**63) <= number < 2**63:
        return number
    raise ValueError(f"expected whole numbers of 64 bits as ids, found {value!r:.60}")


def _pair(value: Any) -> tuple[Any, float]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], _finite(value[1])
    raise ValueError(f"expected [id, weight] pairs, found {value!r:.60}")


def _finite(value: Any) -> float:
    number = _plain(value)
    # A number that rounds to infinity in 32 bits is too large.
    if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= 3.4028235e38:
        return float(number)
    raise ValueError(f"expected a finite number of 32 bits, found {value!r:.60}")


def read_manifest(folder: Path, verify: bool = True) -> dict[str, Any]:
    """Reads the manifest of a package, and checks everything that a predictor relies on.

    Args:
        folder: folder of the package.
        verify: whether to compare the manifest with its own checksum.

    Raises:
        ValueError: If something is missing or wrong; the message says what.
    """
    file = folder / MANIFEST
    document = _read(file)
    if document.get("format") != FORMAT:
        found = document.get("format")
        raise ValueError(
            f"{file}: expected a manifest of format '{FORMAT}', found {found!r:.80}: export the model again with this "
            "version"
        )
    try:
        schema, inputs, sums = document["schema"], document["inputs"], document["sha256"]
        names = [*(["dense"] if schema["dense"] else []), "ids", "lengths"]
        valid = {
            "inputs": inputs in (names, [*names, "weights"]),
            "outputs": _are_names(document.get("outputs", [OUTPUT])),
            "device": document["device"] in ("cpu", "cuda"),
            "requires": document["requires"] in (["torch"], ["torch", "fbgemm_gpu"]),
            "schema.dense": all(isinstance(feature["name"], str) for feature in schema["dense"]),
            "schema.sparse": len(schema["sparse"]) > 0
            and all(isinstance(part["name"], str) and 0 < part["num_embeddings"] < 2**63 for part in schema["sparse"]),
            "sha256": {MANIFEST, PACKAGE, GOLDEN} <= set(sums) and all(map(is_inside, sums)),
            "mapped": all(_is_mapped(table, sums) for table in document.get("mapped", [])),
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{file}: not the manifest of a package: {error!r}") from None
    if not all(valid.values()):
        wrong = [key for key, right in valid.items() if not right]
        raise ValueError(f"{file}: not the manifest of a package: {', '.join(wrong)}: not as an export writes it")
    if verify and manifest_sha256(document) != sums[MANIFEST]:
        raise ValueError(f"{file}: its checksum is not that of its content")
    return document


def outputs_of(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the names of what a package predicts, which has several if its model has several labels."""
    return list(manifest.get("outputs", [OUTPUT]))


def _are_names(found: Any) -> bool:
    return (
        isinstance(found, list) and all(isinstance(name, str) for name in found) and 0 < len(set(found)) == len(found)
    )


def _is_mapped(table: Mapping[str, Any], sums: Mapping[str, str]) -> bool:
    sizes = table["shape"]
    valid = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
    return valid and table["file"] in sums and table["type"] in ("float32", "uint8")


def manifest_sha256(document: Mapping[str, Any]) -> str:
    """Returns the checksum of a manifest without its list of checksums, which cover the other files."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def version_of(manifest: Mapping[str, Any]) -> str:
    """Returns the version of a package, which differs if any of its files does."""
    return hashlib.sha256(json.dumps(manifest["sha256"], sort_keys=True).encode()).hexdigest()[:12]


def is_inside(name: str) -> bool:
    """Returns whether a name stays inside the folder that it is joined to."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _load(file: Path, known: str, runners: int) -> tuple[Callable[..., Tensor], tuple[Path, IO[str]]]:
    """Loads a compiled model, unless its checksum differs from the known one.

    Returns:
        The model, and its temporary folder with the lock of that.
    """
    folder = None
    try:
        folder, lock = _make_folder()
        with file.open("rb") as opened:
            # Compares what is loaded, even if the file is replaced meanwhile.
            if known:
                _compare(opened, known)
            with zipfile.ZipFile(opened) as archive:
                archive.extractall(folder)
        for library in folder.rglob("*.so"):
            _let_go(library)
        try:
            from torch.export.pt2_archive._package import AOTICompiledModel

            loader = torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", False, runners, -1)
            return AOTICompiledModel(loader), (folder, lock)
        except (ImportError, RuntimeError):  # PyTorch before 2.13 loads files only
            return load_package(str(file), num_runners=runners), (folder, lock)
    except (ValueError, RuntimeError, OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        if folder is not None:
            _remove(os.getpid(), folder, lock)
        if isinstance(error, ValueError) and MANIFEST in str(error):
            raise
        raise ValueError(f"{file}: cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}") from None


def _map(folder: Path, table: Mapping[str, Any], known: str) -> Tensor:
    """Maps a table into the memory, unless its checksum differs from the known one.

    Its pages are read when rows are looked up, belong to all processes that map the file, and can be dropped whenever
    the memory is needed for something else.
    """
    kind, shape = getattr(torch, table["type"]), table["shape"]
    with _reading(folder / table["file"]) as opened:
        expected, found = math.prod(shape) * kind.itemsize, os.fstat(opened.fileno()).st_size
        if found != expected:
            raise ValueError(f"{opened.name}: expected {expected:,} bytes, found {found:,}")
        if known:
            _compare(opened, known)
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # a row is not followed by its neighbors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to
        return torch.frombuffer(mapped, dtype=kind).view(shape)


def _let_go(library: Path) -> None:
    """Lets a compiled model leave the memory with its last user.

    g++ marks inline variables as unique in the process, and the loader never unloads a library with such a symbol, nor
    the weights in it. As weak symbols they are the library's own.
    """
    dynamic_symbols, unique, weak, entry_bytes = 11, 10, 2, 24
    with library.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as elf:
        if elf[:6] != b"\x7fELF\x02\x01":  # not of 64 bits, or not little-endian
            return
        (sections,) = struct.unpack_from("<Q", elf, 40)
        header_bytes, count = struct.unpack_from("<HH", elf, 58)
        for header in range(sections, sections + header_bytes * count, header_bytes):
            (kind,) = struct.unpack_from("<I", elf, header + 4)
            begin, size = struct.unpack_from("<QQ", elf, header + 24)
            if kind == dynamic_symbols:
                for place in range(begin + 4, begin + size, entry_bytes):
                    if elf[place] >> 4 == unique:
                        elf[place] = weak << 4 | elf[place] & 15


def _make_folder() -> tuple[Path, IO[str]]:
    """Creates a temporary folder that is locked while this process lives; removes those of killed processes."""
    home, prefix = Path(tempfile.gettempdir()), f"nasrec-aotinductor-{os.getuid()}-"
    gate = os.open(home / f".{prefix}lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for left in home.glob(f"{prefix}*"):
            with suppress(OSError):  # another process may be removing its own at this moment
                if left.is_symlink() or left.lstat().st_uid != os.getuid():
                    continue
                with (left / ".lock").open("w") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    finally:
        os.close(gate)


def _remove(pid: int, folder: Path, lock: IO[str]) -> None:
    if pid == os.getpid():  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return document


def _id_limit(feature: Mapping[str, Any]) -> int:
    # As nasrec_torchrec.id_space has it, which may not be installed here.
    return 2**62 if feature.get("ids") == "dynamic" else feature["num_embeddings"]


def _sha256(opened: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _compare(opened: IO[bytes], known: str) -> None:
    if _sha256(opened) != known:
        raise ValueError(f"{opened.name}: its checksum is not that of {MANIFEST}")


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as opened:
            yield opened
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
