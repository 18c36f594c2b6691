"""Evaluation of a candidate: its loss on validation rows after its last layer was fine-tuned (NASRec, section 4.2).

The supernet stays loaded and the pooled embeddings of all rows are looked up once, so that a candidate costs no more
than its own narrow forward passes.
"""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.gather import gather_uneven, sum_over_ranks
from nasrec_torchrec.distributed.process_group import rank_and_ranks
from nasrec_torchrec.distributed.sharding import local_world_size
from nasrec_torchrec.finite import is_better
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.metrics.passes import free_bytes, rows_at_once
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import MOST_ON_CPU, MOST_ON_GPU, EvaluationConfig
from nasrec_torchrec.search.cost import cost_in_supernet, measure_latency
from nasrec_torchrec.search.cost_values import Latency
from nasrec_torchrec.search.finetuning import finetune_last_layers
from nasrec_torchrec.search.racing import Verdict, judge, looks
from nasrec_torchrec.search.rows import CachedRows, FinetuningRows, RowCache
from nasrec_torchrec.search.sharing import SharedFeatures


class Evaluator:
    """Evaluates candidates of one supernet on fixed rows, over all ranks of the current process group if there is one.

    Every rank holds a share of the rows. Rank 0 calls the evaluator while the others are in :meth:`follow`.

    Args:
        supernet: trained supernet, whose tables may be sharded. It is not changed.
        train: split from which the fine-tuning rows are drawn.
        validation: split whose first rows rank the candidates.
        config: how to evaluate candidates.

    Raises:
        ValueError: If a required split has no rows.
    """

    def __init__(
        self,
        supernet: SuperNet,
        train: ClickFiles,
        validation: ClickFiles,
        config: EvaluationConfig,
    ) -> None:
        for name, split in (("train", train if config.finetune_steps else None), ("validation", validation)):
            if split is not None and not len(split):
                raise ValueError(f"{name}: the split has no rows, and candidates are evaluated on them")
        self._arch = supernet.eval().interaction_arch
        self._device = next(self._arch.parameters()).device
        self._rank, self._ranks = rank_and_ranks()
        # A search asks for the cost of a candidate before it evaluates the candidate.
        self.cost = functools.cache(functools.partial(cost_in_supernet, supernet))
        self.latency = functools.cache(self._latency)
        self.config = config = self._fitted(config)
        cache = RowCache(supernet.sparse_arch, config)
        generator = torch.Generator().manual_seed(config.finetune_seed)
        self.finetuning_rows: FinetuningRows | None = cache.finetuning_rows(train, generator)
        self.validation_rows = cache.validation_rows(validation, generator)
        # What was chosen for this machine, for people.
        self.chosen = f"{config.pass_rows:,} rows a pass; {cache}"
        # The architecture of the best candidate so far, its loss, and its loss on every row that this rank holds.
        self._best: tuple[Architecture, float, Tensor] | None = None

    def _fitted(self, config: EvaluationConfig) -> EvaluationConfig:
        """Chooses how many rows a pass takes, the same on all ranks, where nobody said. This call is collective."""
        if config.chunk_size is not None:
            return config
        full = self._arch.search_space.sample(torch.Generator(), "full")
        # All that the widest candidate allocates. Several narrower ones in a pass hold less at any time.
        each = self.cost(full).activation_bytes
        most = MOST_ON_CPU if self._device.type == "cpu" else MOST_ON_GPU
        chosen = [rows_at_once(each, free_bytes(self._device, local_world_size()), most)] * self._ranks
        if self._ranks > 1:
            dist.all_gather_object(chosen, chosen[0])
        return replace(config, chunk_size=min(chosen))

    def __call__(
        self, architecture: Architecture, incumbent: Candidate | None = None, with_latency: bool = False
    ) -> Candidate:
        """Fine-tunes the candidate's last layer and measures the candidate. Called on rank 0.

        Args:
            architecture: the candidate.
            incumbent: candidate to race against, if the configuration enables races.
            with_latency: whether to measure the latency too.

        Returns:
            Candidate: The evaluated candidate.

        Raises:
            ValueError: If the architecture does not belong to the supernet's search space.
        """
        return self.several([architecture], incumbent, with_latency)[0]

    def several(
        self, architectures: Sequence[Architecture], incumbent: Candidate | None = None, with_latency: bool = False
    ) -> list[Candidate]:
        """Evaluates candidates in one pass over the rows, so that blocks that agree are computed once.

        Every candidate is found as if it were evaluated alone. Called on rank 0.

        Args:
            architectures: the candidates.
            incumbent: candidate to race against, if the configuration enables races.
            with_latency: whether to measure the latency too.

        Returns:
            list[Candidate]: The evaluated candidates, in the same order. Each took an equal share of the seconds.

        Raises:
            ValueError: If an architecture does not belong to the supernet's search space.
        """
        assert self._rank == 0
        started = time.perf_counter()
        for architecture in architectures:
            self._arch.search_space.check(architecture)
        rival = None if incumbent is None or not self.config.races else incumbent.architecture
        self._tell((tuple(architectures), rival))
        found = self._evaluate(architectures, rival)
        seconds = (time.perf_counter() - started) / len(architectures)
        candidates = []
        for architecture, (logits, labels, weights, verdict) in zip(architectures, found, strict=True):
            started = time.perf_counter()
            metrics = click_metrics(logits, labels, weights)
            loss = metrics.log_loss if verdict is None or incumbent is None else incumbent.loss + verdict.difference
            counted = self.cost(architecture)
            latency = self.latency(architecture) if with_latency else None
            spent = seconds + time.perf_counter() - started
            loss = loss if math.isfinite(loss) else math.inf
            stopped = verdict is not None and verdict.certain
            candidates.append(Candidate(architecture, metrics, loss, counted, spent, stopped, latency))
        return candidates

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Ends :meth:`follow` on all other ranks, with the same error. Called on rank 0."""
        self._tell(str(error) if isinstance(error, ValueError | OSError) else None)

    def follow(self) -> None:
        """Takes part in the evaluations until rank 0 leaves its context. Called on every rank but 0.

        Raises:
            ValueError: with the message of the error for which rank 0 left.
        """
        assert self._rank != 0
        while (request := self._tell(None)) is not None:
            if isinstance(request, str):
                raise ValueError(request)
            self._evaluate(*request)

    def _tell(self, request: tuple[tuple[Architecture, ...], Architecture | None] | str | None) -> Any:
        """Sends rank 0's request, or why it ends, to all ranks."""
        if self._ranks == 1:
            return request
        sent = [request]
        dist.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
        return sent[0]

    def _latency(self, architecture: Architecture) -> Latency:
        return measure_latency(self._arch.subnet(architecture), self.config.latency_batch_size, self._device)

    @torch.no_grad()
    def _evaluate(
        self, architectures: Sequence[Architecture], rival: Architecture | None
    ) -> list[tuple[Tensor, Tensor, Tensor | None, Verdict | None]]:
        """Returns each candidate's logits, labels and, if there are some, weights of the validation rows of all ranks.

        This call is collective. If a race ended early, these cover only the rows seen so far, and the last value says
        why. Otherwise this value is None.
        """
        rows = self.validation_rows
        theirs = None if rival is None else self._losses_of(rival)
        subnets = [self._arch.subnet(architecture) for architecture in architectures]
        layers = finetune_last_layers(subnets, self.finetuning_rows, self.config)
        races = [_Race() for _ in subnets]
        ends = [len(rows)] if theirs is None else looks(len(rows))
        first = 0
        for look, end in enumerate(ends, start=1):
            going = [index for index, race in enumerate(races) if race.verdict is None]
            if not going:
                break
            shared = SharedFeatures([subnets[index] for index in going])
            for dense, embedded in rows.chunks(self.config.pass_rows, first, end):
                for index, features in zip(going, shared(dense, embedded), strict=True):
                    weight, bias = layers[index]
                    races[index].parts.append(features @ weight + bias)
            first = end
            if theirs is not None and look < len(ends):
                for index in going:
                    losses = _row_losses(races[index].logits(rows.labels), rows)
                    margins = self.config.race_tolerance, self.config.race_confidence
                    races[index].verdict = judge(losses - theirs[:end], *margins)
        found = []
        for architecture, race in zip(architectures, races, strict=True):
            logits = race.logits(rows.labels)
            labels = rows.labels[: len(logits)]
            if race.verdict is None:
                losses = _row_losses(logits, rows)
                loss = float(sum_over_ranks(losses.double().sum())) / rows.total
                if self._best is None or is_better(loss, self._best[1]):
                    self._best = architecture, loss, losses
            weights = None if rows.weights is None else gather_uneven(rows.weights[: len(logits)])
            found.append((gather_uneven(logits), gather_uneven(labels), weights, race.verdict))
        return found

    def _losses_of(self, architecture: Architecture) -> Tensor:
        """Returns a candidate's losses on this rank's validation rows, which are cached for the best candidate."""
        if self._best is None or self._best[0] != architecture:
            self._best = None
            self._evaluate([architecture], None)
        assert self._best is not None
        return self._best[2]


@dataclass
class _Race:
    """A candidate's logits so far, and why it sees no more rows."""

    parts: list[Tensor] = field(default_factory=list)
    verdict: Verdict | None = None

    def logits(self, like: Tensor) -> Tensor:
        return torch.cat(self.parts) if self.parts else like[:0]


def _row_losses(logits: Tensor, rows: CachedRows) -> Tensor:
    """Returns the losses, times the weights, of the first rows, as many as there are logits."""
    count = len(logits)
    weights = None if rows.weights is None else rows.weights[:count]
    return F.binary_cross_entropy_with_logits(logits, rows.labels[:count], weights, reduction="none")
