"""The server as the clients of others speak to it."""

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
