"""The environment of clients that cannot stand beside torchx: they need a newer urllib3 and an older protobuf."""

import os
import subprocess

import pytest

# Python of an environment with `tritonclient[http,grpc]` and `kserve`, as `.ci/run` makes one.
CLIENTS = os.environ.get("NASREC_CLIENTS_PYTHON", "build/clients/bin/python")
# Looks for them only, because importing them takes seconds.
_FOUND = "from importlib.util import find_spec as find; exit(not (find('kserve') and find('tritonclient')))"
needs_clients = pytest.mark.skipif(
    subprocess.run(["sh", "-c", '"$0" -c "$1"', CLIENTS, _FOUND], capture_output=True).returncode != 0,
    reason="no environment with tritonclient and kserve, which .ci/run makes",
)
