"""Fine-tuning of a candidate's last layer (NASRec, section 4.2), whose inputs are computed once per candidate.

The steps themselves cost little: what fine-tuning costs is the forward pass over its rows. A last layer is a logistic
regression, but Newton's method orders candidates worse on as many rows (see docs/search.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nasrec_torchrec.distributed.gather import sum_over_ranks
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.rows import FinetuningRows
from nasrec_torchrec.search.sharing import SharedFeatures
from nasrec_torchrec.training.schedules import cosine_with_warmup

# Up to this many bytes, the features of the fine-tuning rows are computed once and kept; beyond it, in every step.
FEATURES_KEPT = 2 << 30

Layer = tuple[Tensor, Tensor]


@torch.no_grad()
def finetune_last_layers(
    subnets: Sequence[InteractionArch], rows: FinetuningRows | None, config: EvaluationConfig
) -> list[Layer]:
    """Trains copies of the final linear layers on the fine-tuning rows. This call is collective.

    Args:
        subnets: subnets of the candidates.
        rows: rows to train on; None leaves the layers as they are in the supernet.
        config: configuration of the fine-tuning.

    Returns:
        Weight ``(features,)`` and bias ``(1,)`` of each.
    """
    layers = [_stored(subnet) for subnet in subnets]
    if rows is None:
        return layers
    found: list[Layer] = []
    while len(found) < len(subnets):
        first = last = len(found)
        size = 0
        while last < len(subnets) and size + (size_of := len(rows.cached) * layers[last][0].nbytes) <= FEATURES_KEPT:
            size, last = size + size_of, last + 1
        if first == last:
            found.append(_adagrad_steps(subnets[first], None, layers[first], rows, config))
            continue
        kept: list[list[Tensor]] = [[] for _ in range(first, last)]
        shared = SharedFeatures(subnets[first:last])
        for dense, embedded in rows.cached.chunks(config.pass_rows):
            for parts, features in zip(kept, shared(dense, embedded), strict=True):
                parts.append(features)
        for index, parts in enumerate(kept, start=first):
            layer = layers[index]
            features = torch.cat(parts) if parts else layer[0].new_empty(0, layer[0].numel())
            parts.clear()
            found.append(_adagrad_steps(subnets[index], features, layer, rows, config))
    return found


def _stored(subnet: InteractionArch) -> Layer:
    last = subnet.over_arch
    assert last.bias is not None
    weights: list[Tensor] = [last.weight(source) for source in last.in_features]
    return torch.cat(weights, dim=1).flatten().clone(), last.bias.detach().clone()


def _adagrad_steps(
    subnet: InteractionArch, features: Tensor | None, layer: Layer, rows: FinetuningRows, config: EvaluationConfig
) -> Layer:
    """Takes the paper's steps on features of the rows, or on features that every step computes."""
    weight, bias = layer
    cached = rows.cached
    optimizer = torch.optim.Adagrad([weight, bias], lr=config.finetune_learning_rate, eps=1e-2)
    for step, selected in enumerate(rows.steps):
        optimizer.param_groups[0]["lr"] = cosine_with_warmup(step, len(rows.steps), config.finetune_learning_rate)
        batch = torch.cat(subnet.features(*cached.select(selected)), dim=1) if features is None else features[selected]
        # d loss / d logit is computed by hand, since a graph would cost more than the products.
        error = (
            torch.sigmoid(batch @ weight + (bias + rows.log_odds_added)) - cached.labels[selected]
        ) / config.finetune_batch_size
        if cached.weights is not None:
            error = error * cached.weights[selected]
        gradient = sum_over_ranks(torch.cat([error @ batch, error.sum().reshape(1)]))
        weight.grad, bias.grad = gradient[:-1], gradient[-1:]
        optimizer.step()
    return weight, bias
