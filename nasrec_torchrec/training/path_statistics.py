"""Counts of how often a supernet drew each choice."""

from collections import Counter
from typing import Any

from nasrec_torchrec.architecture import Architecture

_CHOICES = (
    *("dense_operators", "sparse_operators", "dense_width", "sparse_width"),
    *("dense_inputs", "sparse_inputs", "left_inputs", "right_inputs", "dense_to_sparse", "sparse_to_dense"),
)


class PathStatistics:
    """Counts the choices of every path, block by block."""

    def __init__(self) -> None:
        self.paths = 0
        self._counts: list[dict[str, Counter[str]]] = []

    def add(self, architecture: Architecture) -> None:
        """Adds the path of one training step."""
        self.paths += 1
        while len(self._counts) < len(architecture.blocks):
            self._counts.append({choice: Counter() for choice in _CHOICES})
        for block, counts in zip(architecture.blocks, self._counts, strict=True):
            for choice in _CHOICES:
                counter, value = counts[choice], getattr(block, choice)
                counter.update(map(str, value if isinstance(value, tuple) else (value,)))
            if block.special:  # otherwise the document is what it was before there were such choices
                counts.setdefault("special", Counter()).update(block.special)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts by block, choice and value. Every member of a list of operators or inputs counts."""
        return {"paths": self.paths, "blocks": [{name: dict(c) for name, c in block.items()} for block in self._counts]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "PathStatistics":
        """Resumes counting from what :meth:`to_json` returned."""
        result = cls()
        result.paths = document["paths"]
        result._counts = [{name: Counter(c) for name, c in block.items()} for block in document["blocks"]]
        return result
