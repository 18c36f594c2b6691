"""The metrics of a server for Prometheus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class ServerMetrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nasrec_requests", "Inference requests by the status of their answer.", ["status"], registry=registry
        )
        self.responses = Counter(
            "nasrec_responses", "Answers by status, of every address and method.", ["status"], registry=registry
        )
        self.refused = Counter(
            "nasrec_connections_refused", "Connections that were closed, by reason.", ["reason"], registry=registry
        )
        self.latency = Histogram(
            "nasrec_request_seconds",
            "Seconds from the headers of an inference request to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "nasrec_batch_rows",
            "Rows that were scored together.",
            buckets=[2**power for power in range(14)],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "nasrec_batch_seconds", "Seconds that a batch took to compute.", buckets=_SECONDS, registry=registry
        )
        self.reloads = Counter(
            "nasrec_reloads",
            "New packages that were found in the folder, by what became of them.",
            ["result"],
            registry=registry,
        )
        self.extra_values = Counter(
            "nasrec_extra_values",
            "Values of raw rows that were passed over, because the model does not read their columns.",
            registry=registry,
        )
        self.waiting = Gauge("nasrec_waiting_rows", "Rows that wait or are being scored.", registry=registry)
        self.held = Gauge("nasrec_held_bytes", "Bytes of the bodies of requests in progress.", registry=registry)

    def observe_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def follow(
        self,
        served: Callable[[], tuple[str, str, dict[str, int], dict[str, int]]],
        features: Callable[[], dict[str, FeatureCounts]],
    ) -> None:
        """Adds metrics of the served model.

        Args:
            served: gives the model's name, its version, and ids and unknown ids by feature.
            features: gives what was found in raw rows by feature.
        """
        self.registry.register(_OfModel(served, features))


class _OfModel:
    def __init__(
        self,
        served: Callable[[], tuple[str, str, dict[str, int], dict[str, int]]],
        features: Callable[[], dict[str, FeatureCounts]],
    ) -> None:
        self._served, self._features = served, features

    def collect(self) -> Iterator[Metric]:
        name, version, ids, unknown = self._served()
        info = GaugeMetricFamily("nasrec_model_info", "The model that is served.", labels=["model", "version"])
        info.add_metric([name, version], 1)
        yield info
        for metric, text, counts in (
            ("nasrec_ids", "Ids that were looked up, by feature.", ids),
            ("nasrec_unknown_ids", "Ids that no table has and that counted as missing, by feature.", unknown),
        ):
            family = CounterMetricFamily(metric, text, labels=["feature"])
            for feature, count in counts.items():
                family.add_metric([feature], count)
            yield family
        yield from self._of_rows(version)

    def _of_rows(self, version: str) -> Iterator[Metric]:
        found = self._features()
        for metric, text, value in (
            ("nasrec_feature_rows", "Raw rows that were read, by feature.", lambda seen: seen.counts.rows),
            ("nasrec_missing_values", "Raw rows without a value, by feature.", lambda seen: seen.counts.missing),
            (
                "nasrec_unknown_values",
                "Values of raw rows that the training data did not have, by feature.",
                lambda seen: seen.counts.unknown,
            ),
        ):
            counter = CounterMetricFamily(metric, text, labels=["feature", "version"])
            for feature, seen in found.items():
                counter.add_metric([feature, version], value(seen))
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
            gauge = GaugeMetricFamily(metric, text, labels=["feature", "version"])
            for feature, seen in found.items():
                known = share(seen) if seen.counts.rows else None
                if known is not None:
                    gauge.add_metric([feature, version], known)
            yield gauge


def _less(found: float, trained: float | None) -> float | None:
    """None where it is not known how it was in training."""
    return None if trained is None else found - trained
