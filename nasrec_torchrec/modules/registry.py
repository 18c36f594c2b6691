"""The registry of operators: which module computes which operator, and how to add one."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.compressed_fm import CompressedFM
from nasrec_torchrec.modules.dense_sum import DenseSum
from nasrec_torchrec.modules.dot_product import DotProduct
from nasrec_torchrec.modules.embedded_fully_connected import EmbeddedFullyConnected
from nasrec_torchrec.modules.factorized_interaction import FactorizedInteraction
from nasrec_torchrec.modules.flatten import Flatten
from nasrec_torchrec.modules.fully_connected import FullyConnected
from nasrec_torchrec.modules.gated_cross import GatedCross
from nasrec_torchrec.modules.instance_mask import InstanceMask
from nasrec_torchrec.modules.low_rank_cross import LowRankCross
from nasrec_torchrec.modules.operator import Operator
from nasrec_torchrec.modules.sigmoid_gating import SigmoidGating
from nasrec_torchrec.modules.squeeze_excitation import SqueezeExcitation
from nasrec_torchrec.modules.token_mixing import TokenMixing
from nasrec_torchrec.modules.wide_attention import WideAttention
from nasrec_torchrec.operator_kinds import KINDS, OperatorKind, Reads, Side

OPERATORS: dict[str, type[Operator]] = {
    "fully_connected": FullyConnected,
    "dot_product": DotProduct,
    "sigmoid_gating": SigmoidGating,
    "sum": DenseSum,
    "embedded_fully_connected": EmbeddedFullyConnected,
    "attention": Attention,
    "flatten": Flatten,
    "low_rank_cross": LowRankCross,
    "gated_cross": GatedCross,
    "factorized_interaction": FactorizedInteraction,
    "instance_mask": InstanceMask,
    "squeeze_excitation": SqueezeExcitation,
    "compressed_fm": CompressedFM,
    "token_mixing": TokenMixing,
    "wide_attention": WideAttention,
}

OperatorType = TypeVar("OperatorType", bound=type[Operator])


def register_operator(
    name: str, side: Side, reads: Sequence[Reads], caption: str | None = None, activated: bool = False
) -> Callable[[OperatorType], OperatorType]:
    """Creates a class decorator that registers an operator, so that search spaces and architectures can name it.

    Args:
        name: Name of the operator in architectures and search spaces. It must be a Python identifier.
        side: What the operator produces: ``dense`` or ``sparse``.
        reads: What the operator reads, see :class:`~nasrec_torchrec.operator_kinds.OperatorKind`.
        caption: A few letters for drawings. The default is the beginning of the name.
        activated: Whether it ends in ``activation(shape.activation, device)``, which the block chooses.

    Returns:
        The decorator.

    Raises:
        ValueError: If the name is taken or is not valid, or if the side and the inputs do not go together.

    For a complete operator, see ``docs/cross_layer.py``, whose ``class Cross(Operator)`` is decorated with
    ``@register_operator("cross", side="dense", reads=["operands"], caption="CN")``.
    """
    try:
        kind = OperatorKind(side, tuple(reads), caption or name[:4], activated)
    except ValueError as error:
        raise ValueError(f"operator {name!r}: {error}") from None
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"operator {name!r}: expected a Python identifier that is no method of torch.nn.ModuleDict")

    def register(operator: OperatorType) -> OperatorType:
        known = OPERATORS.get(name)
        # A module that is imported again, as notebooks do, replaces its operators.
        if known is not None and (known.__module__, known.__qualname__) != (operator.__module__, operator.__qualname__):
            raise ValueError(f"operator {name!r}: the name is taken by {known.__module__}.{known.__qualname__}")
        OPERATORS[name], KINDS[name] = operator, kind
        return operator

    return register
