"""What a step checks on all ranks alike: whether its numbers are finite, and whether the run was asked to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

# What a shell reports of a program that SIGTERM ended.
TERMINATED = 128 + signal.SIGTERM


class StepGuard(nn.Module):
    """The loss of a step, and what keeps one with a non-finite loss or gradient from changing a weight.

    TorchRec updates the tables within backward. So that it can be decided before, backward ends at the embedded
    features (:meth:`hold`), and is finished when all ranks agree that the step counts (:meth:`release`). Tables that
    the dense optimizer updates need no holding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skip = self.stop = False
        self._finite = torch.tensor(True)
        self._held: tuple[Tensor, Tensor] | None = None
        self._terminated = False

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross-entropy."""
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        self._finite = loss.detach().isfinite()
        return loss

    def hold(self, _: nn.Module, __: object, embedded: Tensor) -> Tensor:
        """Forward hook of the part that looks up the tables."""
        # A pipeline traces the model before it runs it.
        if not isinstance(embedded, Tensor) or not embedded.requires_grad:
            return embedded
        leaf = embedded.detach().requires_grad_()
        self._held = embedded, leaf
        return leaf

    def release(self, gradient_norm: Tensor) -> None:
        """Decides with the other ranks whether the step counts, and then updates the tables; collective.

        Args:
            gradient_norm: of the dense part's averaged gradient, the same on every rank.
        """
        held, self._held = self._held, None
        finite = self._finite & gradient_norm.isfinite()
        if held is not None:
            assert held[1].grad is not None
            finite = finite & held[1].grad.isfinite().all()
        flags = torch.stack([~finite, torch.tensor(self._terminated, device=finite.device)]).float()
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.skip, self.stop = flags.bool().tolist()
        if held is not None and not self.skip:
            embedded, leaf = held
            embedded.backward(leaf.grad)

    @contextmanager
    def termination(self) -> Iterator[None]:
        """Takes SIGTERM as the wish to end after a step, as it is sent before a machine is taken away."""
        if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
            yield
            return

        def ask(_: int, __: FrameType | None) -> None:
            self._terminated = True

        previous = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
