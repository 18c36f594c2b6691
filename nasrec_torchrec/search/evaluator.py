"""What a candidate is worth: its loss on validation rows after its last layer was fine-tuned (NASRec, section 4.2).

The supernet stays loaded and the pooled embeddings of all rows are looked up once, so that a candidate costs its own
narrow forward passes. Only the final linear is fine-tuned: what it reads is computed once per candidate too.
"""

import functools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.gather import gather_rows
from nasrec_torchrec.distributed.process_group import rank_and_ranks
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.cost import Cost, Latency, cost, measure_latency
from nasrec_torchrec.search.rows import CachedRows, RowCache
from nasrec_torchrec.training.schedules import cosine_with_warmup

# Shares of the validation rows after which a race is looked at.
_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Fewer rows than these stop nobody: their mean is not near enough to a normal distribution.
_ENOUGH_ROWS = 500
# Bytes of the fine-tuning rows' features up to which they are computed once and kept; beyond, in every step.
_FEATURES_KEPT = 2 << 30


@dataclass(frozen=True)
class Candidate:
    """An evaluated architecture.

    Args:
        architecture: the candidate.
        metrics: on the validation rows it has seen, with weights from the supernet.
        loss: log loss on all validation rows; of a stopped candidate it is estimated: the loss of the one it raced,
            and their mean difference on the rows that it has seen. Infinite when it is not a number.
        multiply_adds: per example, of the interaction part.
        parameters: of the interaction part.
        activation_bytes: per example.
        seconds: that the evaluation took.
        stopped: lost its race before it had seen all rows.
        latency_us: microseconds for a batch, where it was measured.
        latency_iqr_us: between the quartiles of the measurements.
    """

    architecture: Architecture
    metrics: ClickMetrics
    loss: float
    multiply_adds: int
    parameters: int
    activation_bytes: int
    seconds: float
    stopped: bool = False
    latency_us: float | None = None
    latency_iqr_us: float | None = None


class Evaluator:
    """Evaluates candidates of one supernet on fixed rows, over all ranks of the current process group if there is one.

    Every rank holds a share of the rows. Rank 0 calls the evaluator while the others are in :meth:`follow`.

    Args:
        supernet: trained; its tables may be sharded. It is not changed.
        train: split that the fine-tuning rows are drawn from.
        validation: split whose first rows rank the candidates.
        config: how to evaluate.
    """

    def __init__(
        self,
        supernet: SuperNet,
        train: ClickFiles,
        validation: ClickFiles,
        config: EvaluationConfig,
    ) -> None:
        self.config = config
        self._arch = supernet.eval().interaction_arch
        self._device = next(self._arch.parameters()).device
        self._rank, self._ranks = rank_and_ranks()
        # A search asks for what a candidate costs before it has it evaluated.
        self.cost = functools.cache(self._cost)
        self.latency = functools.cache(self._latency)
        cache = RowCache(config.cache_precision, config.cache_memory)
        look_up = functools.partial(cache.look_up, supernet.sparse_arch, chunk_size=config.chunk_size)
        generator = torch.Generator().manual_seed(config.finetune_seed)
        wanted = config.finetune_steps * config.finetune_batch_size
        # Each fine-tuning step has its rows; a row that several steps use is looked up and computed once.
        self._steps: tuple[Tensor, ...] = ()
        self.finetuning_rows: CachedRows | None = None
        if wanted:
            epochs = -(-wanted // len(train))
            drawn = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(epochs)])
            rows, positions = drawn[:wanted].unique(return_inverse=True)
            self._steps = tuple(
                step[step % self._ranks == self._rank] // self._ranks
                for step in positions.split(config.finetune_batch_size)
            )
            self.finetuning_rows = look_up(train, rows, torch.arange(len(rows)))
        rows = torch.arange(min(len(validation), config.evaluation_rows))
        # In random order, so that the first ones speak for all.
        self.validation_rows = look_up(validation, rows, torch.randperm(len(rows), generator=generator))
        # Of the best candidate so far: architecture, loss, and the loss of every row that this rank holds.
        self._best: tuple[Architecture, float, Tensor] | None = None

    def __call__(
        self, architecture: Architecture, incumbent: Candidate | None = None, with_latency: bool = False
    ) -> Candidate:
        """Fine-tunes the candidate's last layer and measures it; on rank 0.

        Args:
            architecture: the candidate.
            incumbent: that it races, where the configuration asks for races.
            with_latency: measure its latency too.

        Raises:
            ValueError: when the architecture is not of the supernet's search space.
        """
        assert self._rank == 0
        started = time.perf_counter()
        self._arch.search_space.check(architecture)
        rival = None if incumbent is None or self.config.race_confidence is None else incumbent.architecture
        self._tell((architecture, rival))
        logits, labels, behind = self._evaluate(architecture, rival)
        metrics = click_metrics(logits, labels)
        loss = metrics.log_loss if behind is None or incumbent is None else incumbent.loss + behind
        costs = self.cost(architecture)
        latency = self.latency(architecture) if with_latency else None
        return Candidate(
            architecture,
            metrics,
            loss if math.isfinite(loss) else math.inf,
            costs.multiply_adds,
            costs.parameters,
            costs.activation_bytes,
            time.perf_counter() - started,
            behind is not None,
            None if latency is None else latency.median_us,
            None if latency is None else latency.iqr_us,
        )

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        """On rank 0: ends :meth:`follow` of the others."""
        self._tell(None)

    def follow(self) -> None:
        """On every rank but 0: takes part in the evaluations until rank 0 leaves its context."""
        assert self._rank != 0
        while (request := self._tell(None)) is not None:
            self._evaluate(*request)

    def _tell(self, request: tuple[Architecture, Architecture | None] | None) -> Any:
        """Sends rank 0's request to all ranks."""
        if self._ranks == 1:
            return request
        sent = [request]
        dist.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
        return sent[0]

    def _cost(self, architecture: Architecture) -> Cost:
        storage = self._arch.storage
        sizes = storage.dense_in_features, storage.num_tokens, storage.embedding_dim
        return cost(architecture, *sizes, self._arch.use_layernorm)

    def _latency(self, architecture: Architecture) -> Latency:
        return measure_latency(self._arch.subnet(architecture), self.config.latency_batch_size, self._device)

    @torch.no_grad()
    def _evaluate(self, architecture: Architecture, rival: Architecture | None) -> tuple[Tensor, Tensor, float | None]:
        """Logits and labels of the validation rows of all ranks; collective.

        The third is None, or, when the race was lost and only a part of the rows was seen, the mean difference of the
        losses of candidate and rival.
        """
        rows = self.validation_rows
        theirs = None if rival is None else self._row_losses(rival)
        subnet = self._arch.subnet(architecture)
        weight, bias = self._finetune_last_layer(subnet)
        ends = [math.ceil(share * len(rows)) for share in (*_LOOKS, 1)] if theirs is not None else [len(rows)]
        parts: list[Tensor] = []
        first, behind = 0, None
        for look, end in enumerate(ends, start=1):
            for dense, embedded in rows.chunks(self.config.chunk_size, first, end):
                parts.append(torch.cat(subnet.features(dense, embedded), dim=1) @ weight + bias)
            first = end
            if theirs is not None and look < len(ends):
                losses = _row_losses(torch.cat(parts), rows.labels[:end])
                behind = self._behind(losses - theirs[:end])
                if behind is not None:
                    break
        logits = torch.cat(parts) if parts else rows.labels[:0]
        labels = rows.labels[:first]
        if behind is None:
            losses = _row_losses(logits, labels)
            loss = float(self._sum(losses.double().sum())) / rows.total
            if self._best is None or loss < self._best[1]:
                self._best = architecture, loss, losses
        return self._gather(logits), self._gather(labels), behind

    def _row_losses(self, architecture: Architecture) -> Tensor:
        """Losses of a candidate on this rank's validation rows; computed again unless it is the best one so far."""
        if self._best is None or self._best[0] != architecture:
            self._best = None
            self._evaluate(architecture, None)
        assert self._best is not None
        return self._best[2]

    def _behind(self, differences: Tensor) -> float | None:
        """The mean of row-wise differences over all ranks, when it is above 0 with the confidence asked for."""
        assert self.config.race_confidence is not None
        values = differences.double()
        count, total, squares = self._sum(
            torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
        ).tolist()
        if count < _ENOUGH_ROWS:
            return None
        mean = total / count
        error = math.sqrt(max(0.0, squares / count - mean * mean) / count)
        # Every look is a chance to be wrong.
        quantile = statistics.NormalDist().inv_cdf(1 - (1 - self.config.race_confidence) / len(_LOOKS))
        return mean if mean > quantile * error else None

    def _finetune_last_layer(self, subnet: InteractionArch) -> tuple[Tensor, Tensor]:
        """Weight ``(features,)`` and bias of the fine-tuned final linear; the supernet keeps its own."""
        config = self.config
        last = subnet.over_arch
        weight = torch.cat([last.weight(source) for source in last.in_features], dim=1).flatten().clone()
        assert last.bias is not None
        bias = last.bias.detach().clone()
        cached = self.finetuning_rows
        if cached is None:
            return weight, bias
        features = None
        if len(cached) * weight.nbytes <= _FEATURES_KEPT:
            chunks = cached.chunks(config.chunk_size)
            kept = [torch.cat(subnet.features(dense, embedded), dim=1) for dense, embedded in chunks]
            features = torch.cat(kept) if kept else weight.new_empty(0, weight.numel())
        optimizer = torch.optim.Adagrad([weight, bias], lr=config.finetune_learning_rate, eps=1e-2)
        for step, rows in enumerate(self._steps):
            optimizer.param_groups[0]["lr"] = cosine_with_warmup(step, len(self._steps), config.finetune_learning_rate)
            batch = torch.cat(subnet.features(*cached.select(rows)), dim=1) if features is None else features[rows]
            # d loss / d logit by hand: the graph would cost more than the products.
            error = (torch.sigmoid(batch @ weight + bias) - cached.labels[rows]) / config.finetune_batch_size
            gradient = self._sum(torch.cat([error @ batch, error.sum().reshape(1)]))
            weight.grad, bias.grad = gradient[:-1], gradient[-1:]
            optimizer.step()
        return weight, bias

    def _sum(self, values: Tensor) -> Tensor:
        """Over all ranks."""
        if self._ranks > 1:
            dist.all_reduce(values)
        return values

    def _gather(self, values: Tensor) -> Tensor:
        """Of all ranks, whose numbers of values differ by one at most."""
        if self._ranks == 1:
            return values
        counts = torch.zeros(self._ranks, dtype=torch.int64, device=values.device)
        counts[self._rank] = len(values)
        longest = int(self._sum(counts).max())
        padded = gather_rows(F.pad(values, (0, longest - len(values))))
        return torch.cat([part[:count] for part, count in zip(padded.split(longest), counts.tolist(), strict=True)])


def _row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
