"""Which path of the model a step trains: a sampled path of a supernet, or the whole of a fixed model."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.search_space import Strategy
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad, adam
from nasrec_torchrec.training.path_statistics import PathStatistics
from nasrec_torchrec.training.schedules import full_path_probability


class FixedPath:
    """The one path of a model that is not a supernet.

    Args:
        tables: tables of the model.
        config: how to train the model.
    """

    statistics: PathStatistics | None = None

    def __init__(self, tables: EmbeddingBagCollection | EmbeddingCollection, config: TrainConfig) -> None:
        self._tables, self._config = tables, config
        self._dense: Sequence[nn.Parameter] = ()

    def make_optimizer(self, dense: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameters that TorchRec does not update in backward."""
        config = self._config
        self._dense = dense
        if config.optimizer == "adam":
            # Only now: TorchRec replaces parameters on the meta device, on which a model for a GPU is built.
            tables = list(self._tables.parameters()) if config.whole_tables else ()
            return adam(dense, tables, config.learning_rate, config.embedding_l2)
        return torch.optim.Adagrad(dense, config.learning_rate, eps=config.adagrad_eps)

    def draw(self, step: int) -> None:
        """Does nothing, since there is only one path."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns the parameters that have the step's gradients."""
        return self._dense

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, since there is no state to restore."""


class SampledPaths:
    """Draws the path of every step of a supernet's training, the same on all ranks.

    Args:
        supernet: supernet to train.
        config: how to train it.

    Raises:
        ValueError: If an option requires a fixed model.
    """

    def __init__(self, supernet: SuperNet, config: TrainConfig) -> None:
        if config.compile:
            raise ValueError("compile: a supernet's paths change from step to step; only a fixed model is compiled")
        if config.dropout:
            raise ValueError(f"dropout: expected 0 for a supernet, found {config.dropout}")
        if config.ema_decay is not None:
            raise ValueError("ema_decay: expected none for a supernet, whose steps touch the active path alone")
        if config.optimizer == "adam":
            raise ValueError("optimizer: a supernet is trained with adagrad, whose steps touch the active path alone")
        self._supernet, self._config = supernet, config
        self._generator = torch.Generator().manual_seed(config.seed)
        self.statistics = PathStatistics()

    def make_optimizer(self, dense: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameters that TorchRec does not update in backward."""
        config = self._config
        return ActiveSliceAdagrad(dense, self._supernet.active_parameters, config.learning_rate, config.adagrad_eps)

    def draw(self, step: int) -> None:
        """Draws the path of a step and makes it the current one."""
        full = full_path_probability(step, self._config.full_path_steps)
        take_full = float(torch.rand((), generator=self._generator)) < full
        strategy: Strategy = "full" if take_full else self._config.strategy
        architecture = self._supernet.search_space.sample(self._generator, strategy)
        self.statistics.add(architecture)
        self._supernet.set_architecture(architecture)

    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns the parameters that have the step's gradients: views on the supernet's storage."""
        return [view for _, view in self._supernet.active_parameters()]

    def state_dict(self) -> dict[str, Any]:
        drawn = base64.b64encode(self._generator.get_state().numpy().tobytes()).decode()
        return {"paths_drawn": drawn, "paths": self.statistics.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        drawn = bytearray(base64.b64decode(state["paths_drawn"]))
        self._generator.set_state(torch.frombuffer(drawn, dtype=torch.uint8))
        self.statistics = PathStatistics.from_json(state["paths"])


Paths = FixedPath | SampledPaths


def paths_of(model: nn.Module, tables: EmbeddingBagCollection | EmbeddingCollection, config: TrainConfig) -> Paths:
    """Returns the object that chooses the path of every training step through a model."""
    return SampledPaths(model, config) if isinstance(model, SuperNet) else FixedPath(tables, config)
