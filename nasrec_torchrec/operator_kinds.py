"""What an operator reads and emits, as far as architectures care: names and connections, no computation."""

from dataclasses import dataclass
from typing import Literal, get_args

Side = Literal["dense", "sparse"]
Reads = Literal["dense", "operands", "tokens"]


@dataclass(frozen=True)
class OperatorKind:
    """An operator of a choice block.

    Args:
        side: of its output: ``dense`` columns or ``sparse`` tokens.
        reads: ``dense`` inputs, the two binary ``operands``, ``tokens``. Sparse operators read tokens alone.
        caption: a few letters for drawings.
    """

    side: Side
    reads: tuple[Reads, ...]
    caption: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))
        unknown = [name for name in self.reads if name not in get_args(Reads)]
        if self.side not in get_args(Side) or unknown or not self.reads:
            raise ValueError(
                f"expected a side of {list(get_args(Side))} that reads some of {list(get_args(Reads))}, "
                f"found {self.side!r} that reads {list(self.reads)}"
            )
        if self.side == "sparse" and self.reads != ("tokens",):
            raise ValueError(f"a sparse operator reads tokens, found one that reads {list(self.reads)}")


# The paper's; others are added by nasrec_torchrec.modules.registry.register_operator.
KINDS: dict[str, OperatorKind] = {
    "fully_connected": OperatorKind("dense", ("dense",), "FC"),
    "dot_product": OperatorKind("dense", ("dense", "tokens"), "DP"),
    "sigmoid_gating": OperatorKind("dense", ("operands",), "SG"),
    "sum": OperatorKind("dense", ("operands",), "Sum"),
    "embedded_fully_connected": OperatorKind("sparse", ("tokens",), "EFC"),
    "attention": OperatorKind("sparse", ("tokens",), "AT"),
}


def names_of(side: Side) -> tuple[str, ...]:
    """All operators of a side."""
    return tuple(name for name, kind in KINDS.items() if kind.side == side)
