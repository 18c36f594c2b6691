"""The server as the clients of others speak to it."""

import socket
import subprocess
from pathlib import Path

import pytest
from inference.clients import CLIENTS, needs_clients
from inference.running import Server

pytestmark = pytest.mark.slow


@needs_clients
def test_tritons_client_gets_what_the_golden_response_says(package, tmp_path):
    with Server(package[0], tmp_path / "log", reload_seconds=0) as server:
        done = subprocess.run(
            [CLIENTS, Path(__file__).with_name("triton_client.py"), server.url.removeprefix("http://")],
            input=(package[0] / "golden.json").read_text(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        version = server.version()
    said = done.stdout
    for line in (
        "is_server_live(): true",
        "is_server_ready(): true",
        "is_model_ready('nasrec', VERSION): true",
        "infer('other'): InferenceServerException: [404] unknown model 'other'; this server has 'nasrec'",
        f"infer('nasrec', version 'none'): InferenceServerException: [404] unknown version 'none'; this server has "
        f"'{version}'",
        "ids: datatype: expected INT64, found 'INT32'",
        "get_model_repository_index(): InferenceServerException: [404]",
    ):
        assert line in said, f"{line}\nis not in\n{said}"


@needs_clients
def test_kserves_clients_and_grpc_get_what_the_golden_response_says(package, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Server(package[0], tmp_path / "log", reload_seconds=0, grpc_port=port) as server:
        program = Path(__file__).with_name("other_clients.py")
        page = Path(__file__).resolve().parents[2] / "docs" / "inference.md"
        done = subprocess.run(
            [CLIENTS, program, server.url.removeprefix("http://"), f"127.0.0.1:{port}", page],
            input=(package[0] / "golden.json").read_text(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    for line in (
        "kserve reads nasrec\n",
        "kserve reads nasrec-triton\n",
        "tritonclient.grpc live True ready True\n",
        "tritonclient.grpc [StatusCode.NOT_FOUND] unknown model 'other'; this server has 'nasrec'\n",
        "tritonclient.grpc [StatusCode.NOT_FOUND] unknown version 'none'; this server has ",
        "tritonclient.grpc [StatusCode.INVALID_ARGUMENT] inputs: expected ['dense', 'ids', 'lengths'], each once",
        "kserve rest live True ready True model True\n",
        "kserve rest infer binary=True [",
        "kserve grpc live True ready True model True\n",
        "kserve grpc infer binary=False [",
    ):
        assert line in done.stdout, f"{line}\nis not in\n{done.stdout}"
