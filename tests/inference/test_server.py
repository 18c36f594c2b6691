import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.conftest import build

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.inference.server import create_app

pytestmark = pytest.mark.slow  # for the package is compiled first
ROOT = Path(__file__).resolve().parents[2]


def body(rows: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "id": str(seed),
        "inputs": [
            _input("dense", [rows, 3], torch.randn(rows, 3, generator=generator)),
            _input("ids", [4 * rows], torch.randint(0, 50, (4 * rows,), generator=generator)),
            _input("lengths", [4, rows], torch.ones(4, rows, dtype=torch.int64)),
        ],
    }


def _input(name: str, shape: list[int], values: torch.Tensor) -> dict:
    datatype = "FP32" if values.is_floating_point() else "INT64"
    return {"name": name, "shape": shape, "datatype": datatype, "data": values.flatten().tolist()}


def expected(predictor: Predictor, request: dict) -> list[float]:
    kinds = {"FP32": torch.float32, "INT64": torch.int64}
    tensors = {
        i["name"]: torch.tensor(i["data"], dtype=kinds[i["datatype"]]).view(i["shape"]) for i in request["inputs"]
    }
    return predictor.predict(Request(**tensors)).tolist()


@pytest.fixture(scope="module")
def client(package) -> Iterator[TestClient]:
    with TestClient(create_app(package[0], ServingConfig(max_rows=100, max_body_mib=1))) as client:
        yield client


def test_it_speaks_the_open_inference_protocol(client, package):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/nasrec/ready"):
        assert client.get(path).status_code == 200
    described = client.get("/v2/models/nasrec").json()
    assert [entry["name"] for entry in described["inputs"]] == ["dense", "ids", "lengths"]
    answer = client.post("/v2/models/nasrec/infer", json=body(5, 3))
    assert answer.status_code == 200 and answer.json()["id"] == "3"
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [5] and output["datatype"] == "FP32"
    assert output["data"] == pytest.approx(expected(Predictor(package[0]), body(5, 3)), abs=1e-6)
    assert answer.json()["model_version"] == described["versions"][0]
    nested = body(2)
    nested["inputs"][0]["data"] = torch.tensor(nested["inputs"][0]["data"]).view(2, 3).tolist()
    assert client.post("/v2/models/nasrec/infer", json=nested).status_code == 200
    metrics = client.get("/metrics").text
    assert 'nasrec_requests_total{status="200"} 2.0' in metrics and "nasrec_request_seconds_bucket" in metrics
    assert "/v2/models/{name}/infer" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200


def _changed(index: int, **values: object) -> dict:
    request = body(2)
    request["inputs"][index] |= values
    return request


@pytest.mark.parametrize(
    ("request_body", "status", "message"),
    [
        ({}, 400, "inputs: Field required"),
        ({"inputs": []}, 400, "inputs: List should have at least 1 item"),
        ({"inputs": [{"name": "ids"}]}, 400, "inputs.0.shape: Field required"),
        (_changed(0, name="x"), 400, r"inputs: expected ['dense', 'ids', 'lengths'], each once, found ['x'"),
        (_changed(0, datatype="FP64"), 400, "dense: datatype: expected FP32, found 'FP64'"),
        (_changed(0, shape=[3, 2]), 400, "dense: shape: expected [-1, 3], -1 being any, found [3, 2]"),
        (_changed(0, data=[1.0]), 400, "dense: data: expected [2, 3] values, found [1]"),
        (_changed(0, data=["1"] * 6), 400, "dense: data: expected numbers, found np.str_('1')"),
        (_changed(0, data=[float("nan")] * 6), 400, "dense: expected finite numbers"),
        (_changed(0, data=[1e300] * 6), 400, "dense: expected finite numbers"),
        (_changed(1, data=[1.5] * 8), 400, "ids: data: expected integers of 64 bits, found np.float64(1.5)"),
        (_changed(1, data=[2**70] * 8), 400, "ids: data: expected integers of 64 bits"),
        (_changed(1, data=[True] * 8), 400, "ids: data: expected integers of 64 bits, found np.True_"),
        (_changed(2, data=[-1] * 8), 400, "lengths: expected numbers of ids, found -1"),
        (_changed(2, data=[9] * 8), 400, "ids: the lengths ask for 72, found 8"),
        (body(101), 400, "expected 100 rows at most, found 101"),
        ({"inputs": body(2)["inputs"][:2]}, 400, "inputs: missing ['lengths']"),
        (body(20_000), 413, "expected a body of 1048576 bytes at most"),
    ],
)
def test_wrong_requests_get_a_reason(client, request_body, status, message):
    content = json.dumps(request_body)  # which writes NaN, as some clients do
    answer = client.post("/v2/models/nasrec/infer", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"], answer.text
    assert client.post("/v2/models/other/infer", json=body(1)).status_code == 404


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.data())
def test_no_request_breaks_the_server(client, data):
    request = body(2)
    for _ in range(data.draw(st.integers(1, 3))):
        part = request["inputs"][data.draw(st.integers(0, 2))]
        key = data.draw(st.sampled_from(sorted(part)))
        part[key] = data.draw(_JSON | st.lists(st.integers(-3, 2**63), max_size=9))
    content = json.dumps(request).encode()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    answer = client.post("/v2/models/nasrec/infer", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or answer.json()["error"]


@pytest.fixture
def server(package, tmp_path: Path) -> Iterator[tuple[str, Path, "subprocess.Popen[str]"]]:
    """A real process, and the folder it serves."""
    folder = Path(shutil.copytree(package[0], tmp_path / "package"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "apps.serve", "--package", folder, "--port", str(port)]
    command += ["--max-waiting", "64", "--reload-seconds", "0.2"]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None
        try:
            httpx.get(f"{url}/v2/health/ready").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url, folder, process
    process.kill()
    process.communicate()


class Clients:
    """Threads that ask without a pause until the server says that it closes."""

    def __init__(self, url: str, count: int, rows: int) -> None:
        self.statuses: list[int | str] = []
        self.answers: dict[int, list[float]] = {}
        self._url, self._rows, self.stopped, self.told = url, rows, False, 0
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        with httpx.Client(timeout=30) as client:
            while not self.stopped:
                try:
                    answer = client.post(f"{self._url}/v2/models/nasrec/infer", json=body(self._rows, number))
                except httpx.TransportError as error:
                    self.statuses.append(f"lost: {error!r}")
                    return
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    self.answers[number] = answer.json()["outputs"][0]["data"]
                if answer.headers.get("connection") == "close":
                    self.told += 1
                    return

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_sigterm_under_load_loses_no_accepted_request(server, package):
    url, _, process = server
    clients = Clients(url, 8, 20)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert httpx.get(f"{url}/v2/health/ready").status_code == 503
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    clients.join()
    assert clients.told == 8
    assert {200, 429} >= set(clients.statuses) and clients.statuses.count(200) > 50, set(clients.statuses)
    predictor = Predictor(package[0])
    for number, answer in clients.answers.items():
        assert answer == pytest.approx(expected(predictor, body(20, number)), abs=1e-6)


def test_a_new_package_is_verified_before_it_takes_the_traffic(server, package):
    url, folder, _ = server
    version = httpx.get(f"{url}/v2/models/nasrec").json()["versions"]
    (folder / "model.pt2").write_bytes(b"broken")
    os.utime(folder / "model.json")
    _until(lambda: 'nasrec_reloads_total{result="refused"} 1.0' in httpx.get(f"{url}/metrics").text)
    assert httpx.get(f"{url}/v2/models/nasrec").json()["versions"] == version
    clients = Clients(url, 2, 3)
    export(build(package[2], 7), package[2], folder)
    _until(lambda: httpx.get(f"{url}/v2/models/nasrec").json()["versions"] != version)
    time.sleep(0.5)
    clients.stopped = True
    clients.join()
    assert set(clients.statuses) == {200}
    predictor = Predictor(folder)
    for number, answer in clients.answers.items():
        assert answer == pytest.approx(expected(predictor, body(3, number)), abs=1e-6)


def _until(happened) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
