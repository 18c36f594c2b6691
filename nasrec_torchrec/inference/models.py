"""The models of a server, and which of them answers a request.

A traffic split shares the requests for one name among several models. A request that carries a key always goes to the
same model, as long as the shares stay as they are; one without a key goes to a random one. A shadow model scores the
same requests, but its answers are only logged and compared.
"""

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypeVar

import torch

from nasrec_torchrec.inference import protocol
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.metrics import ServerMetrics
from nasrec_torchrec.inference.predictor import Predictor, QueueFull, Request
from nasrec_torchrec.inference.rows import RowReader
from nasrec_torchrec.inference.served import Served

_LOG = logging.getLogger("nasrec.serve")
# Header of HTTP and key of gRPC's metadata that say whose request it is.
KEY = "nasrec-key"
Reader: TypeAlias = RowReader | ValueError


class Asked(Protocol):
    """What a client asks for."""

    @property
    def request(self) -> Request:
        """Tensors for the model."""

    @property
    def extra(self) -> int:
        """Number of raw values that were passed over."""

    @property
    def id(self) -> str | None:
        """Identifier of the request."""


_A = TypeVar("_A", bound=Asked)
Read: TypeAlias = Callable[[Predictor, Reader], Awaitable[_A]]


class UnknownModelError(LookupError):
    """The server does not have the model or the version."""


class Models:
    """The models of a server.

    Args:
        folders: folder of the package of each model.
        config: how they are served; without a split, every model answers under its own name alone.
        metrics: metrics to update.

    Raises:
        ValueError: If a package is damaged, or the models of the split do not have the same inputs and outputs.
    """

    def __init__(self, folders: Mapping[str, Path], config: ServingConfig, metrics: ServerMetrics) -> None:
        self._config, self._metrics = config, metrics
        self._log: IO[str] | None = None
        with ExitStack() as stack:
            self.all: dict[str, Served] = {}
            for name, folder in folders.items():
                self.all[name] = served = Served(name, folder, config, metrics)
                stack.callback(served.close)
            self._check()
            if config.shadow_log is not None:
                self._log = stack.enter_context(open(config.shadow_log, "a", encoding="utf-8"))
            self._stack = stack.pop_all()
        metrics.follow(list(self.all.values()))

    def close(self) -> None:
        """Scores the accepted requests, and removes the temporary files."""
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """The names that requests may use."""
        return [*self.all, *([self._config.name] if self._config.split else [])]

    def find(self, name: str, version: str | None = None) -> list[Served]:
        """Returns the models that answer under a name, in the order of the split.

        Raises:
            UnknownModelError: If there is none.
        """
        if name in self.all:
            found = [self.all[name]]
        elif self._config.split and name == self._config.name:
            found = [self.all[part] for part in self._config.split]
        else:
            raise UnknownModelError(f"unknown model {name!r:.100}; this server has {_listed(self.names)}")
        if version:
            versions = [served.current[2] for served in found]
            found = [served for served, known in zip(found, versions, strict=True) if known == version]
            if not found:
                raise UnknownModelError(f"unknown version {version!r:.100}; this server has {_listed(versions)}")
        return found

    def choose(self, name: str, version: str | None = None, key: str | None = None) -> Served:
        """Returns the model that answers a request.

        Args:
            name: name in the request.
            version: version in the request, if it wants one.
            key: whose request it is; requests of one key get the same model.

        Raises:
            UnknownModelError: If the server does not have the model or the version.
        """
        found = self.find(name, version)
        if len(found) == 1:
            return found[0]
        place = random.random()
        if key is not None:
            place = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
        for served in found:
            place -= self._config.split[served.name]
            if place < 0:
                return served
        return found[-1]

    async def score(self, served: Served, read: "Read[_A]") -> tuple[_A, str, torch.Tensor]:
        """Scores a request.

        Args:
            served: model that answers.
            read: reads the request for a model. It is called again if the package is replaced meanwhile.

        Returns:
            What was asked for, the version that answers, and the probabilities.

        Raises:
            ValueError: If the request does not fit the model.
            QueueFull: If too many rows wait.
        """
        while True:
            # Taken at once, so that a request is never checked by one package and answered by another.
            predictor, batcher, version, reader = served.current
            asked = await read(predictor, reader)
            try:
                future = batcher.submit(asked.request)
                break
            except RuntimeError:  # a new package has taken over since
                continue
        self._metrics.extra_values.labels(served.name).inc(asked.extra)
        shadow = self._config.shadow
        if shadow is not None and shadow != served.name:
            await self._follow(self.all[shadow], read, served.name, version, predictor.outputs, future)
        return asked, version, await asyncio.wrap_future(future)

    async def _follow(
        self,
        shadow: Served,
        read: "Read[_A]",
        name: str,
        version: str,
        outputs: list[str],
        answer: "Future[torch.Tensor]",
    ) -> None:
        """Lets a second model score the request; nothing that happens to it reaches the client."""
        try:
            predictor, batcher, shadow_version, reader = shadow.current
            if predictor.outputs != outputs:
                raise ValueError(f"it predicts {predictor.outputs}, the model that answers {outputs}")
            asked = await read(predictor, reader)
            future = batcher.submit(asked.request)
        except (ValueError, QueueFull, RuntimeError) as error:
            self._metrics.shadow.labels(shadow.name, "failed").inc()
            _LOG.debug("%s: %s", shadow.name, error)
            return

        def both(_: "Future[torch.Tensor]") -> None:
            if answer.cancelled() or answer.exception() or future.cancelled() or future.exception():
                self._metrics.shadow.labels(shadow.name, "failed").inc()
                return
            sent, compared = answer.result(), future.result()
            self._metrics.shadow.labels(shadow.name, "scored").inc()
            for difference in (compared - sent).abs().flatten().tolist():
                self._metrics.shadow_difference.labels(shadow.name).observe(difference)
            if self._log is not None:
                entry: dict[str, Any] = {"time": round(time.time(), 3), "id": asked.id}
                entry |= {"model": name, "version": version, "sent": sent.tolist()}
                entry |= {"shadow": shadow.name, "shadow_version": shadow_version, "scored": compared.tolist()}
                self._log.write(json.dumps(entry) + "\n")
                self._log.flush()

        def hung_up(answer: "Future[torch.Tensor]") -> None:
            if answer.cancelled():
                future.cancel()

        answer.add_done_callback(hung_up)
        once = _Once(both)
        answer.add_done_callback(once)
        future.add_done_callback(once)

    def _check(self) -> None:
        found = {name: protocol.describe_inputs(self.all[name].current[0]) for name in self._config.split}
        for name, inputs in found.items():
            first = next(iter(found))
            if inputs != found[first]:
                raise ValueError(f"split: {name} takes {inputs}, but {first} takes {found[first]}")
        answers = {name: self.all[name].current[0].outputs for name in self._config.split}
        for name, outputs in answers.items():
            first = next(iter(answers))
            if outputs != answers[first]:
                raise ValueError(f"split: {name} predicts {outputs}, but {first} predicts {answers[first]}")


def describe(models: Models, name: str, version: str | None = None) -> dict[str, Any]:
    """Returns the metadata of a model in the protocol's form, and where each of its versions comes from.

    Raises:
        UnknownModelError: If the server does not have the model or the version.
    """
    found = models.find(name, version)
    return {
        "name": name,
        "versions": list(dict.fromkeys(served.current[2] for served in found)),
        "platform": "pytorch_aotinductor",
        "inputs": protocol.describe_inputs(found[0].current[0]),
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in found[0].current[0].outputs],
        "parameters": {
            "origin": [
                {"model": served.name, **served.origin(), **({"refused": served.refused} if served.refused else {})}
                for served in found
            ]
        },
    }


class _Once:
    """Calls a function for the second of two futures."""

    def __init__(self, call: "Callable[[Future[torch.Tensor]], None]") -> None:
        self._call, self._lock, self._left = call, threading.Lock(), 2

    def __call__(self, future: "Future[torch.Tensor]") -> None:
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._call(future)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in dict.fromkeys(names))
