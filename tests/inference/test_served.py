"""The package that answers is replaced by a good one only, and requests that nobody waits for are not scored."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from inference.running import Server, until
from inference.test_server import body, expected

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.predictor import Batcher, Predictor, Request, manifest_sha256
from nasrec_torchrec.inference.server import create_app

pytestmark = pytest.mark.slow  # for the package is compiled first


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "package"))


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(folder, ServingConfig(reload_seconds=0.05))) as client:
        yield client


def replace(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Replaces a package by a valid one with another manifest."""
    document = json.loads((folder / "model.json").read_text())
    change(document)
    document["sha256"]["model.json"] = manifest_sha256(document)
    (folder / "part").write_text(json.dumps(document))
    os.replace(folder / "part", folder / "model.json")


def _origin(client: TestClient) -> dict[str, str]:
    return client.get("/v2/models/nasrec").json()["parameters"]["origin"][0]


def _renamed(document: dict[str, Any]) -> None:
    document["schema"]["sparse"][1]["name"] = "other"


def _with_lists(document: dict[str, Any]) -> None:
    document["schema"]["sparse"][0]["multi_hot"] = True


def _of_words(document: dict[str, Any]) -> None:
    document["schema"]["sparse"][0]["ids"] = "dictionary"


def _of_another_form(document: dict[str, Any]) -> None:
    document["schema"]["sparse"][0]["ids"] = "guess"


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        (_renamed, "its sparse features are ['f0', 'other', 'f2', 'f3'], but clients send ['f0', 'f1', 'f2', 'f3']"),
        (_with_lists, "its multi-hot features are ['f0', 'f3'], but clients send ['f3']"),
        (_of_words, "clients send raw rows, which it cannot read: dictionaries/"),
        (_of_another_form, "clients send raw rows, which it cannot read: "),
    ),
)
def test_a_package_that_reads_other_requests_is_refused_and_reported(client, folder: Path, change, reason: str):
    before, rows = _origin(client), {"rows": [{"d0": 0.5, "f0": 3, "f3": [1, 2]}]}
    answered = client.post("/v2/models/nasrec/rows", json=rows).json()
    assert 'nasrec_package_refused{model="nasrec"} 0.0' in client.get("/metrics").text
    served = (folder / "model.json").read_bytes()
    replace(folder, change)
    until(lambda: "refused" in _origin(client))
    assert _origin(client)["refused"].startswith(reason) and str(folder) not in _origin(client)["refused"]
    text = client.get("/metrics").text
    assert 'nasrec_package_refused{model="nasrec"} 1.0' in text
    assert 'nasrec_reloads_total{model="nasrec",result="refused"} 1.0' in text
    assert client.post("/v2/models/nasrec/rows", json=rows).json() == answered
    # A good one ends the report.
    (folder / "model.json").write_bytes(served)
    until(lambda: "refused" not in _origin(client))
    text = client.get("/metrics").text
    assert _origin(client) == before and 'nasrec_package_refused{model="nasrec"} 0.0' in text
    assert 'result="served"' not in text  # it is the one that was served all the time


def test_models_that_were_replaced_leave_the_memory(client, folder: Path):
    def held() -> tuple[int, int, int]:
        """Compiled models in memory, open files and threads."""
        maps = Path("/proc/self/maps").read_text().splitlines()
        # A deleted file stays in memory as long as a process has mapped it.
        models = {line.split(maxsplit=5)[5] for line in maps if "nasrec-aotinductor" in line}
        return len(models), len(os.listdir("/proc/self/fd")), threading.active_count()

    models, *rest = held()
    for number in range(6):
        replace(folder, lambda document, number=number: document.update(origin={"parent": str(number)}))
        until(lambda number=number: _origin(client)["parent"] == str(number))
        assert client.post("/v2/models/nasrec/infer", json=body(3)).status_code == 200
    # The one that was loaded first stays, and the last that was replaced leaves with the next one. What earlier tests
    # of this process left may be gone by now.
    until(lambda: held()[0] <= models + 2 and all(now <= then for now, then in zip(held()[1:], rest, strict=True)))


def test_a_request_whose_client_hung_up_is_not_scored(plain: Path, tmp_path: Path):
    # The batch is full when the last request arrives, and does not end before.
    values = {"max_delay_ms": 30_000, "max_batch_size": 7, "reload_seconds": 0, "grpc_port": None}
    with Server(plain, tmp_path / "log", **values) as server:
        answers: dict[int, list[float]] = {}

        def ask(rows: int) -> None:
            answer = httpx.post(f"{server.url}/v2/models/nasrec/infer", json=body(rows, rows), timeout=60)
            answers[rows] = answer.json()["outputs"][0]["data"]

        stay = [threading.Thread(target=ask, args=(rows,)) for rows in (2, 3)]
        stay[0].start()
        until(lambda: 'nasrec_waiting_rows{model="nasrec"} 2.0' in server.metrics())
        tensors, rows = json.dumps(body(1)).encode(), b'{"rows": [{"f0": 1}]}'
        for number, (path, content) in enumerate(((b"infer", tensors), (b"rows", rows)), 1):
            with server.connect() as gone:
                gone.sendall(b"POST /v2/models/nasrec/%b HTTP/1.1\r\nhost: x\r\n" % path)
                gone.sendall(b"content-length: %d\r\n\r\n%b" % (len(content), content))
                until(lambda number=number: f'nasrec_waiting_rows{{model="nasrec"}} {2.0 + number}' in server.metrics())
        until(lambda: 'nasrec_abandoned_requests_total{model="nasrec"} 2.0' in server.metrics())
        stay[1].start()
        for thread in stay:
            thread.join()
        predictor = Predictor(plain)
        for rows, answer in answers.items():
            assert answer == pytest.approx(expected(predictor, body(rows, rows)), abs=1e-6)
        text = server.metrics()
        assert 'nasrec_batch_rows_sum{model="nasrec"} 5.0' in text and len(answers) == 2
        assert 'nasrec_waiting_rows{model="nasrec"} 0.0' in text and "nasrec_held_bytes 0.0" in text


class _Held:
    """A predictor whose first batch waits."""

    def __init__(self, predictor: Predictor) -> None:
        self.check, self._predictor = predictor.check, predictor
        self.began, self.go_on = threading.Event(), threading.Event()

    def predict(self, request: Request) -> torch.Tensor:
        self.began.set()
        self.go_on.wait(30)
        return self._predictor.predict(request)


def test_cancelled_requests_take_no_place_in_a_batch(plain: Path):
    predictor = Predictor(plain)
    held, scored = _Held(predictor), []
    batcher = Batcher(held, 8, max_delay=0.0, observe=lambda rows, _: scored.append(rows))  # type: ignore[arg-type]
    requests = [predictor.request([{"f0": number}] * 4) for number in range(5)]
    futures = [batcher.submit(requests[0])]
    assert held.began.wait(30)
    futures += [batcher.submit(request) for request in requests[1:]]
    assert futures[1].cancel() and futures[3].cancel()
    held.go_on.set()
    for number in (0, 2, 4):
        assert torch.allclose(futures[number].result(30), predictor.predict(requests[number]), atol=1e-6)
    batcher.close()
    assert scored == [4, 8] and batcher.waiting == 0
