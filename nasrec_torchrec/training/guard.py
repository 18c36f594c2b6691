"""What all ranks check together in every step: whether its numbers are finite, and whether the run was asked to end."""

import signal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nasrec_torchrec.stopping import StopRequest

# The exit code that a shell reports for a program that was ended by SIGTERM.
TERMINATED = 128 + signal.SIGTERM


class DivergedError(ValueError):
    """Raised when too many steps in a row had a loss or gradient that was not finite.

    Running again would fail in the same way; other settings or other data are needed.
    """


class StepGuard:
    """Keeps a step with a non-finite loss or gradient from changing a weight.

    TorchRec updates the tables during the backward pass. So that the ranks can decide before that, the backward pass
    stops at the embedded features (:meth:`hold`) and continues into the tables (:meth:`finish_backward`) once all
    ranks agree that the step counts. Tables that the dense optimizer updates need not be held back. Those that are
    frozen get no gradient.

    Args:
        frozen_tables: whether the backward pass ends at the embedded features for good.
    """

    def __init__(self, frozen_tables: bool = False) -> None:
        self._frozen_tables = frozen_tables
        self.skip = False
        # The signal that asked one of the ranks to end, or 0.
        self.stop = 0
        # The embedded features of the batch, and the leaves that stand for them, or for parts of their rows.
        self._held: tuple[Tensor, tuple[Tensor, ...]] | None = None
        # The one that came to this rank.
        self.request = StopRequest()

    def hold(self, _: nn.Module, __: object, embedded: Tensor) -> Tensor:
        """Cuts the graph. This is a forward hook of the part that looks up the tables."""
        # A pipeline traces the model before it runs it.
        return self.hold_parts(embedded, 1)[0] if isinstance(embedded, Tensor) else embedded

    def hold_parts(self, embedded: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cuts the graph, and divides the rows.

        Args:
            embedded: embedded features ``(B, ...)``.
            parts: number of parts of the rows.

        Returns:
            The parts ``(B / parts, ...)``, through which gradients go no further.
        """
        if self._frozen_tables or not embedded.requires_grad:
            return embedded.detach().tensor_split(parts)
        leaves = tuple(part.requires_grad_() for part in embedded.detach().tensor_split(parts))
        self._held = embedded, leaves
        return leaves

    def agree(self, loss: Tensor, gradient_norm: Tensor) -> bool:
        """Decides together with the other ranks whether the step counts. This call is collective.

        Args:
            loss: loss of this rank's rows.
            gradient_norm: norm of the dense part's averaged gradient, which is the same on every rank.

        Returns:
            bool: Whether the step counts; the same on every rank.
        """
        finite = loss.isfinite() & gradient_norm.isfinite()
        if self._held is not None:
            for leaf in self._held[1]:
                if leaf.grad is None:  # a path of a supernet may read no embedding at all
                    leaf.grad = torch.zeros_like(leaf)
                finite = finite & leaf.grad.isfinite().all()
        flags = torch.stack([~finite, torch.tensor(self.request.signal, device=finite.device)]).int()
        if dist.get_world_size() > 1:  # one rank alone would wait for the thread of its process group
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        skip, self.stop = flags.tolist()
        self.skip = bool(skip)
        if self.skip:
            self._held = None
        return not self.skip

    def finish_backward(self) -> None:
        """Continues the backward pass into the tables, which updates them."""
        held, self._held = self._held, None
        if held is not None:
            embedded, leaves = held
            gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
            embedded.backward(gradients[0] if len(gradients) == 1 else torch.cat(gradients))
