"""How the demo starts a job: in this process, or on several ranks through this project's torchx components."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nasrec_torchrec import search, training

_JOBS: dict[str, Callable[..., Any]] = {
    "train_supernet": training.run_supernet,
    "search": search.run,
    "train": training.run,
}


def launch(component: str, ranks: int, **arguments: Any) -> None:
    """Runs a job on this machine and waits for it.

    Args:
        component: name of the torchx component that starts the job on ranks.
        ranks: number of processes; a single one is this process.
        arguments: arguments of the job's function.

    Raises:
        ValueError: If torchx is needed and not installed, or the component fails.
    """
    if ranks == 1:
        print(f"\n{component}: {arguments['out']}", flush=True)
        _JOBS[component](**arguments)
        return
    if importlib.util.find_spec("torchx") is None:
        raise ValueError("ranks: several are started by torchx: pip install 'nasrec-torchrec[demo]', or use --ranks 1")
    command = ["torchx", "run", "--scheduler", "local_cwd", "--wait", "--log", f"nasrec.{component}"]
    command += component_words(ranks, arguments)
    print(f"\n$ {shlex.join(command)}", flush=True)
    # The scheduler starts `python` and `torchrun` by name: they must be those of this environment.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    result = subprocess.run(command, env=environment)
    if result.returncode:
        raise ValueError(f"torchx component {component} failed with exit code {result.returncode}; its output is above")


def component_words(ranks: int, arguments: Mapping[str, Any]) -> list[str]:
    """Returns the command line of a component: paths are its arguments, everything else is a flag of its program.

    Args:
        ranks: number of processes on this machine.
        arguments: arguments of the job's function; of a dataclass, the fields that differ from their defaults.

    Returns:
        Words behind the component's name.
    """
    named, flags = ["-j", f"1x{ranks}"], ["--"]
    for name, value in arguments.items():
        if isinstance(value, str | Path):
            named += [f"--{name}", str(value)]
        elif is_dataclass(value):
            changed = [field for field in fields(value) if getattr(value, field.name) != field.default]
            flags += [word for field in changed for word in _flag(field.name, getattr(value, field.name))]
        else:
            flags += _flag(name, value)
    return named + flags


def _flag(name: str, value: Any) -> list[str]:
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
