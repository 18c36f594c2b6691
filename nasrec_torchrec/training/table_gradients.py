"""Which tables have learned nothing: those of which no row has ever received a gradient."""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from nasrec_torchrec.distributed.shards import shards_of
from nasrec_torchrec.modules.table_collection import table_weights

# What TorchRec's fused Adagrad calls its sums of squared gradients, behind the name of a table.
_SUMS = ".momentum1"
# What a rank knows of a table; the highest that any rank knows holds.
_NOT_HERE, _NOTHING_YET, _LEARNED = 0, 1, 2


class TableGradients:
    """Knows which tables have never received a gradient other than zero.

    Adagrad's sums of squared gradients tell it for the whole run, also after it was resumed. Adam's moments do not,
    since its L2 penalty moves every row. There, each table is watched in the backward pass until its first gradient,
    which costs nothing afterwards.

    Args:
        dmp: sharded task.
        tables: tables of the model, before they were sharded.
        watched: whether the dense optimizer updates the tables, so that their gradients are to be watched.
        device: device of this rank.
    """

    def __init__(
        self,
        dmp: DistributedModelParallel,
        tables: EmbeddingBagCollection | EmbeddingCollection,
        watched: bool,
        device: torch.device,
    ) -> None:
        self._dmp, self._device, self._watched = dmp, device, watched
        weights = table_weights(tables)
        self._names = list(weights)
        self._hooks: dict[str, RemovableHandle] = {}
        for name in self._names if watched else ():
            self._hooks[name] = weights[name].register_post_accumulate_grad_hook(partial(self._see, name))

    def none_yet(self, steps: int, epoch: int) -> list[str]:
        """Returns the names of the tables without a gradient on any rank. This call is collective.

        Args:
            steps: number of steps that this object has seen.
            epoch: number of steps of an epoch; gradients that are watched say nothing before so many.
        """
        if self._watched and steps < epoch:
            return []
        known = self._seen() if self._watched else self._summed()
        states = torch.tensor([known.get(name, _NOT_HERE) for name in self._names], device=self._device)
        if dist.get_world_size() > 1:
            dist.all_reduce(states, dist.ReduceOp.MAX)
        return [name for name, state in zip(self._names, states.tolist(), strict=True) if state == _NOTHING_YET]

    def _see(self, name: str, weight: Tensor) -> None:
        if weight.grad is not None and weight.grad.any():
            self._hooks.pop(name).remove()

    def _seen(self) -> dict[str, int]:
        return {name: _NOTHING_YET if name in self._hooks else _LEARNED for name in self._names}

    def _summed(self) -> dict[str, int]:
        """Returns what the sums of this rank's parts of the tables say."""
        return {
            name.removesuffix(_SUMS): _LEARNED if any(sums.any() for _, sums in shards) else _NOTHING_YET
            for state in self._dmp.fused_optimizer.state_dict()["state"].values()
            for name, value in state.items()
            if name.endswith(_SUMS) and (shards := shards_of(value)) is not None
        }
