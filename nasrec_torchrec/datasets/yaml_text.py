"""YAML 1.2, in which ``yes`` and ``no`` are words: labels are called so."""

import re
from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        ValueError: If it is no YAML.
    """
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


class _Yaml(yaml.SafeLoader):
    pass


_Yaml.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
