"""Command lines from types: what the programs under apps/ share."""

import importlib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from nasrec_torchrec.runs.paths import register_handlers, to_path
from nasrec_torchrec.runs.record import COMMAND

register_type(Path, deserializer=to_path, type_check=isinstance)
_FLAG = re.compile(r"(?<=^--)\w[\w-]*")


def run(*commands: Callable[..., None]) -> None:
    """Parses the command line of a program and runs it.

    Every parameter of a command becomes a flag, and so does every field of a parameter that is a dataclass; a
    positional-only parameter is an argument without a flag. Help and defaults come from docstrings and types.
    ``--config file.yaml`` reads flags from a file. A flag may be written with hyphens for underscores.
    A ValueError, which is how wrong input is reported everywhere, ends in one line and exit code 2.

    Args:
        commands: the program; several become subcommands, named like the functions.
    """
    quiet_libraries()
    words = [_FLAG.sub(lambda flag: flag[0].replace("-", "_"), word) for word in sys.argv[1:]]
    if len(commands) == 1:
        (main,) = commands
        parser = _parser(main, main.__module__ if main.__module__ != "__main__" else None)
        parsed = parser.parse_args(words)
        COMMAND.config = parser.dump(parsed)
        values = vars(parsed)
    else:
        parser = ArgumentParser(description=_summary(sys.modules[commands[0].__module__]))
        subcommands = parser.add_subcommands()
        parsers = {command.__name__: _parser(command, None) for command in commands}
        for command in commands:
            name = command.__name__
            subcommands.add_subcommand(name, parsers[name], help=_summary(command).split("\n")[0])
        parsed = parser.parse_args(words)
        (main,) = (command for command in commands if command.__name__ == parsed.subcommand)
        COMMAND.config = parsers[parsed.subcommand].dump(parsed[parsed.subcommand])
        values = vars(parsed[parsed.subcommand])
    values.pop("config")
    try:
        if handlers := values.pop("path_handlers"):
            register_handlers(handlers)
        for plugin in values.pop("plugins"):
            _import(plugin)
        arguments: dict[str, Any] = {}
        for name, kind in _dataclasses(main).items():
            arguments[name] = kind(**{field: values.pop(field) for field in signature(kind).parameters})
        arguments |= values
        positional = [arguments.pop(name) for name in _positional(main)]
        main(*positional, **arguments)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parser(main: Callable[..., None], name: str | None) -> ArgumentParser:
    parser = ArgumentParser(prog=name, description=_summary(main))
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of the flags below")
    parser.add_argument(
        "--plugins", type=list[str], default=[], help="Python modules to import first, with operators of your own"
    )
    parser.add_argument(
        "--path_handlers",
        type=str | None,
        help="module:function, called with the iopath PathManager behind all paths, to register handlers of URIs with",
    )
    configs = _dataclasses(main)
    parser.add_function_arguments(main, skip=set(configs), as_positional=bool(_positional(main)))
    for kind in configs.values():
        parser.add_class_arguments(kind)
    return parser


def _import(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except ImportError as error:
        raise ValueError(f"plugins: the module {plugin!r} cannot be imported: {error}") from None


def _dataclasses(main: Callable[..., None]) -> dict[str, type]:
    return {
        name: parameter.annotation
        for name, parameter in signature(main).parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }


def _positional(main: Callable[..., None]) -> list[str]:
    parameters = signature(main).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_ONLY]


def _summary(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("Args:")[0].strip()


def quiet_libraries() -> None:
    """TorchRec and torch.distributed warn on every start of things that a user cannot act upon."""
    for name in ("torchrec", "torch.fx", "torch.distributed", "jsonargparse"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|torchmetrics|fbgemm_gpu|copyreg)(\..*)?$")
    warnings.filterwarnings("ignore", message=r".*(ShardedTensor|LeafSpec).*")
