"""The Grafana dashboard shows every metric of the server, and no other."""

import json
import re
from pathlib import Path

from nasrec_torchrec.inference.metrics import ServerMetrics

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
# What Prometheus adds to the name of a histogram or a counter.
_PARTS = ("_bucket", "_sum", "_count", "_total")


def _base(name: str) -> str:
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


def test_every_metric_of_the_dashboard_is_exported_and_the_other_way_round():
    metrics = ServerMetrics()
    metrics.follow([])
    exported = {family.name: family.type for family in metrics.registry.collect()}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\bnasrec_\w+", query)}
    assert {_base(name) for name in asked} == set(exported)
    for name in asked:
        expected = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
        assert name in {_base(name) + part for part in expected[exported[_base(name)]]}, name
