"""The optimizers of the dense part: Adagrad over whichever part of a supernet is active, and Adam."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adagrad import adagrad
from torch.optim.optimizer import ParamsT

ActiveParameters = Callable[[], Iterable[tuple[nn.Parameter, nn.Parameter]]]


class ActiveSliceAdagrad(torch.optim.Optimizer):
    """``torch.optim.Adagrad`` whose state has full size but whose step touches only the active slices.

    Outside the slices the gradient is zero, and there Adagrad changes neither a weight nor its state. The result is
    therefore the same as that of Adagrad on the whole supernet.

    Args:
        params: stored parameters.
        active: function that yields pairs of a stored parameter and its active view, a prefix slice that carries the
            gradient.
        lr: learning rate.
        eps: constant that is added to the denominator; the research code uses 1e-2.
    """

    def __init__(self, params: ParamsT, active: ActiveParameters, lr: float = 0.12, eps: float = 1e-2) -> None:
        if lr < 0 or eps < 0:
            raise ValueError(f"lr and eps: expected 0 or more, found {lr} and {eps}")
        self._active = active
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                # "sum" and "step" are the names of torch.optim.Adagrad's state.
                self.state[parameter] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(parameter)}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for _, view in self._active():
            view.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Updates the parameters whose active view has a gradient."""
        assert closure is None, "closures are not supported"
        groups = {id(parameter): group for group in self.param_groups for parameter in group["params"]}
        for group in self.param_groups:
            active = [
                (stored, view)
                for stored, view in self._active()
                if view.grad is not None and groups.get(id(stored)) is group
            ]
            prefixes = [tuple(slice(0, size) for size in view.shape) for _, view in active]
            adagrad(
                [view.detach() for _, view in active],
                [view.grad for _, view in active if view.grad is not None],
                [self.state[stored]["sum"][prefix] for (stored, _), prefix in zip(active, prefixes, strict=True)],
                [self.state[stored]["step"] for stored, _ in active],
                has_sparse_grad=False,
                foreach=True,
                differentiable=False,
                has_complex=False,
                lr=group["lr"],
                weight_decay=0.0,
                lr_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
        return None


def adam(
    parameters: Sequence[nn.Parameter], tables: Sequence[nn.Parameter], lr: float, embedding_l2: float
) -> torch.optim.Adam:
    """Adam whose state exists before its first step, so that a checkpoint can restore it.

    Args:
        parameters: all parameters to update.
        tables: the parameters among them that the L2 penalty applies to.
        lr: learning rate.
        embedding_l2: strength of the penalty; this value times half the sum of squares is added to the loss.
    """
    regularised = set(map(id, tables))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in regularised]},
        # Adam's weight decay is the gradient of half the sum of squares.
        {"params": [p for p in parameters if id(p) in regularised], "weight_decay": embedding_l2},
    ]
    # One kernel for a whole parameter on the CPU; on a GPU, PyTorch chooses one for many parameters by itself.
    on_host = all(parameter.device.type == "cpu" for parameter in parameters)
    optimizer = torch.optim.Adam(groups, lr, fused=on_host or None)
    for parameter in parameters:
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
    return optimizer
