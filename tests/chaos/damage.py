"""Structure-aware damage: documents of which some places hold something else."""

import copy
from typing import Any

from chaos.budget import EXAMPLES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzzed = settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "0", "nan", "../x", "\x00", 10**400]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def _places(document: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in a JSON document."""
    inner: list[tuple[Any, ...]] = []
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        inner.append((*place, key))
        if isinstance(value, dict | list):
            inner += _places(value, (*place, key))
    return inner


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one to three places hold something else, or nothing."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        holder = document
        for key in path:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "remove", "double", "add"]))
        if change == "replace":
            holder[last] = draw(values)
        elif change == "remove":
            del holder[last]
        elif change == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = draw(values)
    return document
