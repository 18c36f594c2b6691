"""What each operator reads and produces. This module has names and connections, but no computation."""

from dataclasses import dataclass
from typing import Literal, get_args

Side = Literal["dense", "sparse"]
Reads = Literal["dense", "operands", "tokens"]


@dataclass(frozen=True)
class OperatorKind:
    """The kind of an operator in a choice block.

    Args:
        side: What the operator produces: ``dense`` columns or ``sparse`` tokens.
        reads: What the operator reads: the ``dense`` inputs, the two binary ``operands``, or ``tokens``. Sparse
            operators only read tokens.
        caption: A few letters that stand for the operator in drawings.
        activated: Whether its output passes the activation that the block chooses.

    Raises:
        ValueError: If a side or something to read is unknown, or if a sparse operator reads anything but tokens.
    """

    side: Side
    reads: tuple[Reads, ...]
    caption: str
    activated: bool = False

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


# The operators of the paper, then those of later models. nasrec_torchrec.modules.registry.register_operator adds
# others.
KINDS: dict[str, OperatorKind] = {
    "fully_connected": OperatorKind("dense", ("dense",), "FC", activated=True),
    "dot_product": OperatorKind("dense", ("dense", "tokens"), "DP"),
    "sigmoid_gating": OperatorKind("dense", ("operands",), "SG"),
    "sum": OperatorKind("dense", ("operands",), "Sum"),
    "embedded_fully_connected": OperatorKind("sparse", ("tokens",), "EFC", activated=True),
    "attention": OperatorKind("sparse", ("tokens",), "AT"),
    "flatten": OperatorKind("dense", ("dense", "tokens"), "Flat"),
    "low_rank_cross": OperatorKind("dense", ("operands",), "Cross"),
    "gated_cross": OperatorKind("dense", ("operands",), "GCross"),
    "factorized_interaction": OperatorKind("dense", ("dense",), "FI", activated=True),
    "instance_mask": OperatorKind("dense", ("operands",), "Mask", activated=True),
    "squeeze_excitation": OperatorKind("sparse", ("tokens",), "SE"),
    "compressed_fm": OperatorKind("sparse", ("tokens",), "CFM"),
    "token_mixing": OperatorKind("sparse", ("tokens",), "Mix"),
    "wide_attention": OperatorKind("sparse", ("tokens",), "WAT"),
}


def names_of(side: Side) -> tuple[str, ...]:
    """Lists the operators that produce one side.

    Args:
        side: ``dense`` or ``sparse``.

    Returns:
        The names of the operators, in the order in which they were registered.
    """
    return tuple(name for name, kind in KINDS.items() if kind.side == side)
