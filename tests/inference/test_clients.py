"""The server as the clients of others speak to it."""

import subprocess
from pathlib import Path

import pytest
from inference.clients import CLIENTS, needs_clients
from inference.running import Server
from support import free_port

pytestmark = pytest.mark.slow


def ask(program: str, package: Path, *arguments: object) -> str:
    """Runs a client with the golden request of a package, and returns what it printed."""
    done = subprocess.run(
        [CLIENTS, Path(__file__).with_name(program), *map(str, arguments)],
        input=(package / "golden.json").read_text(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_clients
def test_tritons_client_gets_what_the_golden_response_says(package, tmp_path):
    with Server(package[0], tmp_path / "log", reload_seconds=0) as server:
        said = ask("triton_client.py", package[0], server.url.removeprefix("http://"))
        version = server.version()
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
def test_kserves_clients_and_tritons_over_grpc_get_what_the_golden_response_says(package, tmp_path):
    port = free_port()
    grpc = f"127.0.0.1:{port}"
    page = Path(__file__).resolve().parents[2] / "docs" / "inference.md"
    with Server(package[0], tmp_path / "log", reload_seconds=0, grpc_port=port) as server:
        said = ask("triton_grpc_client.py", package[0], grpc)
        said += ask("kserve_client.py", package[0], server.url.removeprefix("http://"), grpc, page)
    for line in (
        "tritonclient.grpc live True ready True\n",
        "tritonclient.grpc [StatusCode.NOT_FOUND] unknown model 'other'; this server has 'nasrec'\n",
        "tritonclient.grpc [StatusCode.NOT_FOUND] unknown version 'none'; this server has ",
        "tritonclient.grpc [StatusCode.INVALID_ARGUMENT] inputs: expected ['dense', 'ids', 'lengths'], each once",
        "kserve reads nasrec\n",
        "kserve reads nasrec-triton\n",
        "kserve rest live True ready True model True\n",
        "kserve rest infer binary=True [",
        "kserve grpc live True ready True model True\n",
        "kserve grpc infer binary=False [",
    ):
        assert line in said, f"{line}\nis not in\n{said}"
