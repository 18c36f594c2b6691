"""OpenTelemetry instruments the server without a change of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from inference.running import wait_until_ready
from support import free_port

PROGRAM = shutil.which("opentelemetry-instrument", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="the extra tracing is not installed")
def test_spans_continue_the_trace_of_a_request_and_have_no_payloads(package, tmp_path: Path):
    port = free_port()
    flags = ["--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"]
    served = ["-m", "nasrec_torchrec", "serve", "--package", str(package[0]), "--port", str(port), "--notice_s", "0"]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "spans").open("w") as spans:
        server = subprocess.Popen([str(PROGRAM), *flags, sys.executable, *served], stdout=spans)
        try:
            wait_until_ready(url, lambda: server.poll() is None, tmp_path / "spans")
            row = {"f0": 123454321, "f3": [1, 2], "d1": 0.5}
            header = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            answer = httpx.post(f"{url}/v2/models/nasrec/rows", json={"rows": [row]}, headers=header)
            assert answer.status_code == 200, answer.text
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    found = (tmp_path / "spans").read_text()
    assert re.search(rf'"trace_id": "0x{TRACE}"', found) and '"/v2/models/{' in found, found
    assert "123454321" not in found
