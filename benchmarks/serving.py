"""Sends load and malformed requests to a running server, over loopback.

    python benchmarks/serving.py --package runs/export

It starts the server, saturates it for a while, sends malformed requests, and measures again.
"""

import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from load import random_request, send
from process_memory import mib

from nasrec_torchrec.cli import run

_BROKEN: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    [],
    [[1], [2, 3]],
    {"a": 1},
)


def main(
    package: Path,
    seconds: float = 60.0,
    clients: int = 16,
    rows: int = 64,
    fuzzed: int = 10_000,
    max_waiting: int = 512,
) -> None:
    """Prints the answers, the latencies and the server's memory.

    Args:
        package: Folder that nasrec export wrote.
        seconds: Seconds of load.
        clients: Number of clients that send requests without a pause.
        rows: Rows per request.
        fuzzed: Number of malformed requests.
        max_waiting: Number of rows that may wait at the server.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nasrec_torchrec", "serve", "--package", str(package), "--port", str(port)]
    server = subprocess.Popen([*command, "--max_waiting", str(max_waiting)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/v2/health/ready").raise_for_status()
                break
            except httpx.TransportError:
                assert server.poll() is None
                time.sleep(0.1)
        body, address = random_request(url, "nasrec", rows), f"{url}/v2/models/nasrec/infer"
        request = json.loads(body)
        asyncio.run(send(address, [body], clients, 5))  # warms up
        before = mib(pid=server.pid)
        load = asyncio.run(send(address, [body], clients, seconds))
        print(
            f"{clients} clients, {rows} rows a request: {load}; {load.statuses['200'] * rows / seconds:,.0f} rows/s; "
            f"memory {before:,.0f} MiB before, {mib(pid=server.pid):,.0f} MiB after",
            flush=True,
        )
        calm = _calm(url, request)
        fuzz = _fuzz(port, request, fuzzed)
        print(f"{fuzzed:,} broken requests: {dict(fuzz)}; memory {mib(pid=server.pid):,.0f} MiB")
        print(f"one client: p50 {calm:.2f} ms before the broken requests, {_calm(url, request):.2f} ms after")
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait()


def _calm(url: str, request: dict[str, Any]) -> float:
    """Measures the median milliseconds of a single client."""
    times = []
    with httpx.Client() as client:
        for _ in range(200):
            started = time.perf_counter()
            assert client.post(f"{url}/v2/models/nasrec/infer", json=request).status_code == 200
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def _fuzz(port: int, request: dict[str, Any], count: int) -> Counter[str]:
    """Sends malformed requests of many kinds; each needs an answer that gives a reason."""
    rng = random.Random(1)
    answers: Counter[str] = Counter()
    url = f"http://127.0.0.1:{port}/v2/models/nasrec/infer"
    with httpx.Client(timeout=30, headers={"content-type": "application/json"}) as client:
        for number in range(count):
            if number % 20 == 19:
                answers[_cut_off(port)] += 1
                continue
            broken = json.loads(json.dumps(request))
            part = rng.choice(broken["inputs"])
            key = rng.choice(sorted(part))
            if key == "data" and rng.random() < 0.7:
                part["data"][rng.randrange(len(part["data"]))] = rng.choice(_BROKEN)
            elif rng.random() < 0.2:
                del part[key]
            else:
                part[key] = rng.choice(_BROKEN)
            content = json.dumps(broken).encode()
            if rng.random() < 0.2:
                content = content[: rng.randrange(len(content))]
            answer = client.post(url, content=content)
            answers[str(answer.status_code)] += 1
            # Another id is no mistake: ids that the model does not know are the missing one.
            assert answer.status_code == 200 or (400 <= answer.status_code < 500 and answer.json()["error"]), (
                answer.text
            )
    return answers


def _cut_off(port: int) -> str:
    """Announces more bytes than it sends, and disconnects."""
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(
            b"POST /v2/models/nasrec/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 1000\r\n\r\n{"inputs": ['
        )
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(10)
        answer = raw.recv(100)
    return "cut off: " + (answer.split(b" ")[1].decode() if answer else "closed")


if __name__ == "__main__":
    run(main)
