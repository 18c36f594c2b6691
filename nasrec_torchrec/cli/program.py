"""What all programs share: the command line, one-line errors, and a message on how to resume after Ctrl-C."""

import importlib
import inspect
import logging
import multiprocessing
import os
import re
import shlex
import sys
import textwrap
import warnings
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from nasrec_torchrec import __version__
from nasrec_torchrec.cli.flags import Flag, dataclasses_of, flags_of, normalized, summary_of
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.messages import nearest, printable
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.stopping import LostRankError

# Exit code of a program that was interrupted with Ctrl-C, as a shell reports it.
INTERRUPTED = 130
_EVERY = "Every program"
# Flags that every program has, in addition to those of the parser.
SHARED_FLAGS = (
    Flag("plugins", tuple[str, ...], False, (), "Python modules to import first, with operators of your own", _EVERY),
    Flag(
        *("path_handlers", str, True, None),
        "module:function, called with an iopath PathManager to register handlers of URIs with",
        _EVERY,
    ),
)
_JSON = Flag("json", bool, False, False, "whether to print the result as one JSON object for programs", _EVERY)
_SPACE = "space"
_PARSERS_OWN = ("config", "print_config", "help", "version")


@dataclass(frozen=True)
class Program:
    """A job and its command line.

    Args:
        function: function that does the job. Its parameters become flags, and so do the fields of dataclasses among
            them; a positional-only parameter is an argument without a name. The docstrings become the help.
        example: a command line to show below the flags.
        groups: titles of groups of flags in the help, and the names of the flags in each.
        show: makes the text to print of what the function returns; None prints nothing.
        piped: makes the text where standard output is no terminal, if it differs: scripts read it.
        document: makes JSON values of it, which ``--json`` prints instead; without it, there is no such flag.
        resume: how the user resumes after Ctrl-C.
        needs_torch: whether to check first that torch, TorchRec and FBGEMM belong together.
        records: whether the job's folder keeps the flags, to repeat it with ``--config``; else the job consists of
            several, of which these flags would say nothing.
        spaces: search spaces that ``--space`` names. The one that is chosen gives the flags of its fields their
            defaults.
        unlisted: names of flags that the help leaves out, because they are settings of another job that shares a
            dataclass with this one. A file of settings may hold them.
        aliases: other names of flags on the command line, and the names that they stand for.
    """

    function: Callable[..., Any]
    example: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    show: Callable[[Any], str] | None = None
    piped: Callable[[Any], str] | None = None
    document: Callable[[Any], Any] | None = None
    resume: str = "run the same command again to start over"
    needs_torch: bool = True
    records: bool = True
    spaces: Mapping[str, SearchSpace] = field(default_factory=dict)
    unlisted: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> list[Flag]:
        """The flags of this program, without those that every program has."""
        flags = flags_of(self.function, self.groups)
        if not self.spaces:
            return flags
        group = next(flag.group for flag in flags if flag.name == "num_blocks")
        text = "search space that gives the other flags of this group their defaults"
        return [*flags, Flag(_SPACE, Literal[tuple(self.spaces)], True, None, text, group)]

    @property
    def summary(self) -> str:
        """The first sentence of the program's description."""
        return summary_of(self.function).split("\n\n")[0].partition(". ")[0].rstrip(".")

    def main(self, name: str, words: Sequence[str]) -> None:
        """Parses a command line and does the job; wrong input ends in a one-line error and exit code 2.

        Args:
            name: name by which the user calls the program.
            words: words of the command line without the program's name.
        """
        flags = [*self.flags, *SHARED_FLAGS, *([_JSON] if self.document else [])]
        parser = self._parser(name, flags)
        try:
            given = normalized(words, flags, _PARSERS_OWN, self.aliases)
            parsed = parser.parse_args(given)
            if chosen := self.spaces.get(vars(parsed).get(_SPACE)):
                # Now that it is known, on the command line or in a file, what is not given comes from it.
                flags = [replace(flag, default=getattr(chosen, flag.name, flag.default)) for flag in flags]
                parser = self._parser(name, flags)
                parsed = parser.parse_args(given)
        except ValueError as error:
            parser.error(str(error))
        values = vars(parsed)
        values.pop("config")
        as_document = self.document is not None and values.pop(_JSON.name)
        quiet_libraries()
        try:
            with _prints_on_standard_error() if as_document else nullcontext():
                result = self._call(flags, values, parser.dump(parsed), shlex.join([*name.split(), *words]))
            for_people = self.show if self.piped is None or sys.stdout.isatty() else self.piped
            show = self._as_document if as_document else for_people
            if result is not None and show is not None:
                print(show(result), flush=True)
        except ValueError as error:
            fail(str(error))
        except LostRankError as error:
            fail(f"{error}; {self.resume}", code=1)
        except OSError as error:  # a full disk, a folder that must not be read
            where = f"{error.filename}: " if error.filename else ""
            fail(where + (error.strerror or str(error)))
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                print(f"\ninterrupted; {self.resume}", file=sys.stderr)
            sys.exit(INTERRUPTED)

    def _as_document(self, result: Any) -> str:
        assert self.document is not None
        return as_json(self.document(result))

    def _call(self, flags: Sequence[Flag], values: dict[str, Any], settings: str, command: str) -> Any:
        if self.needs_torch:
            importlib.import_module("nasrec_torchrec.environment").require()
            # The process is ours, unlike in a notebook: a background reader of rows then starts at once in each epoch.
            multiprocessing.set_forkserver_preload(["nasrec_torchrec.datasets.reader"])
        from nasrec_torchrec.runs.paths import register_handlers, to_path
        from nasrec_torchrec.runs.record import COMMAND

        if handlers := values.pop("path_handlers"):
            register_handlers(handlers)
        COMMAND.plugins = tuple(values.pop("plugins"))
        for plugin in COMMAND.plugins:
            _import(plugin)
        for flag in flags:
            if flag.kind is Path and values[flag.name] is not None:
                values[flag.name] = to_path(values[flag.name])
            elif flag.element is Path:
                values[flag.name] = tuple(map(to_path, values[flag.name]))
        arguments: dict[str, Any] = {}
        for name, kind in dataclasses_of(self.function).items():
            arguments[name] = kind(**{field: values.pop(field) for field in inspect.signature(kind).parameters})
        if self.spaces:
            values.pop(_SPACE)
        arguments |= values
        positional = [arguments.pop(flag.name) for flag in flags if flag.positional]
        COMMAND.text, COMMAND.config = command, settings if self.records else ""
        try:
            return self.function(*positional, **arguments)
        finally:
            COMMAND.text, COMMAND.config, COMMAND.plugins = "", "", ()

    def _parser(self, name: str, flags: Sequence[Flag]) -> "_Parser":
        required = [flag.metavar if flag.positional else f"--{flag.name} {flag.metavar}" for flag in _required(flags)]
        parser = _Parser(
            prog=name,
            usage=" ".join([name, *required, "[flags]"]),
            description=summary_of(self.function),
            epilog=f"Example:\n  {self.example}" if self.example else None,
            version=__version__,
        )
        parser.flags = {flag.name: flag for flag in flags}
        groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(flag.group for flag in flags)}
        for flag in flags:
            text = SUPPRESS if flag.name in self.unlisted else flag.described.replace("%", "%%")
            options = {"type": _parsed_type(flag), "help": text, "metavar": flag.metavar}
            if not flag.positional:
                options |= {"required": True} if flag.required else {"default": _parsed_default(flag)}
            elif not flag.required:
                options |= {"nargs": "?", "default": _parsed_default(flag)}
            groups[flag.group].add_argument(flag.name if flag.positional else f"--{flag.name}", **options)
        groups[_EVERY].add_argument(
            "--config", action="config", metavar="PATH", help="YAML file with any of these flags"
        )
        return parser


def run(function: Callable[..., Any]) -> None:
    """Runs a function as a program with this process's command line; scripts such as benchmarks use it.

    Args:
        function: function that becomes a program as in :class:`Program`.
    """
    Program(function).main(Path(sys.argv[0]).name, sys.argv[1:])


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with a one-line error and an exit code; wrong input has 2."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def as_json(result: Any) -> str:
    """The text that programs print whose result other programs read."""
    return json_text(result)


@contextmanager
def _prints_on_standard_error() -> Iterator[None]:
    """Sends what a job, its libraries and its processes print to standard error: the other is for the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def quiet_libraries() -> None:
    """Silences warnings of TorchRec and torch.distributed that a user cannot act upon."""
    for name in ("torchrec", "torch.fx", "torch.distributed", "jsonargparse"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|torchmetrics|fbgemm_gpu|copyreg)(\..*)?$")
    warnings.filterwarnings("ignore", message=r".*(ShardedTensor|LeafSpec).*")


class _Parser(ArgumentParser):
    """jsonargparse's parser with messages that need no knowledge of Python."""

    flags: Mapping[str, Flag]

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{self._explained(message)} (see {self.prog} --help)")

    def _explained(self, message: str) -> str:
        message = " ".join(message.split())
        if found := re.match(r'Parser key "(\w+)": .*(?:[Gg]ot|Given) value: (.*)$', message):
            name, value = found.groups()
            if name in self.flags:
                flag = self.flags[name]
                choices = flag.expected.removeprefix("one of ").split(", ")
                return f"--{name}: expected {flag.expected}, found {value!r}{nearest(value, choices)}"
        if found := re.search(r"Option '(\w+)' is not accepted", message):
            return f"config: there is no flag {found[1]}{nearest(found[1], self.flags)}"
        if found := re.match(r'(?:Key|Parser key) "(\w+)" is required', message):
            return f"--{found[1]}: is required"
        return message


class _Formatter(RawDescriptionHelpFormatter):
    """Wraps paragraphs to the width of the terminal; examples stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(120, _columns()))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n" in p else textwrap.fill(p, width) for p in paragraphs)


def _columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 100


def _required(flags: Sequence[Flag]) -> list[Flag]:
    return [flag for flag in flags if flag.required]


def _parsed_type(flag: Flag) -> Any:
    """Returns the type for jsonargparse; paths stay text until the job runs."""
    kind = str if flag.kind is Path else tuple[str, ...] if flag.element is Path else flag.kind
    return kind | None if flag.optional else kind


def _parsed_default(flag: Flag) -> Any:
    if flag.element is Path:
        return tuple(map(str, flag.default))
    return str(flag.default) if isinstance(flag.default, Path) else flag.default


def _import(plugin: str) -> None:
    # Unlike `python -m`, `nasrec` does not search the current folder by itself.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(plugin)
    except ImportError as error:
        raise ValueError(f"plugins: the module {plugin!r} cannot be imported: {error}") from None
