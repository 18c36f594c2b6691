"""A real Slurm cluster of one node on the loopback address, where Slurm's daemons are installed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for the credential of its first start to expire.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[2]}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
"""
_ACCOUNTING_CONFIG = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[2]}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[3]}
StorageUser=slurm
StoragePass=slurm
"""
_ACCOUNTANTS = ("slurmdbd", "mariadbd", "mariadb-install-db")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm's commands, and torchx's slurm scheduler, talk to a cluster of this machine while the test runs."""
    if missing := [name for name in _DAEMONS if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed; .ci/run installs Debian's slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(4)]
        for port in free:
            port.bind(("127.0.0.1", 0))
        ports = [port.getsockname()[1] for port in free]
    config = folder / "slurm.conf"
    places = {"host": socket.gethostname().split(".")[0], "folder": folder, "ports": ports}
    accounting = all(map(shutil.which, _ACCOUNTANTS))
    config.write_text((_CONFIG + (_ACCOUNTING if accounting else "")).format(**places))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    daemons = [
        subprocess.Popen(
            ["munged", "--foreground", "--force", *(f"--{name}={place}" for name, place in files.items())],
            stderr=subprocess.DEVNULL,
        )
    ]
    _until(lambda: (folder / "munge.socket").exists(), "munged has no socket")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    try:
        if accounting:
            daemons += _start_accounting(folder, places)
        for name in ("slurmctld", "slurmd"):
            daemons.append(subprocess.Popen([name, "-D", "-f", str(config)], stderr=subprocess.DEVNULL))
        _until(lambda: "idle" in _sinfo(), f"the node is not idle: {folder}")
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _start_accounting(folder: Path, places: dict[str, Any]) -> list[subprocess.Popen[bytes]]:
    """Slurm's memory of jobs, which torchx's commands ask."""
    database, port = folder / "database", places["ports"][3]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--no-defaults", "--user=root", f"--datadir={database}"]
    subprocess.run(["mariadb-install-db", *options], check=True, **quiet)
    served = [*options, f"--socket={folder}/sql.socket", f"--port={port}", "--bind-address=127.0.0.1"]
    daemons = [subprocess.Popen(["mariadbd", *served, f"--pid-file={folder}/sql.pid"], **quiet)]
    _until(lambda: (folder / "sql.socket").exists(), "mariadbd has no socket")
    user = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; GRANT ALL ON *.* TO slurm@'127.0.0.1';"
    subprocess.run(["mariadb", "--no-defaults", f"--socket={folder}/sql.socket", "-e", user], check=True)
    config = folder / "slurmdbd.conf"
    config.write_text(_ACCOUNTING_CONFIG.format(**places))
    config.chmod(0o600)
    daemons.append(subprocess.Popen(["slurmdbd", "-D"], **quiet))
    _until(lambda: _add_cluster().returncode == 0, f"slurmdbd takes no cluster: {folder}")
    return daemons


def _add_cluster() -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sacctmgr", "--immediate", "add", "cluster", "test"], capture_output=True)


def _sinfo() -> str:
    return subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True).stdout


def _until(condition, message: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.2)
