"""Command lines from types: what the programs under apps/ share."""

import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import signature
from typing import Any

from jsonargparse import ArgumentParser


def run(main: Callable[..., None]) -> None:
    """Parses the command line of a program and runs it.

    Every parameter of ``main`` becomes a flag, and so does every field of a parameter that is a dataclass; help and
    defaults come from docstrings and types. ``--config file.yaml`` reads flags from a file.
    A ValueError, which is how wrong input is reported everywhere, ends in one line and exit code 2.

    Args:
        main: the program.
    """
    _quiet_libraries()
    parser = ArgumentParser(prog=main.__module__ if main.__module__ != "__main__" else None, description=_summary(main))
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of the flags below")
    configs: dict[str, type] = {}
    for name, parameter in signature(main).parameters.items():
        if is_dataclass(parameter.annotation):
            configs[name] = parameter.annotation  # type: ignore[assignment]
    parser.add_function_arguments(main, skip=set(configs))
    for kind in configs.values():
        parser.add_class_arguments(kind)
    values: dict[str, Any] = vars(parser.parse_args())
    values.pop("config")
    try:
        arguments: dict[str, Any] = {}
        for name, kind in configs.items():
            fields = {field: values.pop(field) for field in signature(kind).parameters}
            arguments[name] = kind(**fields)
        main(**arguments, **values)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _summary(main: Callable[..., None]) -> str:
    return (main.__doc__ or "").split("Args:")[0].strip()


def _quiet_libraries() -> None:
    """TorchRec and torch.distributed warn on every start of things that a user cannot act upon."""
    for name in ("torchrec", "torch.fx", "torch.distributed", "jsonargparse"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|torchmetrics|fbgemm_gpu|copyreg)(\..*)?$")
    warnings.filterwarnings("ignore", message=r".*(ShardedTensor|LeafSpec).*")
