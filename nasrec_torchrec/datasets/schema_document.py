"""The text of a schema: JSON or YAML, of this format or an earlier one."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from nasrec_torchrec.datasets.config import SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.labels import Task

FORMAT = "nasrec-torchrec/schema/3"
# This version lacks reading rules, for which the defaults apply, and fractions of missing values, which are not known.
_EARLIER = "nasrec-torchrec/schema/2"


def arguments_of(text: str, schema: type) -> dict[str, Any]:
    """Reads the arguments of a schema.

    Args:
        text: JSON or YAML.
        schema: the class whose fields are the keys.

    Raises:
        ValueError: If a key is missing, unknown or wrong. The message names it.
    """
    try:
        document = _document(text)
    except RecursionError:
        raise ValueError("schema: nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"schema: expected an object with the keys {_keys(schema)}, found {type(document).__name__}")
    found = document.pop("format", FORMAT)
    if found not in (FORMAT, _EARLIER):
        raise ValueError(f"schema: expected the format '{FORMAT}' or '{_EARLIER}', found {found!r}")
    _check_keys(document, schema, "schema")
    if "text" in document:
        document["text"] = _object(document["text"], TextFormat, "schema: text")
    if document.get("split") is not None:
        document["split"] = _object(document["split"], SplitConfig, "schema: split")
    dense = [
        entry if isinstance(entry, str) else _feature(entry, DenseFeature)
        for entry in _list_of(document, "dense", (dict, str))
    ]
    sparse = [_feature(entry, SparseFeature) for entry in _list_of(document, "sparse", (dict,))]
    tasks = [_task(entry) for entry in _list_of(document, "tasks", (dict, str))]
    return {**document, "dense": tuple(dense), "sparse": tuple(sparse), "tasks": tuple(tasks)}


def _object(entry: Any, kind: type, where: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object with the keys {_keys(kind)}")
    _check_keys(entry, kind, where)
    return kind(**entry)


def _list_of(document: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> list[Any]:
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, kinds) for entry in entries):
        raise ValueError(f"schema: {key}: expected a list of {'objects' if str not in kinds else 'names or objects'}")
    return entries


def _feature(entry: Mapping[str, Any], kind: type) -> Any:
    return _object(entry, kind, f"schema: feature {entry.get('name')!r}")


def _task(entry: Mapping[str, Any] | str) -> Task:
    return Task(entry) if isinstance(entry, str) else _object(entry, Task, f"schema: task {entry.get('name')!r}")


def _keys(kind: type) -> list[str]:
    return [entry.name for entry in fields(kind)]


def _check_keys(entry: Mapping[str, Any], kind: type, where: str) -> None:
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if not required <= set(entry) or not set(entry) <= set(_keys(kind)):
        raise ValueError(
            f"{where}: expected the keys {_keys(kind)}, of which {sorted(required)} must be there, "
            f"found {sorted(map(str, entry))}"
        )


def _document(text: str) -> Any:
    try:
        # Not all JSON is YAML: PyYAML takes 1e+30 for text.
        return json.loads(text)
    except json.JSONDecodeError:
        # Only here, so that the schema of a package, which is JSON, can be read without PyYAML.
        from nasrec_torchrec.datasets.yaml_text import read_yaml

        try:
            return read_yaml(text)
        except ValueError as error:
            raise ValueError(f"schema: neither JSON nor YAML: {error}") from None
