"""A PostgreSQL server for tests."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import free_port


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The user, address and database of a server of our own on loopback, where PostgreSQL is installed."""
    programs = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((Path(program).resolve() for program in programs if program), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    # It refuses to run as root.
    user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    subprocess.run([*user, initdb, "-D", folder / "data", "-U", "us", "-A", "trust"], check=True, capture_output=True)
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    server = subprocess.Popen([*user, initdb.with_name("postgres"), "-D", folder / "data", *options])
    ready = [initdb.with_name("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready).returncode:
        assert server.poll() is None
        time.sleep(0.1)
    yield f"us@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)
    server.wait()
    shutil.rmtree(folder)
