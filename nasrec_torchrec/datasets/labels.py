"""How values become labels: the rule of the label that everything is judged by, and further labels beside it."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from nasrec_torchrec.datasets.names import check_column, check_name


class LabelRule(Protocol):
    """How the values of a column become 0 and 1; without a threshold or values, they are 0 and 1 already."""

    @property
    def label_above(self) -> float | None:
        """Threshold above which a number is 1."""

    @property
    def label_values(self) -> tuple[tuple[str, int], ...]:
        """Meaning of each value."""


@dataclass(frozen=True)
class Task:
    """A further label, such as the purchase after a click, which a model predicts besides the label.

    A row without a value says nothing about the task: it takes no part in its loss and its metrics.

    Args:
        name: name of the task, and of its column in prepared data.
        column: raw column that it is read from, if that has another name.
        label_above: threshold above which a number is 1.
        label_values: meaning of each value, 1 or 0.
        loss_weight: weight of its loss in the sum that is trained on, where that of the label has weight 1.

    Raises:
        ValueError: If a name is not allowed, both rules are given, or the weight is not a positive number.
    """

    name: str
    column: str = ""
    label_above: float | None = None
    label_values: tuple[tuple[str, int], ...] = ()
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        check_column(self.name, "schema: tasks: name")
        if self.column:
            check_name(self.column, f"{self.name}: column")
        object.__setattr__(self, "label_values", check_rule(self, self.name))
        weight = self.loss_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"{self.name}: loss_weight: expected a number above 0, found {weight!r}")

    @property
    def raw_column(self) -> str:
        """The raw column that it is read from."""
        return self.column or self.name

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What the values of its prepared column mean, whatever its weight in training."""
        return self.name, self.raw_column, self.label_above, self.label_values


def check_rule(rule: LabelRule, where: str) -> tuple[tuple[str, int], ...]:
    """Checks a rule.

    Args:
        rule: rule whose values may still be a mapping.
        where: what the rule belongs to, for error messages.

    Returns:
        Its values as sorted pairs.

    Raises:
        ValueError: If a part of it is wrong, or both a threshold and values are given.
    """
    found = _pairs(rule.label_values, where)
    if found and rule.label_above is not None:
        raise ValueError(f"{where}: label_above and label_values: expected one of them, found both")
    if rule.label_above is not None and not isinstance(rule.label_above, (int, float)):
        raise ValueError(f"{where}: label_above: expected a number, found {rule.label_above!r}")
    return found


def _pairs(given: Any, where: str) -> tuple[tuple[str, int], ...]:
    """Returns a mapping, or the pairs that are made of one."""
    try:
        pairs = [(_word(key), value) for key, value in (given.items() if isinstance(given, dict) else given)]
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: label_values: expected an object such as {{yes: 1, no: 0}}, found {given!r}"
        ) from None
    wrong = [value for _, value in pairs if isinstance(value, bool) or value not in (0, 1)]
    if wrong or (pairs and {value for _, value in pairs} != {0, 1}):
        raise ValueError(f"{where}: label_values: expected a value for 0 and one for 1, found {dict(pairs)}")
    return tuple(sorted(pairs))


def _word(key: Any) -> str:
    """Returns the text that a value has in :mod:`~nasrec_torchrec.datasets.values`."""
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)
