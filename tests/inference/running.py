"""A server in a process of its own, for tests of what only a real one does."""

import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from support import forked, free_port

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.server import serve


def wait_until_ready(url: str, runs: Callable[[], bool], log: Path) -> None:
    """Waits until a server that writes to a log answers that it is ready."""
    for _ in range(600):
        assert runs(), log.read_text()
        try:
            httpx.get(f"{url}/v2/health/ready").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server does not start")


class Server:
    """``serve`` in a process of its own, forked from one that has the slow imports behind it."""

    def __init__(self, folder: Path, log: Path, files: int = 0, **values: object) -> None:
        self.port = free_port()
        self.folder, self.log = folder, log
        self.process = forked().Process(target=_serve, args=(folder, log, files, {"port": self.port, **values}))
        self.process.start()
        self.url = f"http://127.0.0.1:{self.port}"
        wait_until_ready(self.url, self.process.is_alive, log)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics").text

    def version(self) -> str:
        return httpx.get(f"{self.url}/v2/models/nasrec").json()["versions"][0]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def wait(self) -> int | None:
        self.process.join(30)
        return self.process.exitcode


def until(happened: Callable[[], bool]) -> None:
    """Waits until something has happened, for half a minute at most."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _serve(folder: Path, log: Path, files: int, values: dict) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.environ["TMPDIR"] = str(log.parent / "unpacked")
    (log.parent / "unpacked").mkdir(exist_ok=True)
    tempfile.tempdir = None
    serve(folder, ServingConfig(**values))
