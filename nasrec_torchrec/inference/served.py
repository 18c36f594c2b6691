"""The package that answers the requests, and its replacement while requests run."""

import json
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.metrics import FeatureCounts, ServerMetrics
from nasrec_torchrec.inference.predictor import GOLDEN, MANIFEST, PACKAGE, Batcher, Predictor
from nasrec_torchrec.inference.rows import RowReader

_LOG = logging.getLogger("nasrec.serve")
# A refused package is checked again when one of its files changed, or after this time.
_RETRY_SECONDS = 60.0
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
    """

    def __init__(self, name: str, folder: Path, config: ServingConfig, metrics: ServerMetrics) -> None:
        self.name = name
        self._folder, self._config, self._metrics = folder, config, metrics
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
        predictor = Predictor(self._folder)
        config = self._config
        if old is not None:
            _require_same_features(old, predictor)
        batcher = Batcher(
            predictor,
            config.max_batch_size,
            config.max_delay_ms / 1000,
            config.max_waiting,
            partial(self._metrics.observe_batch, self.name),
            partial(self._metrics.observe_wait, self.name),
        )
        try:
            reader: RowReader | ValueError = RowReader.of_package(self._folder, predictor.manifest)
        except ValueError as error:
            # It still scores prepared rows; requests with raw rows get this error.
            reader = error
        # One assignment, so that a request uses either the old package or the new one.
        self.current = predictor, batcher, predictor.version, reader
        _LOG.info("serving %s, version %s", self._folder, predictor.version)

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
        refused: _Stamp | None = None
        again = 0.0
        while self._config.reload_seconds and not self._stopped.wait(self._config.reload_seconds):
            stamp = self._stamp()
            if stamp is None or stamp == self._seen or (stamp == refused and time.monotonic() < again):
                continue
            old_predictor, old_batcher, _, _ = self.current
            try:
                self._load(old_predictor)
            except Exception as error:
                refused, again = stamp, time.monotonic() + _RETRY_SECONDS
                self._metrics.reloads.labels(self.name, "refused").inc()
                _LOG.error("the new package is not served, the old one stays: %s", error)
            else:
                self._seen, refused = stamp, None
                self._metrics.reloads.labels(self.name, "served").inc()
                old_batcher.close()
                self._ids.update(old_predictor.ids)
                self._unknown_ids.update(old_predictor.unknown_ids)
                old_predictor.close()


def _require_same_features(old: Predictor, new: Predictor) -> None:
    """Refuses a package that would read other tensors from the requests that clients already send."""
    for kind, found, expected in (
        ("inputs", new.manifest["inputs"], old.manifest["inputs"]),
        ("dense features", new.dense_features, old.dense_features),
        ("sparse features", new.features, old.features),
    ):
        if found != expected:
            new.close()
            raise ValueError(f"its {kind} are {found}, but clients send {expected}; serve it under another name")
