"""Names of users become columns, modules and files: what is allowed, and how they are mapped, is said here alone."""

import re
from collections.abc import Iterable
from typing import Any

# Columns that preparation adds to rows on their way begin like this.
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
        name: as the user gave it.
        what: it names, for the error.

    Raises:
        ValueError: for a name that is no text, empty, too long, or that only preparation may use.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what}: expected a non-empty name, found {name!r}")
    if len(name.encode(errors="replace")) > _LONGEST:
        raise ValueError(f"{what}: expected a name of at most {_LONGEST} bytes, found {name[:40]!r}...")
    if name.startswith(INTERNAL):
        raise ValueError(f"{what}: names that begin with {INTERNAL!r} are reserved, found {name!r}")
    if "\x00" in name or "\n" in name or "\r" in name or not _is_utf8(name):
        raise ValueError(f"{what}: expected a name of printable characters, found {name!r}")


def check_column(name: Any, what: str) -> None:
    """As :func:`check_name`, for a column of prepared data.

    Raises:
        ValueError: also for a name that Parquet readers take for a path into a nested column.
    """
    check_name(name, what)
    if "." in name:
        raise ValueError(f"{what}: expected a non-empty name without '.', found {name!r}")


def safe_name(name: str) -> str:
    """The name under which a table is a module of the model and a file of the data set.

    Dots, separators and the like become ``_``, and a name that PyTorch's containers use themselves, such as ``items``,
    gets ``t_`` in front. All other names stay as they are.
    """
    mapped = _SPECIAL.sub("_", name)
    return f"t_{mapped}" if mapped.startswith("_") or mapped in _ATTRIBUTES else mapped


def check_distinct(names: Iterable[str], what: str) -> None:
    """Checks that :func:`safe_name` keeps names apart.

    Raises:
        ValueError: says which two would become one.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(safe_name(name), name)
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} would both be named {safe_name(name)!r}; rename one")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
