"""The record of a run in its folder: enough to repeat it."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from nasrec_torchrec.environment import installed_versions
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.runs.names import CONFIG
from nasrec_torchrec.runs.redaction import redact


@dataclass
class Command:
    """The command line of the program that runs in this process, if any.

    Args:
        text: command line as the user gave it; empty if a job was called from Python.
        config: all flags with their values as YAML, which ``--config`` reads; empty if a job was called from Python.
        plugins: modules of the user that were imported.
    """

    text: str = ""
    config: str = ""
    plugins: tuple[str, ...] = ()


# Set by the command line, read by whatever begins to fill a folder.
COMMAND = Command()


def record_start(folder: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes ``config.yaml``, with which ``--config`` repeats the run, and returns further facts about its start.

    Only one rank calls it, after the settings were accepted. Secrets are left out of both.

    Args:
        folder: run folder.
        settings: settings to write if the job was called from Python.
    """
    facts = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        "command": redact(COMMAND.text),
        "commit": _commit(),
        "versions": installed_versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }
    config = COMMAND.config or (yaml.safe_dump(dict(settings), sort_keys=False) if settings else "")
    if config:
        head = "".join(f"# {name}: {value}\n" for name, value in facts.items())
        write_text(folder / CONFIG, head + redact(config))
    return facts


def _commit() -> str | None:
    """Returns the commit of this code, with a + if files have changed since; None outside of a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
