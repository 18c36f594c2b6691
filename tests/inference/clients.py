"""The environment of clients that cannot stand beside torchx: they need a newer urllib3 and an older protobuf."""

import os
import subprocess

import pytest

# Python of an environment with `tritonclient[http,grpc]`, as `.ci/run` makes one.
CLIENTS = os.environ.get("NASREC_CLIENTS_PYTHON", "build/clients/bin/python")
needs_clients = pytest.mark.skipif(
    subprocess.run(["sh", "-c", '"$0" -c "import tritonclient.grpc"', CLIENTS], capture_output=True).returncode != 0,
    reason="no environment with tritonclient, which .ci/run makes",
)
