"""The inputs of a run, in a form that a later start can compare with its own."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Fingerprint = dict[str, Any]
_SHOWN = 60


def fingerprint(**inputs: Any) -> Fingerprint:
    """Returns the inputs of a run by name, as JSON values.

    Mappings are flattened (``settings={"seed": 0}`` becomes ``settings.seed``), so that a difference is named exactly.

    Args:
        inputs: values that ``json`` can write; pass the digest of a long one (a schema, an architecture), see
            :func:`digest`.
    """
    flat: Fingerprint = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in fingerprint(**value).items()}
        else:
            flat[name] = json.loads(json.dumps(value))
    return flat


def digest(value: Any) -> str:
    """Returns a short checksum of a JSON value, or of bytes or text."""
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()[:16]


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each difference between two fingerprints; none if they are equal."""
    nothing = object()
    return [
        f"{name}: {_shown(theirs[name]) if name in theirs else 'nothing'} there, "
        f"{_shown(mine[name]) if name in mine else 'nothing'} here"
        for name in dict.fromkeys([*mine, *theirs])
        if theirs.get(name, nothing) != mine.get(name, nothing)
    ]


def require_same(where: Path | str, theirs: Any, mine: Mapping[str, Any], remedy: str) -> None:
    """Checks that a folder is resumed with the inputs that it was started with.

    Args:
        where: folder, for the message.
        theirs: recorded fingerprint; anything but a mapping counts as none.
        mine: fingerprint of this start.
        remedy: what the user can do, for the message.

    Raises:
        ValueError: If they differ; the message names every difference.
    """
    if not isinstance(theirs, Mapping):
        raise ValueError(f"{where}: does not say what it was made of, an earlier version wrote it; {remedy}")
    if found := differences(theirs, mine):
        raise ValueError(f"{where}: was made of other inputs ({'; '.join(found)}); {remedy}")


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """Returns digests of the sources of modules and packages, such as a user's plugins, by name."""
    found = {}
    for name in modules:
        spec = importlib.util.find_spec(name)
        folders: Sequence[str] = (spec and spec.submodule_search_locations) or ()
        files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
        if not files and spec is not None and spec.origin is not None:
            files = [Path(spec.origin)]
        found[name] = digest([[file.name, digest(file.read_bytes())] for file in files if file.is_file()])
    return found


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
