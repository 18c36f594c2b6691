"""Several models of one server: over HTTP and gRPC, with a split of the traffic and a shadow."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from fastapi.testclient import TestClient
from inference.running import Server, until
from inference.test_server import body, expected
from support import free_port

from nasrec_torchrec.cli.flags import Flag, normalized
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.jobs import serve
from nasrec_torchrec.inference.messages import SERVICE, message
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.inference.server import create_app

pytestmark = pytest.mark.slow  # for the packages are compiled first

PLACES = {"a": "", "b": ""}


def test_a_key_keeps_its_model_and_the_shares_hold(package, plain):
    config = ServingConfig(models=PLACES, split={"a": 0.8, "b": 0.2})
    with TestClient(create_app({"a": package[0], "b": plain}, config)) as client:
        models = {name: Predictor(folder) for name, folder in (("a", package[0]), ("b", plain))}

        def ask(model: str, **headers: str) -> dict:
            return client.post(f"/v2/models/{model}/infer", json=body(2), headers=headers).json()

        answered = {f"user-{n}": ask("nasrec", **{"nasrec-key": f"user-{n}"})["model_name"] for n in range(200)}
        assert 20 <= Counter(answered.values())["b"] <= 60
        assert all(ask("nasrec", **{"nasrec-key": key})["model_name"] == name for key, name in answered.items())
        assert {ask("nasrec")["model_name"] for _ in range(60)} == {"a", "b"}
        for name, predictor in models.items():
            answer = ask(name)
            assert (answer["model_name"], answer["model_version"]) == (name, predictor.version)
            assert answer["outputs"][0]["data"] == pytest.approx(expected(predictor, body(2)), abs=1e-6)
            described = client.get(f"/v2/models/nasrec/versions/{predictor.version}").json()
            assert described["versions"] == [predictor.version]
            assert described["parameters"]["origin"][0]["model"] == name
        versions = [predictor.version for predictor in models.values()]
        assert client.get("/v2/models/nasrec").json()["versions"] == versions
        text = client.get("/metrics").text
        counted = {
            name: float(text.partition(f'nasrec_{metric}{{model="{name}"')[2].split("\n")[0].split()[-1])
            for name in models
            for metric in ("model_requests_total", "queue_seconds_count")
        }
        # Each key twice, those without a key, and each model by its own name.
        assert sum(counted.values()) == 200 + 200 + 60 + 2 and counted["b"] >= 40
        assert client.post("/v2/models/c/infer", json=body(2)).status_code == 404


def test_a_shadow_scores_what_others_answer(package, plain, tmp_path):
    config = ServingConfig(models=PLACES, shadow="b", shadow_log=str(tmp_path / "shadow.jsonl"))
    with TestClient(create_app({"a": package[0], "b": plain}, config)) as client:
        for seed in range(5):
            assert client.post("/v2/models/a/infer", json=body(2, seed)).json()["model_name"] == "a"
        client.post("/v2/models/b/infer", json=body(2))  # for itself it has no shadow
    lines = [json.loads(line) for line in (tmp_path / "shadow.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    first, second = Predictor(package[0]), Predictor(plain)
    for seed, line in enumerate(lines):
        assert line["sent"] == pytest.approx(expected(first, body(2, seed)), abs=1e-6)
        assert line["scored"] == pytest.approx(expected(second, body(2, seed)), abs=1e-6)
        assert (line["version"], line["shadow_version"]) == (first.version, second.version)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": {"a": 0.5, "c": 0.5}}, r"split: expected names of --models, \['a', 'b'\], found 'c'"),
        ({"split": {"a": 0.5, "b": 0.4}}, "split: expected shares from 0 to 1 that add up to 1"),
        ({"split": {"a": 1.0}, "name": "a"}, "name: 'a' names all models of the split together"),
        ({"shadow": "c"}, "shadow: expected names"),
        ({"shadow_log": "x"}, "shadow_log: there is no shadow model"),
    ],
)
def test_a_split_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        ServingConfig(models=PLACES, **values)


def test_either_a_package_or_models():
    with pytest.raises(ValueError, match="expected either --package or --models, found none"):
        serve()
    with pytest.raises(ValueError, match="found both"):
        serve("package", ServingConfig(models=PLACES))


def test_mappings_on_the_command_line():
    flags = [
        Flag(name, kind, False, {}, "", "") for name, kind in (("models", dict[str, str]), ("split", dict[str, float]))
    ]
    words = normalized(["--models", "a=runs/a,b=runs/b", "--split=a=.9,b=.1"], flags, ())
    assert words == ["--models", '{"a": "runs/a", "b": "runs/b"}', '--split={"a": .9, "b": .1}']


@pytest.fixture(scope="module")
def channel(package) -> Iterator[grpc.Channel]:
    port = free_port()
    with (
        TestClient(create_app(package[0], ServingConfig(grpc_port=port, max_rows=100))),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


def call(channel: grpc.Channel, name: str, request: object = None, /, **values: object) -> object:
    method = channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=message(f"{name}Request").SerializeToString,
        response_deserializer=message(f"{name}Response").FromString,
    )
    return method(request or message(f"{name}Request")(**values), timeout=30)


def infer_request(raw: bool, rows: int = 3) -> object:
    request = message("ModelInferRequest")(model_name="nasrec", id="7")
    for part in body(rows)["inputs"]:
        added = request.inputs.add(name=part["name"], datatype=part["datatype"], shape=part["shape"])
        if raw:
            kind = torch.float32 if part["datatype"] == "FP32" else torch.int64
            request.raw_input_contents.append(torch.tensor(part["data"], dtype=kind).numpy().tobytes())
        else:
            field = "fp32_contents" if part["datatype"] == "FP32" else "int64_contents"
            getattr(added.contents, field).extend(part["data"])
    return request


def test_grpc_says_what_http_says(channel, package):
    predictor = Predictor(package[0])
    assert call(channel, "ServerLive").live and call(channel, "ServerReady").ready
    assert call(channel, "ModelReady", name="nasrec").ready
    assert list(call(channel, "ServerMetadata").extensions) == ["binary_tensor_data"]
    described = call(channel, "ModelMetadata", name="nasrec", version=predictor.version)
    assert [part.name for part in described.inputs] == ["dense", "ids", "lengths"]
    assert list(described.versions) == [predictor.version]
    for raw in (True, False):
        answer = call(channel, "ModelInfer", infer_request(raw))
        assert (answer.model_name, answer.model_version, answer.id) == ("nasrec", predictor.version, "7")
        found = answer.outputs[0].contents.fp32_contents
        if raw:
            found = torch.frombuffer(bytearray(answer.raw_output_contents[0]), dtype=torch.float32)
        assert list(found) == pytest.approx(expected(predictor, body(3)), abs=1e-6)


def test_wrong_calls_get_a_reason(channel):
    def refused(change, code: grpc.StatusCode, reason: str) -> None:
        request = infer_request(True)
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", request)
        assert caught.value.code() == code and reason in caught.value.details(), caught.value.details()

    wrong = grpc.StatusCode.INVALID_ARGUMENT
    refused(lambda it: setattr(it, "model_name", "x"), grpc.StatusCode.NOT_FOUND, "unknown model 'x'")
    refused(lambda it: setattr(it, "model_version", "x"), grpc.StatusCode.NOT_FOUND, "unknown version 'x'")
    refused(lambda it: it.raw_input_contents.pop(), wrong, "raw_input_contents: expected 3, one per input, found 2")
    refused(lambda it: it.ClearField("raw_input_contents"), wrong, "contents.fp32_contents: expected 9 values")
    refused(lambda it: it.inputs[1].shape.__setitem__(0, 11), wrong, "ids: expected 88 bytes")
    refused(lambda it: setattr(it.inputs[0], "name", "x"), wrong, "inputs: expected ['dense', 'ids', 'lengths']")
    refused(lambda it: setattr(it.inputs[0], "datatype", "FP64"), wrong, "dense: datatype: expected FP32")


def test_raw_columns_within_the_protocol(channel, plain, package):
    """Columns are read as rows are, over HTTP as JSON and bytes, and over gRPC."""
    schema = package[2]
    names = [feature.name for feature in schema.sparse if not feature.multi_hot][:2]
    with TestClient(create_app(package[0], ServingConfig())) as client:
        rows = [dict.fromkeys(names, 3 + row) for row in range(2)]
        answer = client.post("/v2/models/nasrec/rows", json={"rows": rows})
        assert answer.status_code == 200, answer.text
        wanted = answer.json()["outputs"][0]["data"]
        inputs = [{"name": name, "datatype": "INT64", "shape": [2], "data": [3, 4]} for name in names]
        answer = client.post("/v2/models/nasrec/infer", json={"inputs": inputs})
        assert answer.json()["outputs"][0]["data"] == wanted, answer.text
        inputs = [{"name": name, "datatype": "BYTES", "shape": [2, 1], "data": ["3", "4"]} for name in names]
        answer = client.post("/v2/models/nasrec/infer", json={"inputs": inputs})
        assert answer.json()["outputs"][0]["data"] == wanted, answer.text
        data = b"\x01\0\0\0003\x01\0\0\0004"
        for part in inputs:
            del part["data"]
            part["parameters"] = {"binary_data_size": len(data)}
        header = json.dumps({"inputs": inputs}).encode()
        headers = {"inference-header-content-length": str(len(header))}
        answer = client.post("/v2/models/nasrec/infer", content=header + data * 2, headers=headers)
        assert answer.json()["outputs"][0]["data"] == wanted, answer.text
        answer = client.post("/v2/models/nasrec/infer", content=header + data + data[:-1], headers=headers)
        assert answer.status_code == 400
        cut = json.dumps({"inputs": [{**inputs[0], "parameters": {"binary_data_size": 9}}]}).encode()
        answer = client.post(
            "/v2/models/nasrec/infer",
            content=cut + data[:9],
            headers={"inference-header-content-length": str(len(cut))},
        )
        assert answer.status_code == 400 and "each behind its length" in answer.json()["error"], answer.text
        inputs = [{"name": names[0], "datatype": "BYTES", "shape": [2], "data": ["x", "4"]}]
        answer = client.post("/v2/models/nasrec/infer", json={"inputs": inputs})
        assert answer.status_code == 400 and f"row 0: column '{names[0]}'" in answer.json()["error"], answer.text
    request = message("ModelInferRequest")(model_name="nasrec")
    for name in names:
        request.inputs.add(name=name, datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"3", b"4"])
    assert list(call(channel, "ModelInfer", request).outputs[0].contents.fp32_contents) == pytest.approx(
        wanted, abs=1e-6
    )


def test_another_version_is_one_link_away(package, plain, tmp_path):
    """A roll-back: the server follows a link from one package to another."""
    versions = {name: Predictor(folder).version for name, folder in (("new", package[0]), ("old", plain))}
    shutil.copytree(package[0], tmp_path / "new")
    shutil.copytree(plain, tmp_path / "old")
    current: Path = tmp_path / "current"
    current.symlink_to("new")
    with Server(current, tmp_path / "log", reload_seconds=0.2) as server:
        assert server.version() == versions["new"]
        for name in ("old", "new"):
            (tmp_path / "next").symlink_to(name)
            (tmp_path / "next").replace(current)
            until(lambda name=name: server.version() == versions[name])
