"""CUDA graphs of the dense part of a fixed model: a step launches all of its kernels at once instead of one by one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nasrec_torchrec.training.config import TrainConfig

_LOG = logging.getLogger(__name__)


def uses_graphs(config: TrainConfig, device: torch.device, ranks: int, fixed: bool) -> bool:
    """Returns whether a training captures the dense part of its model.

    Args:
        config: how to train the model.
        device: device of this rank.
        ranks: number of ranks.
        fixed: whether the model is none whose path changes.

    Raises:
        ValueError: If the flag asks for it, and this training cannot.
    """
    if not config.cuda_graphs:
        able = device.type == "cuda" and ranks == 1 and fixed and config.accumulate == 1
        return config.cuda_graphs is None and able
    if not fixed:
        raise ValueError("cuda_graphs: a supernet's paths change from step to step; only a fixed model is captured")
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs: they are for CUDA, and this training runs on {device.type}; leave the flag out")
    if ranks > 1:
        raise ValueError(f"cuda_graphs: expected one rank, found {ranks}, with which they have not been tried")
    return True


def graph_dense_part(
    model: nn.Module, rows: int, device: torch.device, compiled: bool = False, required: bool = True
) -> None:
    """Lets the parts of a model beside its tables run as CUDA graphs in training steps of one batch size.

    The first such step captures each part, forward and backward. Whatever differs from it takes the usual path:
    evaluation, and batches of another size. A graph writes its outputs and gradients into the same memory in every
    step, so gradients must be used, and set to None, before the next one.

    Args:
        model: model whose tables are in its ``sparse_arch``. It may not be sharded yet.
        rows: number of rows of a batch that is captured.
        device: device of the model by the time it runs.
        compiled: whether the parts are compiled by ``torch.compile`` first.
        required: whether a part that cannot be captured is an error, instead of staying as it is with a warning.
    """
    for name, child in model.named_children():
        if name != "sparse_arch":
            # An attribute of the instance: pipelines that trace the model see the same module as before.
            child.forward = _Graphed(name, child, rows, device, compiled, required)


class _Graphed:
    """The forward pass of a module, which replays a graph where that is possible.

    See :func:`graph_dense_part` for the arguments.
    """

    def __init__(
        self, name: str, module: nn.Module, rows: int, device: torch.device, compiled: bool, required: bool
    ) -> None:
        self._name, self._module, self._device, self._required = name, module, device, required
        self._rows: int | None = rows
        self._usual: Callable[..., Any] = torch.compile(module.forward) if compiled else module.forward
        self._captured: tuple[Any, Callable[..., Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = *args, *kwargs.values()
        if not self._module.training or not torch.is_grad_enabled() or not all(map(self._has_rows, inputs)):
            return self._usual(*args, **kwargs)
        kind = (
            tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in inputs),
            tuple(kwargs),
            torch.is_autocast_enabled(self._device.type),
        )
        if self._captured is None:
            graph = self._capture(inputs, tuple(kwargs))
            if graph is None:
                return self._usual(*args, **kwargs)
            self._captured = kind, graph
        captured, graph = self._captured
        return graph(*inputs) if kind == captured else self._usual(*args, **kwargs)

    def _has_rows(self, value: Any) -> bool:
        # While a pipeline traces the model, it is no tensor.
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self._rows

    def _capture(self, inputs: tuple[Tensor, ...], keywords: tuple[str, ...]) -> Callable[..., Any] | None:
        """Returns the graph, or None if there can be none. It runs some passes first, which leave no trace."""
        kind = self._device.type
        samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)
        self._move_constants()
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]  # such as running statistics
        precision = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        try:
            # A weight that autocast has cast is not to be found in memory when the graph is replayed.
            with (
                torch.random.fork_rng([self._device] if kind == "cuda" else []),
                torch.autocast(kind, *precision, cache_enabled=False),
                _beside_other_threads(),
            ):
                callables = _Callable(self._module, self._usual, keywords)
                graph = torch.cuda.make_graphed_callables(callables, samples, allow_unused_input=True)
        except RuntimeError as error:
            said = f"cuda_graphs: {self._name} of this model cannot be captured: {str(error).splitlines()[0]}"
            if self._required:
                raise ValueError(f"{said}; train without the flag") from error
            _LOG.warning("%s; it runs as without the flag", said)
            self._rows = None
            return None
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return graph

    def _move_constants(self) -> None:
        """Moves tensors that are no buffers, such as indices in some versions of TorchRec's DLRM, to the device.

        Every step would copy them from the host, which a graph cannot contain.
        """
        for module in self._module.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) and value.device.type != self._device.type:
                    setattr(module, name, value.to(self._device))


@contextmanager
def _beside_other_threads() -> Iterator[None]:
    """Lets other threads use the GPU during a capture, as the one that page-locks batches does; it would end there."""
    usual = torch.cuda.graph
    torch.cuda.graph = partial(usual, capture_error_mode="thread_local")  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.cuda.graph = usual  # type: ignore[misc]


class _Callable(nn.Module):
    """A module as ``make_graphed_callables`` takes one: with its parameters, without hooks, called by position."""

    def __init__(self, module: nn.Module, function: Callable[..., Any], keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self._function, self._keywords = module, function, keywords

    def forward(self, *inputs: Tensor) -> Any:
        places = len(inputs) - len(self._keywords)
        return self._function(*inputs[:places], **dict(zip(self._keywords, inputs[places:], strict=True)))
