"""What an architecture costs: multiply-adds per example and parameters, per module."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.datasets.utils import Batch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.modules.interaction_arch import InteractionArch


@dataclass(frozen=True)
class Cost:
    """Cost of the interaction part; embedding tables cost look-ups, not multiply-adds.

    Args:
        multiply_adds: per example, in matrix products, those of attention included. Half of PyTorch's FLOP count.
        parameters: of the interaction part.
        by_module: ``(multiply-adds, parameters)`` of every module, by its path.
    """

    multiply_adds: int
    parameters: int
    by_module: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Limits:
    """What a candidate may cost; None is without limit.

    Args:
        max_flops: per example in the interaction part, two for a multiply-add.
        max_parameters: of the interaction part.
    """

    max_flops: int | None = None
    max_parameters: int | None = None

    def allow(self, multiply_adds: int, parameters: int) -> bool:
        """Whether a cost is within the limits."""
        return (self.max_flops is None or 2 * multiply_adds <= self.max_flops) and (
            self.max_parameters is None or parameters <= self.max_parameters
        )


def cost(
    architecture: Architecture, dense_in_features: int, num_tokens: int, embedding_dim: int, use_layernorm: bool = False
) -> Cost:
    """Counts with ``torch.utils.flop_counter`` on the meta device: nothing is computed.

    Args:
        architecture: what to count.
        dense_in_features: columns of the dense features.
        num_tokens: sparse features.
        embedding_dim: width of a pooled embedding.
        use_layernorm: as in :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.
    """
    meta = torch.device("meta")
    arch = InteractionArch(architecture, dense_in_features, num_tokens, embedding_dim, use_layernorm, device=meta)
    dense = torch.empty(1, dense_in_features, device=meta)
    tokens = torch.empty(1, num_tokens, embedding_dim, device=meta)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        arch(dense, tokens)
    counts = counter.get_flop_counts()
    prefix = type(arch).__name__
    by_module = {
        path: (
            sum(counts.get(f"{prefix}.{path}", {}).values()) // 2,
            sum(parameter.numel() for parameter in module.parameters()),
        )
        for path, module in arch.named_modules()
        if path
    }
    parameters = sum(parameter.numel() for parameter in arch.parameters())
    return Cost(counter.get_total_flops() // 2, parameters, by_module)


@torch.no_grad()
def model_multiply_adds(model: nn.Module, batch: Batch) -> int:
    """Multiply-adds per example of any click model, counted on a batch."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(batch.dense_features, batch.sparse_features)
    return counter.get_total_flops() // 2 // batch.dense_features.shape[0]
