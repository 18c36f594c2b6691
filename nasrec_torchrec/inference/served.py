"""The package that answers the requests, and its replacement while requests run."""

import json
import logging
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.words import ReplacedError
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.metrics import FeatureCounts, ServerMetrics
from nasrec_torchrec.inference.predictor import GOLDEN, MANIFEST, PACKAGE, Batcher, Predictor
from nasrec_torchrec.inference.rows import RowReader

_LOG = logging.getLogger("nasrec.serve")
# A refused package is checked again when one of its files changed, or after this time.
_RETRY_SECONDS = 60.0
_LET_GO_SECONDS = 5.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class Served:
    """A loaded package that a newer one in the same folder may replace.

    Args:
        name: name of the model.
        folder: folder of the package.
        config: how to serve it.
        metrics: metrics that record batches and reloads.

    Raises:
        ValueError: If the package is damaged.

    Attributes:
        name: name of the model.
        current: predictor, batcher, version and reader of raw rows, which take requests now.
        refused: why the newest package in the folder is not served; empty if it is.
    """

    def __init__(self, name: str, folder: Path, config: ServingConfig, metrics: ServerMetrics) -> None:
        self.name = name
        self._folder, self._config, self._metrics = folder, config, metrics
        self.current: tuple[Predictor, Batcher, str, RowReader | ValueError]
        self.refused = ""
        self._refused_stamp: _Stamp | None = None
        self._again = 0.0
        self._stopped = threading.Event()
        self._ids: Counter[str] = Counter()
        self._unknown_ids: Counter[str] = Counter()
        self._seen = self._stamp()
        self._load(None)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def ids(self) -> tuple[dict[str, int], dict[str, int]]:
        """Returns how many ids, and how many unknown ones, of each feature were looked up."""
        predictor = self.current[0]
        return (
            {name: count + self._ids[name] for name, count in predictor.ids.items()},
            {name: count + self._unknown_ids[name] for name, count in predictor.unknown_ids.items()},
        )

    def waiting(self) -> int:
        """Returns how many rows wait or are being scored."""
        return self.current[1].waiting

    def origin(self) -> dict[str, str]:
        """Returns the version, the version that it replaced, and what identifies the training data; "" if unknown."""
        predictor, _, version, _ = self.current
        known = predictor.manifest.get("origin", {})
        return {"version": version, **{name: str(known.get(name) or "") for name in ("parent", "training_data")}}

    def features(self) -> dict[str, FeatureCounts]:
        """Returns the counts of each feature in the raw rows that the current package has read."""
        reader = self.current[3]
        if isinstance(reader, ValueError):
            return {}
        features: list[DenseFeature | SparseFeature] = [*reader.schema.dense, *reader.schema.sparse]
        trained = {feature.name: feature for feature in features}
        return {
            name: FeatureCounts(found, trained[name].missing, getattr(trained[name], "unknown", None))
            for name, found in reader.counts.items()
        }

    def close(self) -> None:
        """Scores the accepted requests, and removes the temporary files."""
        self._stopped.set()
        self._watcher.join()
        predictor, batcher, _, _ = self.current
        batcher.close()
        predictor.close()

    def _load(self, old: Predictor | None) -> None:
        config = self._config
        predictor = Predictor(self._folder)
        try:
            reader = self._read_words(predictor)
            if old is not None:
                _require_same_requests(old, self.current[3], predictor, reader)
        except Exception:
            predictor.close()
            raise
        batcher = Batcher(
            predictor,
            config.max_batch_size,
            config.max_delay_ms / 1000,
            config.max_waiting,
            partial(self._metrics.observe_batch, self.name),
            partial(self._metrics.observe_wait, self.name),
        )
        # One assignment, so that a request uses either the old package or the new one.
        self.current = predictor, batcher, predictor.version, reader
        _LOG.info("serving %s, version %s", self._folder, predictor.version)

    def _read_words(self, predictor: Predictor) -> RowReader | ValueError:
        try:
            return RowReader.of_package(self._folder, predictor.manifest)
        except ReplacedError:
            raise
        except ValueError as error:
            # It still scores prepared rows; requests with raw rows get this error.
            return error

    def _stamp(self) -> _Stamp | None:
        """Returns a stamp that changes with the content of the folder but is cheap to read; None without a package."""
        names = [PACKAGE, GOLDEN]
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            names = sorted(json.loads((self._folder / MANIFEST).read_bytes())["sha256"])
        found = []
        for name in dict.fromkeys([MANIFEST, *map(str, names)]):
            try:
                stat = (self._folder / name).stat()
            except (OSError, ValueError):
                continue
            found.append((name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found) if found and found[0][0] == MANIFEST else None

    def _watch(self) -> None:
        while self._config.reload_seconds and not self._stopped.wait(self._config.reload_seconds):
            stamp = self._stamp()
            waits = stamp == self._seen or (stamp == self._refused_stamp and time.monotonic() < self._again)
            if stamp is not None and not waits:
                # A compiled model has variables in every thread that called it, and stays in memory until they end.
                swap = threading.Thread(target=self._swap, args=(stamp,), daemon=True)
                swap.start()
                swap.join()

    def _swap(self, stamp: _Stamp) -> None:
        old, batcher, _, _ = self.current
        try:
            self._load(old)
        except Exception as error:
            self._refused_stamp, self._again = stamp, time.monotonic() + _RETRY_SECONDS
            # Clients may read it, so it has no path of this machine.
            self.refused = str(error).replace(f"{self._folder}/", "")
            self._metrics.reloads.labels(self.name, "refused").inc()
            _LOG.error("the new package is not served, the old one stays: %s", str(error))
            return
        self._seen, self._refused_stamp, self.refused = stamp, None, ""
        if self.current[0].version != old.version:  # files that were written again are no new package
            self._metrics.reloads.labels(self.name, "served").inc()
        batcher.close()
        self._ids.update(old.ids)
        self._unknown_ids.update(old.unknown_ids)
        old.close()
        del batcher
        # Whoever drops the last reference calls the model, and that must be this thread: see above. Others have one
        # until they have sent their answer.
        end = time.monotonic() + _LET_GO_SECONDS
        while sys.getrefcount(old) > 2 and time.monotonic() < end:
            time.sleep(0.01)


def _require_same_requests(
    old: Predictor, old_reader: RowReader | ValueError, new: Predictor, new_reader: RowReader | ValueError
) -> None:
    """Refuses a package that would read something else from the requests that clients already send, or answer them
    otherwise."""
    kinds = [
        ("inputs", new.manifest["inputs"], old.manifest["inputs"]),
        ("dense features", new.dense_features, old.dense_features),
        ("sparse features", new.features, old.features),
        ("multi-hot features", _multi_hot(new), _multi_hot(old)),
    ]
    if new.outputs != old.outputs:
        raise ValueError(f"its outputs are {new.outputs}, but clients get {old.outputs}; serve it under another name")
    if isinstance(old_reader, RowReader):
        if isinstance(new_reader, ValueError):
            raise ValueError(f"clients send raw rows, which it cannot read: {new_reader}; serve it under another name")
        kinds.append(("raw columns", sorted(new_reader.columns), sorted(old_reader.columns)))
    for kind, found, expected in kinds:
        if found != expected:
            raise ValueError(f"its {kind} are {found}, but clients send {expected}; serve it under another name")


def _multi_hot(predictor: Predictor) -> list[str]:
    return [feature["name"] for feature in predictor.manifest["schema"]["sparse"] if feature.get("multi_hot")]
