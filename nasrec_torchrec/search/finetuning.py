"""Fine-tuning of a candidate's last layer (NASRec, section 4.2), whose inputs are computed once per candidate."""

import torch
from torch import Tensor

from nasrec_torchrec.distributed.gather import sum_over_ranks
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.rows import FinetuningRows
from nasrec_torchrec.training.schedules import cosine_with_warmup

# Up to this many bytes, the features of the fine-tuning rows are computed once and kept; beyond it, in every step.
FEATURES_KEPT = 2 << 30


@torch.no_grad()
def finetune_last_layer(
    subnet: InteractionArch, rows: FinetuningRows | None, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Trains a copy of the final linear layer on the fine-tuning rows. This call is collective.

    Args:
        subnet: subnet of the candidate.
        rows: rows to train on; None leaves the layer as it is in the supernet.
        config: configuration with the number of steps, the batch size and the learning rate.

    Returns:
        Weight ``(features,)`` and bias ``(1,)``.
    """
    last = subnet.over_arch
    weight = torch.cat([last.weight(source) for source in last.in_features], dim=1).flatten().clone()
    assert last.bias is not None
    bias = last.bias.detach().clone()
    if rows is None:
        return weight, bias
    cached, features = rows.cached, None
    if len(cached) * weight.nbytes <= FEATURES_KEPT:
        chunks = cached.chunks(config.chunk_size)
        kept = [torch.cat(subnet.features(dense, embedded), dim=1) for dense, embedded in chunks]
        features = torch.cat(kept) if kept else weight.new_empty(0, weight.numel())
    optimizer = torch.optim.Adagrad([weight, bias], lr=config.finetune_learning_rate, eps=1e-2)
    for step, selected in enumerate(rows.steps):
        optimizer.param_groups[0]["lr"] = cosine_with_warmup(step, len(rows.steps), config.finetune_learning_rate)
        batch = torch.cat(subnet.features(*cached.select(selected)), dim=1) if features is None else features[selected]
        # d loss / d logit is computed by hand, since a graph would cost more than the products.
        error = (torch.sigmoid(batch @ weight + bias) - cached.labels[selected]) / config.finetune_batch_size
        gradient = sum_over_ranks(torch.cat([error @ batch, error.sum().reshape(1)]))
        weight.grad, bias.grad = gradient[:-1], gradient[-1:]
        optimizer.step()
    return weight, bias
