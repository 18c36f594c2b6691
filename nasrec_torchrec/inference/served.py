"""The package that answers the requests, and its replacement while requests run."""

import json
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
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
        folder: folder of the package.
        config: how to serve it.
        metrics: metrics that record batches and reloads.

    Raises:
        ValueError: If the package is damaged.
    """

    def __init__(self, folder: Path, config: ServingConfig, metrics: ServerMetrics) -> None:
        self._folder, self._config, self._metrics = folder, config, metrics
        self._stopped = threading.Event()
        self._ids: Counter[str] = Counter()
        self._unknown_ids: Counter[str] = Counter()
        self._seen = self._stamp()
        self._load()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def counts(self) -> tuple[str, str, dict[str, int], dict[str, int]]:
        """Returns the model's name and version, and how many ids and unknown ids of each feature were looked up."""
        predictor, _, version, _ = self.current
        return (
            self._config.name,
            version,
            {name: count + self._ids[name] for name, count in predictor.ids.items()},
            {name: count + self._unknown_ids[name] for name, count in predictor.unknown_ids.items()},
        )

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
                self._load()
            except Exception as error:
                refused, again = stamp, time.monotonic() + _RETRY_SECONDS
                self._metrics.reloads.labels("refused").inc()
                _LOG.error("the new package is not served, the old one stays: %s", error)
            else:
                self._seen, refused = stamp, None
                self._metrics.reloads.labels("served").inc()
                old_batcher.close()
                self._ids.update(old_predictor.ids)
                self._unknown_ids.update(old_predictor.unknown_ids)
                old_predictor.close()
