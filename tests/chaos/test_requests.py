"""Damaged requests are the client's fault, or are answered; the server stays as it is."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.budget import SEED, Tally
from chaos.damage import damaged, fuzzed
from fastapi.testclient import TestClient
from hypothesis import given, seed
from hypothesis import strategies as st

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.server import create_app

pytestmark = pytest.mark.chaos
_LIMITS = ServingConfig(max_rows=100, max_ids=1000, max_body_mib=1)
_TENSORS = {
    "id": "7",
    "inputs": [
        {"name": "dense", "shape": [2, 3], "datatype": "FP32", "data": [0.5, 1, -2, 3.5, 0, 1]},
        {"name": "ids", "shape": [8], "datatype": "INT64", "data": [1, 2, 3, 4, 5, 6, 7, 8]},
        {"name": "lengths", "shape": [4, 2], "datatype": "INT64", "data": [1, 1, 1, 1, 1, 1, 1, 1]},
    ],
    "outputs": [{"name": "probability"}],
}
_ROWS = {"id": "7", "rows": [{"d0": 0.5, "d1": None, "f0": 3, "f1": "4", "f3": [1, 2]}, {"d2": 1, "f2": 7}]}


@pytest.fixture(scope="module")
def client(inputs: Path) -> Iterator[TestClient]:
    with TestClient(create_app(inputs / "package", _LIMITS)) as client:
        yield client


@given(
    st.sampled_from([("infer", _TENSORS), ("rows", _ROWS)]).flatmap(
        lambda one: st.tuples(st.just(one[0]), damaged(one[1]), st.none() | st.integers(0, 400))
    )
)
@seed(SEED)
@fuzzed
def test_requests(client: TestClient, tally: Tally, sent: tuple[str, Any, int | None]) -> None:
    tally.what = "damaged requests to the server"
    tally.tries += 1
    path, document, end = sent
    answer = client.post(f"/v2/models/nasrec/{path}", content=json.dumps(document)[:end])
    if answer.status_code == 200:
        for output in answer.json()["outputs"]:
            scores = output["data"]
            assert len(scores) == math.prod(output["shape"]) and all(0 <= score <= 1 for score in scores)
    else:
        assert 400 <= answer.status_code < 500 and answer.json()["error"]
        tally.count("refused")
    whole = client.post("/v2/models/nasrec/infer", json=_TENSORS)
    assert whole.status_code == 200 and len(whole.json()["outputs"][0]["data"]) == 2
