"""The optimizers that FBGEMM fuses into the backward pass of a table, and what each of them needs and offers."""

from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torchrec.optim import optimizers
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from nasrec_torchrec.distributed.config import TableOptimizer


@dataclass(frozen=True)
class _Kind:
    """One optimizer.

    Args:
        made_by: The class by which TorchRec knows it.
        per_weight: Bytes of its state for each weight.
        per_row: Further bytes of its state for each row.
        on_cpu: Whether FBGEMM has a kernel of it for the CPU.
        decays: Whether its kernel for CUDA decays weights.
    """

    made_by: type[torch.optim.Optimizer]
    per_weight: int
    per_row: int = 0
    on_cpu: bool = False
    decays: bool = True


_KINDS: dict[TableOptimizer, _Kind] = {
    "sgd": _Kind(torch.optim.SGD, 0, on_cpu=True, decays=False),
    "adagrad": _Kind(torch.optim.Adagrad, 4, on_cpu=True, decays=False),
    "rowwise_adagrad": _Kind(RowWiseAdagrad, 0, 4, on_cpu=True),
    "adam": _Kind(optimizers.Adam, 8),
    "rowwise_adam": _Kind(optimizers.PartialRowWiseAdam, 4, 4),
    "lamb": _Kind(optimizers.LAMB, 8),
    "rowwise_lamb": _Kind(optimizers.PartialRowWiseLAMB, 4, 4),
}
# What FBGEMM's kernels for tables on SSDs offer.
ON_SSDS: tuple[TableOptimizer, ...] = "rowwise_adagrad", "adam", "rowwise_adam"


@dataclass(frozen=True)
class TableSetting:
    """How one table is trained.

    Args:
        optimizer: Its optimizer.
        learning_rate: Its learning rate at the end of the warm-up.
        weight_decay: Strength of the decay of the rows that are looked up.
    """

    optimizer: TableOptimizer
    learning_rate: float
    weight_decay: float = 0.0

    def require_kernel(self, table: str, device_type: str) -> None:
        """Checks that FBGEMM can do it.

        Args:
            table: Name of the table, for messages.
            device_type: Where the table will be, ``cpu`` or ``cuda``.

        Raises:
            ValueError: If the device has no kernel for the optimizer or for the weight decay.
        """
        there = [name for name, kind in _KINDS.items() if kind.on_cpu or device_type != "cpu"]
        if self.optimizer not in there:
            raise ValueError(
                f"table_optimizers: expected one of {', '.join(there)}, for which FBGEMM has kernels on {device_type}, "
                f"found {self.optimizer} for the table {table}"
            )
        if self.weight_decay and device_type == "cpu":  # its kernel takes the number and does not use it
            raise ValueError(
                f"table_weight_decay: expected none on cpu, where no kernel of FBGEMM decays weights, found "
                f"{self.weight_decay:g} for the table {table}"
            )
        if self.weight_decay and not _KINDS[self.optimizer].decays:
            decaying = ", ".join(name for name, kind in _KINDS.items() if kind.decays)
            raise ValueError(
                f"table_weight_decay: expected an optimizer among {decaying}, whose kernels decay weights, found "
                f"{self.optimizer} for the table {table}"
            )

    def fuse(self, weight: nn.Parameter, eps: float) -> None:
        """Attaches the optimizer to a table, which TorchRec fuses into the backward pass where it shards the table.

        Args:
            weight: The table.
            eps: Constant that is added to Adagrad's denominator.
        """
        options: dict[str, Any] = {"lr": self.learning_rate}
        if "adagrad" in self.optimizer:
            options["eps"] = eps
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        if self.weight_decay and self.optimizer == "rowwise_adagrad":  # the others need no mode
            options["weight_decay_mode"] = WeightDecayMode.L2
        apply_optimizer_in_backward(_KINDS[self.optimizer].made_by, [weight], options)

    def state_bytes(self, columns: int) -> float:
        """Returns the bytes of the optimizer's state for each weight of a table with so many columns."""
        return _state_bytes(_KINDS[self.optimizer], columns)


def optimizer_of(weight: nn.Parameter) -> TableOptimizer:
    """Returns the optimizer that is fused into a table; Adagrad, the default, if that is none of ours."""
    made_by = next(iter(getattr(weight, "_optimizer_classes", ())), torch.optim.Adagrad)
    return next((name for name, kind in _KINDS.items() if kind.made_by is made_by), "adagrad")


def state_bytes_of(weight: nn.Parameter) -> float:
    """Returns the bytes that the optimizer fused into a table keeps for each weight."""
    return _state_bytes(_KINDS[optimizer_of(weight)], weight.shape[1])


def _state_bytes(kind: _Kind, columns: int) -> float:
    return kind.per_weight + kind.per_row / columns
