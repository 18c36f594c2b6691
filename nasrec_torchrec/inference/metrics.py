"""The metrics of a server for Prometheus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nasrec_torchrec.datasets.quality import Counts


@dataclass(frozen=True)
class FeatureCounts:
    """What was found of a feature in raw rows, beside the training rows.

    Args:
        counts: counts of raw rows.
        missing: share of the training rows without a value; None where it is not known.
        unknown: share of the values of the training rows that the dictionary leaves out; likewise.
    """

    counts: Counts
    missing: float | None
    unknown: float | None


class Followed(Protocol):
    """A model whose counts stand in the metrics."""

    name: str

    def ids(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many ids, and how many unknown ones, of each feature were looked up."""

    def features(self) -> dict[str, FeatureCounts]:
        """What was found in raw rows by feature."""

    def origin(self) -> dict[str, str]:
        """Version, parent and training data."""

    @property
    def refused(self) -> str:
        """Why the newest package in the folder is not served; empty if it is."""

    def waiting(self) -> int:
        """How many rows wait or are being scored."""


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class ServerMetrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nasrec_requests",
            "Number of inference requests, by the status of the answer.",
            ["status"],
            registry=registry,
        )
        self.model_requests = Counter(
            "nasrec_model_requests",
            "Number of inference requests, by the model that answered and the status of the answer.",
            ["model", "status"],
            registry=registry,
        )
        self.responses = Counter(
            "nasrec_responses", "Number of HTTP answers of every address, by status.", ["status"], registry=registry
        )
        self.refused = Counter(
            "nasrec_connections_refused",
            "Number of connections that the server closed, by reason.",
            ["reason"],
            registry=registry,
        )
        self.abandoned = Counter(
            "nasrec_abandoned_requests",
            "Number of inference requests whose clients hung up before the answer.",
            ["model"],
            registry=registry,
        )
        self.latency = Histogram(
            "nasrec_request_seconds",
            "Seconds between the headers of an inference request and its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "nasrec_queue_seconds",
            "Seconds that a request waited for the batch that scored it.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "nasrec_batch_rows",
            "Number of rows that were scored together.",
            ["model"],
            buckets=[2**power for power in range(14)],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "nasrec_batch_seconds",
            "Seconds that a batch took to compute.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.reloads = Counter(
            "nasrec_reloads",
            "Number of new packages that the server found in a model's folder, by what became of them.",
            ["model", "result"],
            registry=registry,
        )
        self.extra_values = Counter(
            "nasrec_extra_values",
            "Number of raw values that were passed over, because the model does not read their columns.",
            ["model"],
            registry=registry,
        )
        self.shadow = Counter(
            "nasrec_shadow_requests",
            "Number of requests that a shadow model got, by what became of them.",
            ["model", "result"],
            registry=registry,
        )
        self.shadow_difference = Histogram(
            "nasrec_shadow_difference",
            "Absolute difference between the probability of a shadow model and the one that was sent.",
            ["model"],
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self.held = Gauge(
            "nasrec_held_bytes", "Number of bytes in the bodies of requests in progress.", registry=registry
        )

    def count_request(self, model: str, status: str) -> None:
        """Counts an answered inference request; ``model`` is empty for a model that the server does not have."""
        self.requests.labels(status).inc()
        self.model_requests.labels(model, status).inc()

    def observe_batch(self, model: str, rows: int, seconds: float) -> None:
        self.batch_rows.labels(model).observe(rows)
        self.batch_seconds.labels(model).observe(seconds)

    def observe_wait(self, model: str, seconds: float) -> None:
        self.queue_seconds.labels(model).observe(seconds)

    def follow(self, models: Sequence[Followed]) -> None:
        """Adds metrics of the served models."""
        self.registry.register(_OfModels(models))


class _OfModels:
    def __init__(self, models: Sequence[Followed]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "nasrec_model_info",
            "A constant 1, labelled with what is served: its version, the version that it replaced, and what "
            "identifies its training data.",
            labels=["model", "version", "parent", "training_data"],
        )
        waiting = GaugeMetricFamily(
            "nasrec_waiting_rows", "Number of rows that wait or are being scored.", labels=["model"]
        )
        refused = GaugeMetricFamily(
            "nasrec_package_refused",
            "Whether the newest package in a model's folder is refused, so that an older one is served.",
            labels=["model"],
        )
        for model in self._models:
            refused.add_metric([model.name], bool(model.refused))
            origin = model.origin()
            info.add_metric([model.name, *(origin[name] for name in ("version", "parent", "training_data"))], 1)
            waiting.add_metric([model.name], model.waiting())
        yield info
        yield waiting
        yield refused
        looked_up = {model.name: model.ids() for model in self._models}
        for place, (metric, text) in enumerate(
            (
                ("nasrec_ids", "Number of ids that were looked up, by feature."),
                ("nasrec_unknown_ids", "Number of ids that no table has and that counted as missing, by feature."),
            )
        ):
            family = CounterMetricFamily(metric, text, labels=["model", "feature"])
            for name, counts in looked_up.items():
                for feature, count in counts[place].items():
                    family.add_metric([name, feature], count)
            yield family
        yield from self._of_rows()

    def _of_rows(self) -> Iterator[Metric]:
        found = {
            (model.name, feature, model.origin()["version"]): seen
            for model in self._models
            for feature, seen in model.features().items()
        }
        for metric, text, value in (
            ("nasrec_feature_rows", "Number of raw rows that were read, by feature.", lambda seen: seen.counts.rows),
            (
                "nasrec_missing_values",
                "Number of raw rows without a value, by feature.",
                lambda seen: seen.counts.missing,
            ),
            (
                "nasrec_unknown_values",
                "Number of raw values that the training data did not have, by feature.",
                lambda seen: seen.counts.unknown,
            ),
        ):
            counter = CounterMetricFamily(metric, text, labels=["model", "feature", "version"])
            for labels, seen in found.items():
                counter.add_metric(labels, value(seen))
            yield counter
        for metric, text, share in (
            (
                "nasrec_missing_drift",
                "Share of raw rows without a value less that of the training rows, by feature.",
                lambda seen: _less(seen.counts.missing_share, seen.missing),
            ),
            (
                "nasrec_unknown_drift",
                "Share of unknown values of raw rows less that of the training rows, by feature.",
                lambda seen: _less(seen.counts.unknown_share, seen.unknown),
            ),
            (
                "nasrec_mean_drift",
                "Mean of a standardized feature of raw rows, in deviations from that of the training rows.",
                lambda seen: (
                    seen.counts.total / seen.counts.values if seen.counts.total and seen.counts.values else None
                ),
            ),
        ):
            gauge = GaugeMetricFamily(metric, text, labels=["model", "feature", "version"])
            for labels, seen in found.items():
                known = share(seen) if seen.counts.rows else None
                if known is not None:
                    gauge.add_metric(labels, known)
            yield gauge


def _less(found: float, trained: float | None) -> float | None:
    """None where it is not known how it was in training."""
    return None if trained is None else found - trained
