import gzip
import json
import os
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.running import Server, until
from support import run_program

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.inference.server import create_app

pytestmark = pytest.mark.slow  # for the package is compiled first


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
    with TestClient(create_app(package[0], ServingConfig(max_rows=100, max_ids=1000, max_body_mib=1))) as client:
        yield client


def test_it_speaks_the_open_inference_protocol(client, package):
    described = client.get("/v2/models/nasrec").json()
    (version,) = described["versions"]
    of_version = f"/v2/models/nasrec/versions/{version}"
    for path in (
        "/v2",
        "/v2/",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/nasrec/ready",
        f"{of_version}/ready",
    ):
        assert client.get(path).status_code == client.head(path).status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get(of_version).json() == described
    assert [entry["name"] for entry in described["inputs"]] == ["dense", "ids", "lengths"]
    answer = client.post("/v2/models/nasrec/infer", json=body(5, 3))
    assert answer.status_code == 200 and answer.json()["id"] == "3"
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [5] and output["datatype"] == "FP32"
    assert output["data"] == pytest.approx(expected(Predictor(package[0]), body(5, 3)), abs=1e-6)
    assert answer.json()["model_version"] == version
    nested = body(2)
    nested["inputs"][0]["data"] = torch.tensor(nested["inputs"][0]["data"]).view(2, 3).tolist()
    del nested["id"]
    answer = client.post(f"{of_version}/infer", json=nested)
    assert answer.status_code == 200 and "id" not in answer.json()
    assert "/v2/models/{name}/infer" in client.get("/openapi.json").json()["paths"]
    page = client.get("/docs")
    assert page.status_code == 200 and "<code>POST /v2/models/{name}/rows</code>" in page.text
    assert "binary_data_size" in page.text and "<script" not in page.text and "//" not in page.text


def test_addresses_that_are_not_there(client):
    for method, path, status in (
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/nasrec/versions/none/infer", 404),
        ("GET", "/v2/models/nasrec/versions/none/ready", 404),
        ("GET", "/v2/models/nasrec/infer", 405),
        ("GET", "/elsewhere", 404),
        ("POST", "/v2/repository/index", 404),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, bool(answer.json()["error"])) == (status, True), path


def test_what_rows_without_ids_and_no_rows_get(client, package):
    predictor = Predictor(package[0])
    alone = body(2)
    alone["inputs"][1] |= {"shape": [0], "data": []}
    alone["inputs"][2] |= {"data": [0] * 8}
    answer = client.post("/v2/models/nasrec/infer", json=alone)
    assert answer.json()["outputs"][0]["data"] == pytest.approx(expected(predictor, alone), abs=1e-6)
    answer = client.post("/v2/models/nasrec/infer", json=body(0))
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [])


def test_the_body_may_be_compressed_chunked_and_of_any_type(client):
    content = json.dumps(body(3)).encode()
    plain = client.post("/v2/models/nasrec/infer", json=body(3)).json()
    for headers, sent in (
        ({}, content),
        ({"content-type": "text/plain"}, content),
        ({"content-encoding": "gzip"}, gzip.compress(content)),
        ({"content-encoding": "deflate"}, zlib.compress(content)),
        ({}, iter([content[:100], content[100:]])),
    ):
        assert client.post("/v2/models/nasrec/infer", content=sent, headers=headers).json() == plain
    for headers, sent, status in (
        ({"content-encoding": "br"}, content, 415),
        ({"content-encoding": "gzip"}, content, 400),
        ({"content-encoding": "gzip"}, gzip.compress(content)[:-9], 400),
        ({"content-encoding": "gzip"}, gzip.compress(b" " * (2 << 20)), 413),
        ({}, iter([b" " * (1 << 19)] * 4), 413),
    ):
        answer = client.post("/v2/models/nasrec/infer", content=sent, headers=headers)
        assert answer.status_code == status and answer.json()["error"], answer.text


def test_tensors_as_bytes(client):
    plain = client.post("/v2/models/nasrec/infer", json=body(3)).json()
    request, tail = body(3), b""
    request["outputs"] = [{"name": "probability", "parameters": {"binary_data": True}}]
    for part, kind in zip(request["inputs"], ("<f4", "<i8", "<i8"), strict=True):
        data = np.array(part.pop("data"), kind).tobytes()
        part["parameters"], tail = {"binary_data_size": len(data)}, tail + data
    header = json.dumps(request).encode()

    def ask(length: object, content: bytes) -> httpx.Response:
        return client.post(
            "/v2/models/nasrec/infer", content=content, headers={"inference-header-content-length": str(length)}
        )

    answer = ask(len(header), header + tail)
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 12} and "data" not in output
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == plain["outputs"][0]["data"]
    for length, content, message in (
        (len(header), header + tail[:-1], "lengths: binary_data_size: expected 96"),
        (len(header), header + tail + b"x", "1 bytes are left over"),
        (len(header) + 1, header + tail, "body: JSON is malformed"),
        (10**9, header + tail, "inference-header-content-length: expected 1 to"),
        ("-1", header + tail, "inference-header-content-length: expected a number"),
    ):
        answer = ask(length, content)
        assert answer.status_code == 400 and message in answer.json()["error"], answer.text


def test_every_answer_is_counted_under_its_status(package):
    with TestClient(create_app(package[0], ServingConfig(max_rows=100, max_body_mib=1))) as client:
        for content in (json.dumps(body(2)), json.dumps(body(2)), "{", json.dumps(body(20_000))):
            client.post("/v2/models/nasrec/infer", content=content)
        wild = body(2)
        wild["inputs"][1]["data"] = [50, 49, -1, 2**62, 0, 1, 2, 3]
        client.post("/v2/models/nasrec/infer", json=wild)
        client.post("/v2/models/other/infer")
        client.get("/elsewhere")
        text = client.get("/metrics").text
        for line in (
            'nasrec_requests_total{status="200"} 3.0',
            'nasrec_requests_total{status="404"} 1.0',
            'nasrec_model_requests_total{model="nasrec",status="200"} 3.0',
            'nasrec_model_requests_total{model="nasrec",status="400"} 1.0',
            'nasrec_model_requests_total{model="nasrec",status="413"} 1.0',
            'nasrec_model_requests_total{model="",status="404"} 1.0',
            'nasrec_responses_total{status="404"} 2.0',
            'nasrec_ids_total{feature="f0",model="nasrec"} 6.0',
            'nasrec_unknown_ids_total{feature="f0",model="nasrec"} 1.0',
            'nasrec_unknown_ids_total{feature="f1",model="nasrec"} 2.0',
            'nasrec_unknown_ids_total{feature="f2",model="nasrec"} 0.0',
            'nasrec_request_seconds_count{model="nasrec"} 3.0',
            "nasrec_held_bytes 0.0",
        ):
            assert line in text, line
        described = {line.split(" ", 3)[2]: line.split(" ", 3)[3] for line in text.splitlines() if "# HELP" in line}
        assert all(help_text[0].isupper() and help_text.endswith(".") for help_text in described.values())


def _changed(index: int, **values: object) -> dict:
    request = body(2)
    request["inputs"][index] |= values
    return request


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({}, "body: Object missing required field `inputs`"),
        ([], "body: Expected `object`, got `array`"),
        ({"inputs": []}, "inputs: expected at least one, found none"),
        ({"inputs": [0] * 100_000}, "Expected `object`, got `int` - at `$.inputs[0]`"),
        ({"inputs": [{"name": "ids"}]}, "Object missing required field `shape` - at `$.inputs[0]`"),
        (body(2) | {"id": 3}, "Expected `str | null`, got `int` - at `$.id`"),
        (body(2) | {"id": "x" * 2000}, "id: expected 1024 characters at most, found 2000"),
        (body(2) | {"id": "\ud800"}, "body: "),
        (body(2) | {"outputs": [{"name": "other"}]}, "outputs: expected 'probability', found 'other'"),
        (_changed(0, parameters={"shared_memory_region": "r"}), "dense: parameters: shared_memory_region"),
        (_changed(0, name="x"), r"inputs: expected ['dense', 'ids', 'lengths'], each once, found ['x'"),
        (_changed(0, datatype="FP64"), "dense: datatype: expected FP32, found 'FP64'"),
        (_changed(0, shape=[3, 2]), "dense: shape: expected [-1, 3], -1 being any"),
        (_changed(0, shape=[10**40, 3]), "dense: shape: expected [-1, 3], -1 being any"),
        (_changed(0, data=[1.0]), "dense: data: expected 6 values for shape [2, 3], found 1"),
        (_changed(0, data=[[1.0], [2.0] * 5]), "dense: data: expected 2 lists of 3 values"),
        (_changed(0, data=["1"] * 6), "dense: data: Expected `float`, got `str`"),
        (_changed(0, data=[float("nan")] * 6), "body: JSON is malformed"),
        (_changed(0, data=[1e300] * 6), "dense: expected finite numbers"),
        (_changed(1, data=[1.5] * 8), "ids: data: Expected `int`, got `float`"),
        (_changed(1, data=[2**70] * 8), "ids: data: expected integers of 64 bits"),
        (_changed(1, data=[True] * 8), "ids: data: Expected `int`, got `bool`"),
        (
            _changed(1, shape=[1001], data=[1] * 1001),
            "ids: shape: expected [-1], -1 being any, and 1000 values",
        ),
        (_changed(2, data=[-1] * 8), "lengths: expected numbers of ids, found -1"),
        (_changed(2, data=[9] * 8), "ids: the lengths ask for 72, found 8"),
        (_changed(2, data=[2**63 - 1] * 8), "ids: the lengths ask for"),
        (body(101), "dense: shape: expected [-1, 3], -1 being any, and 300 values at most, found [101, 3]"),
        ({"inputs": body(2)["inputs"][:2]}, "inputs: expected ['dense', 'ids', 'lengths'], each once, found"),
        (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body: "),
        (json.dumps(_changed(1, data=["x"] * 8)).replace('"x"', "[" * 900 + "]" * 900, 1).encode(), "ids: data: "),
        (b'{"inputs":' + b"1" * 5000 + b"}", "body: Number out of range"),
        (b'{"inputs": [], "id": "\xff"}', "body: "),
        (b"", "body: Input data was truncated"),
    ],
)
def test_wrong_requests_get_a_reason(client, request_body, message):
    # Which writes NaN, as some clients do.
    content = request_body if isinstance(request_body, bytes) else json.dumps(request_body)
    answer = client.post("/v2/models/nasrec/infer", content=content)
    assert answer.status_code == 400 and message in answer.json()["error"], answer.text
    assert len(answer.text) < 500


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
def server(package, tmp_path: Path) -> Iterator[Server]:
    folder = Path(shutil.copytree(package[0], tmp_path / "package"))
    with Server(folder, tmp_path / "log", max_waiting=64, reload_seconds=0.2) as started:
        yield started


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


def test_sigterm_under_load_loses_no_accepted_request(server, package, tmp_path):
    unpacked = tmp_path / "unpacked"
    assert len([path for path in unpacked.iterdir() if path.is_dir()]) == 1
    clients = Clients(server.url, 8, 20)
    time.sleep(2)
    server.terminate()
    time.sleep(0.2)
    # A probe of the server, or of the model, hears the same.
    for path in ("/v2/health/ready", "/v2/models/nasrec/ready", f"/v2/models/nasrec/versions/{server.version()}/ready"):
        assert httpx.get(f"{server.url}{path}").status_code == 503
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    assert server.wait() == 0
    clients.join()
    assert clients.told == 8
    assert {200, 429} >= set(clients.statuses) and clients.statuses.count(200) > 50, set(clients.statuses)
    predictor = Predictor(package[0])
    for number, answer in clients.answers.items():
        assert answer == pytest.approx(expected(predictor, body(20, number)), abs=1e-6)
    assert [path for path in unpacked.iterdir() if path.is_dir()] == []


def test_what_a_killed_server_left_is_removed_by_the_next(package, tmp_path):
    unpacked = tmp_path / "unpacked"
    with Server(package[0], tmp_path / "log", reload_seconds=0) as first:
        first.process.kill()
        first.process.join()
    left = {path for path in unpacked.iterdir() if path.is_dir()}
    (unpacked / "notes").mkdir()
    with Server(package[0], tmp_path / "log", reload_seconds=0), Server(package[0], tmp_path / "log", reload_seconds=0):
        here = {path for path in unpacked.iterdir() if path.is_dir()}
        # Of both servers that live, and what is none of ours.
        assert len(left) == 1 and len(here) == 3 and not left & here and unpacked / "notes" in here


def test_a_new_package_is_verified_before_it_takes_the_traffic(server, plain, tmp_path):
    newer = plain
    version = server.version()
    # As cp -r does it, with a pause in which nothing fits together, and a damaged file in between.
    shutil.copyfile(newer / "golden.json", server.folder / "golden.json")
    shutil.copyfile(newer / "model.json", server.folder / "model.json")
    until(lambda: 'nasrec_reloads_total{model="nasrec",result="refused"}' in server.metrics())
    (server.folder / "model.pt2").write_bytes(b"broken")
    time.sleep(0.6)
    assert server.version() == version
    clients = Clients(server.url, 2, 3)
    shutil.copyfile(newer / "model.pt2", server.folder / "part")
    os.replace(server.folder / "part", server.folder / "model.pt2")
    until(lambda: server.version() != version)
    time.sleep(0.5)
    clients.stopped = True
    clients.join()
    assert set(clients.statuses) == {200}
    predictor = Predictor(newer)
    for number, answer in clients.answers.items():
        assert answer == pytest.approx(expected(predictor, body(3, number)), abs=1e-6)
    assert 'nasrec_reloads_total{model="nasrec",result="served"} 1.0' in server.metrics()
    info = f'nasrec_model_info{{model="nasrec",parent="",training_data="",version="{predictor.version}"}} 1.0'
    assert info in server.metrics()
    # One copy of the model is left, and the log says what is served.
    until(lambda: len([path for path in (tmp_path / "unpacked").iterdir() if path.is_dir()]) == 1)
    assert f"serving {server.folder}, version {predictor.version}" in server.log.read_text()


_HEAD = b"POST /v2/models/nasrec/infer HTTP/1.1\r\nhost: x\r\n"


def _answer(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def test_limits_count_what_arrives(package, tmp_path):
    values = {"max_body_mib": 1, "max_held_mib": 2, "header_seconds": 1.0, "body_seconds": 2.0}
    with Server(package[0], tmp_path / "log", **values) as server:
        both = server.connect()
        both.sendall(_HEAD + b"content-length: 10\r\ntransfer-encoding: chunked\r\n\r\n100000\r\n")
        assert _answer(both).startswith(b"HTTP/1.1 400")
        endless = server.connect()
        with suppress(ConnectionError):
            endless.sendall(_HEAD + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(64):
                endless.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert _answer(endless).startswith((b"HTTP/1.1 413", b""))
        # Nobody reads this one's body, and nothing of it is kept.
        elsewhere = server.connect()
        with suppress(ConnectionError):
            elsewhere.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(40):
                elsewhere.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                time.sleep(0.05)
            raise AssertionError("a body that nobody reads goes on")
        no_http = server.connect()
        no_http.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert _answer(no_http).startswith(b"HTTP/1.1 400")
        # Three that keep back the end of a body fill the memory for others, until their time is over.
        slow = [server.connect() for _ in range(3)]
        for connection in slow:
            connection.sendall(_HEAD + b"content-length: 1000000\r\n\r\n" + b" " * 999_999)
        until(lambda: "nasrec_held_bytes 1.999998e+06" in server.metrics())
        assert sorted(_answer(connection)[9:12] for connection in slow) == [b"408", b"408", b"503"]
        assert "nasrec_held_bytes 0.0" in server.metrics()
        for status in (400, 408, 503):
            assert f'nasrec_responses_total{{status="{status}"}}' in server.metrics()
        assert httpx.post(f"{server.url}/v2/models/nasrec/infer", json=body(3)).status_code == 200


def test_clients_that_stop_take_nothing_from_others(package, tmp_path):
    values = {"header_seconds": 1.0, "body_seconds": 1.0, "reload_seconds": 0}
    with Server(package[0], tmp_path / "log", files=100, **values) as server:
        silent = [server.connect() for _ in range(150)]
        for connection in silent[::2]:
            with suppress(ConnectionError):
                connection.sendall(_HEAD)
        until(lambda: _status(f"{server.url}/v2/health/live") == 200)
        # Who does not read answers is cut off as well.
        deaf = server.connect()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(ConnectionError, TimeoutError):
            for _ in range(3000):
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: 'reason="answer is not read"} 1.0' in server.metrics())
        assert 'reason="headers took too long"' in server.metrics()
        for connection in silent:
            connection.close()


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.TransportError:
        return 0


def test_a_taken_port_and_wrong_flags_end_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Before the package is looked for.
        done = run_program("-m", "apps.serve", "--package", tmp_path / "absent", "--port", port)
        assert done.returncode == 2
        assert done.stderr == f"error: port: cannot listen at 127.0.0.1 port {port}: Address already in use\n"
    for flag, value in (
        ("reload-seconds", -1),
        ("max-delay-ms", "nan"),
        ("port", 65536),
        ("threads", 0),
        ("name", "a/b"),
        ("max-held-mib", 1),
        ("drain-s", -1),
        ("header-seconds", 0),
    ):
        done = run_program("-m", "apps.serve", "--package", tmp_path / "absent", f"--{flag}", value)
        assert done.returncode == 2 and flag.replace("-", "_") in done.stderr, done.stderr
