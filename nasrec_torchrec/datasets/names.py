"""The rules for names that users choose: which are allowed, and how they map to columns, modules and files."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# Prefix of columns that preparation adds to rows temporarily.
INTERNAL = "//"
# The file systems in use allow 255 bytes, of which an ending and a temporary name take some.
_LONGEST = 200
_SPECIAL = re.compile(r'[\x00-\x1f\x7f./\\:*?"<>|]')
# What ``nn.ModuleDict``, which holds the tables by name, has itself; a test compares it with the installed PyTorch.
_ATTRIBUTES = frozenset(
    (
        *("T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear"),
        *("compile", "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer"),
        *("get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "items", "keys", "load_state_dict"),
        *("modules", "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters"),
        *("pop", "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook"),
        *("register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook"),
        *("register_load_state_dict_pre_hook", "register_module", "register_parameter"),
        *("register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_", "set_extra_state"),
        *("set_submodule", "share_memory", "state_dict", "to", "to_empty", "train", "training", "type", "update"),
        *("values", "xpu", "zero_grad"),
    )
)


def check_name(name: Any, what: str) -> None:
    """Checks the name of a column or a table.

    Args:
        name: name that the user gave.
        what: what it names, for error messages.

    Raises:
        ValueError: If the name is not text, is empty or too long, or is reserved for preparation.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what}: expected a non-empty name, found {name!r}")
    if len(name.encode(errors="replace")) > _LONGEST:
        raise ValueError(f"{what}: expected a name of at most {_LONGEST} bytes, found {name[:40]!r}...")
    if name.startswith(INTERNAL):
        raise ValueError(f"{what}: names that begin with {INTERNAL!r} are reserved, found {name!r}")
    if not _is_utf8(name) or any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError(f"{what}: expected a name of printable characters, found {name!r}")


def check_column(name: Any, what: str) -> None:
    """Checks the name of a column of prepared data; see :func:`check_name`.

    Raises:
        ValueError: Also if Parquet readers would take the name for a path into a nested column.
    """
    check_name(name, what)
    if "." in name:
        raise ValueError(f"{what}: expected a non-empty name without '.', found {name!r}")


def safe_name(name: str) -> str:
    """Returns the name of a table as a module of the model and as a file of the data set.

    Dots, separators and similar characters become ``_``, and a name that PyTorch's containers use themselves, such as
    ``items``, gets the prefix ``t_``. All other names stay as they are.
    """
    mapped = _SPECIAL.sub("_", name)
    return f"t_{mapped}" if mapped.startswith("_") or mapped in _ATTRIBUTES else mapped


def check_distinct(names: Iterable[str], what: str) -> None:
    """Checks that :func:`safe_name` keeps names distinct.

    Raises:
        ValueError: If two names would become the same. The message names both.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(safe_name(name), name)
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} would both be named {safe_name(name)!r}; rename one")


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object whose members are no objects: ``{"user.id": 5}`` for ``{"user": {"id": 5}}``."""
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        else:
            found[key] = value
    return found


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
