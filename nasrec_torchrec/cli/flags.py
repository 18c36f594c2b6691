"""Makes flags from a function: from its parameters, and from the fields of those that are dataclasses."""

import functools
import inspect
import json
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring

from nasrec_torchrec.messages import nearest

_NO_DEFAULT = inspect.Parameter.empty
_NAMES = {str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false", Path: "PATH", dict: "JSON"}
# The sentence by which a docstring leaves arguments to that of another function or class.
_ELSEWHERE = re.compile(r"The other\s+arguments\s+are\s+those\s+of\s+:\w+:`~?([\w.]+)\.(\w+)`\.")
_EXPECTED = {str: "text", int: "an integer", float: "a number", bool: "true or false", Path: "a path", dict: "JSON"}


@dataclass(frozen=True)
class Flag:
    """One flag of a command line, or an argument without a name.

    Args:
        name: name as in Python, with underscores.
        kind: type of the value, without the None of an optional one.
        optional: whether the value may be ``null``.
        default: value if the flag is not given.
        help: description of the flag, from the docstring.
        group: title under which the help lists it.
        positional: whether it is an argument without a name.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    help: str
    group: str
    positional: bool = False

    @property
    def required(self) -> bool:
        return self.default is _NO_DEFAULT

    @property
    def element(self) -> Any:
        """The type of an entry if the value is a list, otherwise None."""
        return get_args(self.kind)[0] if get_origin(self.kind) in (tuple, list) else None

    @property
    def metavar(self) -> str:
        """The type as the help shows it."""
        if self.element is not None:
            name = _plain(self.element, _NAMES)
            return f"{name},..." if "|" not in name else f"{{{name}}},..."
        return _plain(self.kind, _NAMES)

    @property
    def expected(self) -> str:
        """The type as an error message names it."""
        if self.element is None:
            return _plain(self.kind, _EXPECTED)
        return f"a list such as a,b or [a, b], each {_plain(self.element, _EXPECTED)}"

    @property
    def described(self) -> str:
        """The help text, with the default."""
        if self.required:
            return self.help + ("" if self.positional else " (required)")
        if self.default is None or self.default in ((), [], {}):
            return self.help
        return f"{self.help} (default: {_shown(self.default)})"


def flags_of(function: Callable[..., Any], groups: Mapping[str, Sequence[str]] | None = None) -> list[Flag]:
    """Returns the flags of a function, in the order of its parameters.

    Args:
        function: function whose docstring describes the flags, as do those of dataclasses among its parameters.
        groups: titles of groups, and the names of the flags in each. Other flags of a dataclass form a group whose
            title is the first sentence of its docstring.

    Returns:
        One flag for each parameter, or for each field of a parameter that is a dataclass.
    """
    titles = {name: title for title, names in (groups or {}).items() for name in names}
    found: list[Flag] = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, optional = _without_none(parameter.annotation)
        if is_dataclass(kind) and isinstance(kind, type):
            title = re.split(r"[.;:](?:\s|$)", _text(kind))[0]
            found += _fields_of(kind, titles, title)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            text = _helps(function).get(name, "")
            group = titles.get(name, "Input and output")
            found.append(Flag(name, _scalar(kind), optional, parameter.default, text, group, positional))
    return found


def dataclasses_of(function: Callable[..., Any]) -> dict[str, type]:
    """Returns the parameters of a function that are dataclasses, and their types."""
    parameters = inspect.signature(function).parameters
    kinds = {name: _without_none(parameter.annotation)[0] for name, parameter in parameters.items()}
    return {name: kind for name, kind in kinds.items() if is_dataclass(kind) and isinstance(kind, type)}


def summary_of(documented: Any) -> str:
    """Returns the text of a docstring before its sections."""
    return _text(documented)


def normalized(
    words: Iterable[str], flags: Sequence[Flag], extra: Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[str]:
    """Rewrites a command line into the one form that the parser reads.

    Hyphens in names of flags become underscores, a bare ``--flag`` of a boolean becomes ``--flag=true``, and lists may
    be written as ``a,b``, mappings as ``a=1,b=2``.

    Args:
        words: words of the command line.
        flags: flags of the program.
        extra: names of the flags that every program has.
        aliases: other names of flags.

    Returns:
        Words to parse.

    Raises:
        ValueError: If a flag does not exist; the message suggests the nearest one.
    """
    known = {flag.name: flag for flag in flags if not flag.positional}
    given = list(words)
    found: list[str] = []
    for number, word in enumerate(given):
        if not re.match(r"--\w", word):
            before = found[-1][2:] if found and found[-1].startswith("--") else ""
            found.append(_listed(word, known[before]) if before in known else word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = (aliases or {}).get(name, name)
        if name not in known and name not in extra:
            raise ValueError(f"--{word[2:].partition('=')[0]}: no such flag{nearest(name, [*known, *extra], '--{}')}")
        following = given[number + 1] if number + 1 < len(given) else "--"
        if name in known and known[name].kind is bool and not equals and following.lower() not in ("true", "false"):
            equals, value = "=", "true"
        if name in known and equals:
            value = _listed(value, known[name])
        found.append(f"--{name}{equals}{value}")
    return found


def _fields_of(kind: type, titles: Mapping[str, str], title: str) -> list[Flag]:
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        helps |= _helps(base) if is_dataclass(base) else {}
    found = []
    for field in fields(kind):
        inner, optional = _without_none(field.type)
        default = field.default if field.default is not MISSING else _NO_DEFAULT
        if field.default_factory is not MISSING:
            default = field.default_factory()
        group = titles.get(field.name, title)
        found.append(Flag(field.name, _scalar(inner), optional, default, helps.get(field.name, ""), group))
    return found


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Returns the type without None, and whether None was in it."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    members = [member for member in get_args(kind) if member is not type(None)]
    return functools.reduce(operator.or_, members), len(members) < len(get_args(kind))


def _scalar(kind: Any) -> Any:
    """Reduces a union of types to the one that a command line can express, a path or text; a sequence is a tuple."""
    if get_origin(kind) in (tuple, Sequence):
        return tuple[_scalar(get_args(kind)[0]), ...]  # type: ignore[misc]
    if get_origin(kind) in (Union, types.UnionType):
        members = set(get_args(kind))
        return Path if members == {Path, str} else str
    return kind


def _plain(kind: Any, names: Mapping[Any, str]) -> str:
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return "|".join(choices) if names is _NAMES else f"one of {', '.join(choices)}"
    return names.get(get_origin(kind) or kind, names[str])


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if value in ("", ",") else str(value)


def _listed(value: str, flag: Flag) -> str:
    """Converts ``a,b`` to JSON if the flag is a list, and ``a=1,b=2`` if it is a mapping."""
    if get_origin(flag.kind) is dict and "=" in value and not value.strip().startswith("{"):
        pairs = [entry.strip().partition("=") for entry in value.split(",")]
        numbers = get_args(flag.kind)[1] in (int, float)
        return "{" + ", ".join(f"{json.dumps(key)}: {it if numbers else json.dumps(it)}" for key, _, it in pairs) + "}"
    if flag.element is None or value.strip().startswith(("[", "(")) or value == "null":
        return value
    entries = [entry.strip() for entry in value.split(",")] if value else []
    return f"[{', '.join(entries)}]" if flag.element in (int, float) else json.dumps(entries)


def _text(documented: Any) -> str:
    text, *_ = re.split(r"(?m)^(?:Args|Returns|Raises|Yields|Example):", inspect.getdoc(documented) or "")
    return "\n\n".join(_without_markup(paragraph) for paragraph in text.strip().split("\n\n"))


def _helps(documented: Any) -> dict[str, str]:
    """Returns what a docstring says of each argument; of those that it leaves to another one, what that one says."""
    text = inspect.getdoc(documented) or ""
    helps: dict[str, str] = {}
    for module, name in _ELSEWHERE.findall(text):
        helps |= _helps(getattr(import_module(module), name))
    parsed = parse_docstring(_ELSEWHERE.sub("", text))
    return helps | {entry.arg_name: _without_markup(entry.description or "") for entry in parsed.params}


def _without_markup(text: str) -> str:
    """Removes the markup around names and joins the lines."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`|``([^`]+)``", r"\1\2", text).split())
