"""The configuration of nginx in the page adds TLS and tokens, over HTTP and gRPC."""

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from inference.running import Server
from inference.test_models import infer_request
from inference.test_server import body, expected
from support import free_port

from nasrec_torchrec.inference.messages import SERVICE, message
from nasrec_torchrec.inference.predictor import Predictor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inference.md"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


@pytest.fixture(scope="module")
def proxied(package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of nginx before a server, and the folder of its files."""
    folder, port, grpc_port = tmp_path_factory.mktemp("proxy"), free_port(), free_port()
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    made = ("-keyout", folder / "nasrec.key", "-out", folder / "nasrec.crt", "-days", "2")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *made], check=True)
    (shown,) = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    with Server(package[0], folder / "log", reload_seconds=0, grpc_port=grpc_port) as server:
        for written, here in (
            (" 8443 ", f" {port} "),
            ("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
            ("127.0.0.1:8081", f"127.0.0.1:{grpc_port}"),
            ("/etc/nginx/", f"{folder}/"),
            ("/var/log/nginx/", f"{folder}/"),
        ):
            assert written in shown
            shown = shown.replace(written, here)
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{place}_temp_path {folder}/{place};\n" for place in places)
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/pid; events {{}}\nhttp {{\n{temporary}{shown}}}\n"
        )
        assert NGINX is not None
        nginx = subprocess.Popen([NGINX, "-p", folder, "-e", folder / "errors", "-c", folder / "nginx.conf"])
        try:
            for _ in range(100):
                assert nginx.poll() is None, (folder / "errors").read_text()
                with socket.socket() as trying:
                    if trying.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port, folder
        finally:
            nginx.terminate()
            nginx.wait()


def test_http_needs_a_token_and_tls(proxied: tuple[int, Path], package):
    port, folder = proxied
    trusted = ssl.create_default_context(cafile=str(folder / "nasrec.crt"))
    with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=30) as client:
        assert client.get("/v2/health/ready").status_code == 200
        address = "/v2/models/nasrec/infer"
        for token in ({}, {"authorization": "Bearer wrong"}, {"authorization": "TOKEN_OF_ADS"}):
            refused = client.post(address, json=body(3), headers=token)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/json")
            assert "Bearer" in refused.json()["error"]
        answer = client.post(address, json=body(3), headers={"authorization": "Bearer TOKEN_OF_ADS"})
        (output,) = answer.json()["outputs"]
        assert output["data"] == pytest.approx(expected(Predictor(package[0]), body(3)), abs=1e-6)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"https://localhost:{port}/v2/health/ready")  # an unknown authority
    assert httpx.get(f"http://localhost:{port}/v2/health/ready").status_code == 400
    assert re.search(r" ads POST /v2/models/nasrec/infer 200 ", (folder / "nasrec.log").read_text())


def test_grpc_needs_a_token_and_tls(proxied: tuple[int, Path], package):
    port, folder = proxied
    trusted = grpc.ssl_channel_credentials((folder / "nasrec.crt").read_bytes())
    with grpc.secure_channel(f"localhost:{port}", trusted) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            infer(infer_request(True), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        answer = infer(infer_request(False), timeout=30, metadata=(("authorization", "Bearer TOKEN_OF_RANKING"),))
        found = list(answer.outputs[0].contents.fp32_contents)
        assert found == pytest.approx(expected(Predictor(package[0]), body(3)), abs=1e-6)
