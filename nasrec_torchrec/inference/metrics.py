"""The metrics of a server for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

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
        self.waiting = Gauge("nasrec_waiting_rows", "Rows that wait or are being scored.", registry=registry)
        self.held = Gauge("nasrec_held_bytes", "Bytes of the bodies of requests in progress.", registry=registry)

    def observe_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def follow(self, served: Callable[[], tuple[str, str, dict[str, int], dict[str, int]]]) -> None:
        """Adds metrics of the served model: a function of its name, version, ids and unknown ids by feature."""
        self.registry.register(_OfModel(served))


class _OfModel:
    def __init__(self, served: Callable[[], tuple[str, str, dict[str, int], dict[str, int]]]) -> None:
        self._served = served

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
