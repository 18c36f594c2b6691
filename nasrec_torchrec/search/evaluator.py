"""What a candidate is worth: its loss on validation rows after its last layer was fine-tuned (NASRec, section 4.2).

The supernet stays loaded and the pooled embeddings of all rows are looked up once, so that a candidate costs its own
narrow forward passes. Only the final linear is fine-tuned: what it reads is computed once per candidate too.
"""

import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.search.cost import Cost, cost
from nasrec_torchrec.training.metrics import ClickMetrics, click_metrics
from nasrec_torchrec.training.schedules import cosine_with_warmup


@dataclass(frozen=True)
class EvaluationConfig:
    """How a candidate is evaluated. The defaults are the paper's for Criteo.

    Args:
        finetune_steps: steps of the last layer; 0 leaves it as the supernet has it.
        finetune_batch_size: rows of such a step.
        finetune_learning_rate: of Adagrad with a cosine schedule.
        evaluation_rows: validation rows at most; the same for every candidate.
        chunk_size: rows of a forward pass.
        finetune_seed: of the fine-tuning rows; the same for every candidate.
    """

    finetune_steps: int = 500
    finetune_batch_size: int = 512
    finetune_learning_rate: float = 0.04
    evaluation_rows: int = 150 * 8192
    chunk_size: int = 1024
    finetune_seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"finetune_steps": 0, "finetune_batch_size": 1, "evaluation_rows": 1, "chunk_size": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, found {getattr(self, name)}")


@dataclass(frozen=True)
class Candidate:
    """An evaluated architecture.

    Args:
        architecture: the candidate.
        metrics: on the validation rows, with weights from the supernet.
        multiply_adds: per example, of the interaction part.
        parameters: of the interaction part.
        seconds: that the evaluation took.
    """

    architecture: Architecture
    metrics: ClickMetrics
    multiply_adds: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class CachedRows:
    """Rows whose embeddings were looked up once.

    Args:
        dense: ``(rows, F_dense)``.
        embedded: pooled embeddings ``(rows, F_sparse, E)``.
        labels: ``(rows,)``.
    """

    dense: Tensor
    embedded: Tensor
    labels: Tensor

    @classmethod
    @torch.no_grad()
    def make(cls, supernet: SuperNet, data: ClickData, rows: Tensor, chunk_size: int) -> "CachedRows":
        parts = [data.select(chunk) for chunk in rows.split(chunk_size)]
        embedded = torch.cat([supernet.sparse_arch(part.sparse_features) for part in parts])
        return cls(data.dense[rows], embedded, data.labels[rows])


class Evaluator:
    """Evaluates candidates of one supernet on fixed rows.

    Args:
        supernet: trained, unsharded; it is not changed.
        train: split that the fine-tuning rows are drawn from.
        validation: split whose first rows rank the candidates.
        config: how to evaluate.
    """

    def __init__(self, supernet: SuperNet, train: ClickData, validation: ClickData, config: EvaluationConfig) -> None:
        self.supernet = supernet.eval()
        self.config = config
        # A search asks for a candidate's cost before it has it evaluated.
        self.cost = functools.cache(self._cost)
        generator = torch.Generator().manual_seed(config.finetune_seed)
        wanted = config.finetune_steps * config.finetune_batch_size
        # Each fine-tuning step has its rows; a row that several steps use is looked up and computed once.
        self._steps: tuple[Tensor, ...] = ()
        self.finetuning_rows: CachedRows | None = None
        if wanted:
            epochs = -(-wanted // len(train))
            drawn = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(epochs)])
            rows, positions = drawn[:wanted].unique(return_inverse=True)
            self._steps = positions.split(config.finetune_batch_size)
            self.finetuning_rows = CachedRows.make(supernet, train, rows, config.chunk_size)
        rows = torch.arange(min(len(validation), config.evaluation_rows))
        self.validation_rows = CachedRows.make(supernet, validation, rows, config.chunk_size)

    def __call__(self, architecture: Architecture) -> Candidate:
        """Fine-tunes the candidate's last layer and measures it.

        Raises:
            ValueError: when the architecture is not of the supernet's search space.
        """
        started = time.perf_counter()
        subnet = self.supernet.interaction_arch.subnet(architecture)
        weight, bias = self._finetune_last_layer(subnet)
        logits = self._features(subnet, self.validation_rows) @ weight + bias
        costs = self.cost(architecture)
        metrics = click_metrics(logits, self.validation_rows.labels)
        seconds = time.perf_counter() - started
        return Candidate(architecture, metrics, costs.multiply_adds, costs.parameters, seconds)

    def _cost(self, architecture: Architecture) -> Cost:
        arch = self.supernet.interaction_arch
        sizes = arch.storage.dense_in_features, arch.storage.num_tokens, arch.storage.embedding_dim
        return cost(architecture, *sizes, arch.use_layernorm)

    @torch.no_grad()
    def _features(self, subnet: InteractionArch, rows: CachedRows) -> Tensor:
        chunks = zip(rows.dense.split(self.config.chunk_size), rows.embedded.split(self.config.chunk_size), strict=True)
        return torch.cat([torch.cat(subnet.features(dense, embedded), dim=1) for dense, embedded in chunks])

    def _finetune_last_layer(self, subnet: InteractionArch) -> tuple[Tensor, Tensor]:
        """Weight ``(features,)`` and bias of the fine-tuned final linear; the supernet keeps its own."""
        config = self.config
        last = subnet.over_arch
        with torch.no_grad():
            weight = torch.cat([last.weight(source) for source in last.in_features], dim=1).flatten().clone()
            assert last.bias is not None
            bias = last.bias.detach().clone()
        cached = self.finetuning_rows
        if cached is None:
            return weight, bias
        features = self._features(subnet, cached)
        optimizer = torch.optim.Adagrad([weight, bias], lr=config.finetune_learning_rate, eps=1e-2)
        for step, rows in enumerate(self._steps):
            optimizer.param_groups[0]["lr"] = cosine_with_warmup(step, len(self._steps), config.finetune_learning_rate)
            batch = features[rows]
            # d loss / d logit by hand: the graph would cost more than the products.
            error = (torch.sigmoid(batch @ weight + bias) - cached.labels[rows]) / rows.numel()
            weight.grad, bias.grad = error @ batch, error.sum().reshape(1)
            optimizer.step()
        return weight, bias
