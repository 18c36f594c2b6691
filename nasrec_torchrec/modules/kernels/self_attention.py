"""Self-attention with narrow heads as an operator of PyTorch: ``torch.ops.nasrec.self_attention``."""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nasrec_torchrec.modules.kernels.compiled_library import compiled_function

MAX_HEAD_DIM = 8
SWITCH = "NASREC_ATTENTION"
_SCALARS = torch.float32, torch.float64
_CUDA_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_SOURCE = Path(__file__).with_suffix(".cpp")


@torch.compiler.assume_constant_result
def has_kernel(head_dim: int, double: bool = False, device: str = "cpu", tokens: int = 1) -> bool:
    """Returns whether the operator can run on this machine.

    On a CPU it compiles its kernel, once per machine; where there is no C++ compiler the result is false, which is
    logged once. On a GPU it needs Triton, which comes with PyTorch, and has neither float64 nor more than 128 tokens.
    Callers then use ``scaled_dot_product_attention`` instead. The environment variable ``NASREC_ATTENTION=sdpa`` makes
    it false too: for comparing a run, bit by bit, with one from before the kernel or from a machine without a compiler.

    Args:
        head_dim: columns of a head.
        double: float64 instead of float32.
        device: ``cpu`` or ``cuda``; there is no kernel for any other.
        tokens: how many a row has.

    Raises:
        ValueError: If the environment variable is neither ``kernel`` nor ``sdpa``.
    """
    wanted = os.environ.get(SWITCH, "kernel")
    if wanted not in ("kernel", "sdpa"):
        raise ValueError(f"{SWITCH}: expected kernel or sdpa, found {wanted!r}")
    if wanted == "sdpa" or not 1 <= head_dim <= MAX_HEAD_DIM:
        return False
    if device == "cuda":
        return not double and importlib.util.find_spec("triton") is not None and tokens <= _triton().MAX_TOKENS
    return device == "cpu" and _kernel(head_dim, double) is not None


@cache
def _triton() -> Any:
    from nasrec_torchrec.modules.kernels import self_attention_triton

    return self_attention_triton


@cache
def _kernel(head_dim: int, double: bool) -> Any:
    definitions = {"NASREC_SCALAR": "double" if double else "float", "NASREC_HEAD_DIM": str(head_dim)}
    otherwise = "attention runs as scaled_dot_product_attention, several times slower"
    return compiled_function(_SOURCE, definitions, "nasrec_self_attention", otherwise)


def _run(backwards: bool, heads: int, *tensors: Tensor) -> None:
    """Runs the kernel on tensors ``(B, N, columns)``, ``qkv`` first."""
    rows, tokens, columns = tensors[0].shape
    kernel = _kernel(columns // (3 * heads), tensors[0].dtype == torch.float64)
    if kernel is None:
        raise RuntimeError("nasrec::self_attention: its kernel could not be compiled on this machine")
    data = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    strides = (ctypes.c_int64 * (3 * len(tensors)))(*(stride for tensor in tensors for stride in tensor.stride()))
    sizes = [ctypes.c_int64(size) for size in (rows, tokens, heads, _threads(rows * heads * tokens * tokens))]
    if kernel(ctypes.c_int(backwards), data, strides, *sizes):
        raise MemoryError("nasrec::self_attention: no memory left")


def _threads(pairs: int) -> int:
    # A thread takes 30 microseconds to start, in which another one computes some ten thousand pairs.
    return max(1, min(torch.get_num_threads(), pairs // 200_000))


def _check(qkv: Tensor, heads: int) -> None:
    if qkv.dim() != 3 or heads < 1 or qkv.shape[2] % (3 * heads) or not qkv.shape[2]:
        raise ValueError(f"qkv: expected shape (B, N, 3 * heads * head_dim), found {tuple(qkv.shape)}, heads {heads}")
    types = _CUDA_TYPES if qkv.device.type == "cuda" else _SCALARS
    if qkv.dtype not in types or qkv.shape[2] // (3 * heads) > MAX_HEAD_DIM:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in types)
        raise ValueError(
            f"qkv: expected {names} and heads of at most {MAX_HEAD_DIM} columns, found {qkv.dtype} and "
            f"{qkv.shape[2] // (3 * heads)}"
        )


@torch.library.custom_op("nasrec::self_attention", mutates_args=(), device_types="cpu")
def _self_attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(qkv, heads)
    _run(False, heads, qkv, *outputs)
    return outputs


@_self_attention.register_fake
def _outputs(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(qkv, heads)
    rows, tokens, columns = qkv.shape
    exact = qkv.dtype if qkv.dtype in _SCALARS else torch.float32
    highest, inverse = (qkv.new_empty(rows, tokens, heads, dtype=exact) for _ in range(2))
    return qkv.new_empty(rows, tokens, columns // 3), highest, inverse


@_self_attention.register_kernel("cuda")
def _(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(qkv, heads)
    _triton().forward(qkv, *outputs, heads)
    return outputs


@torch.library.custom_op("nasrec::self_attention_backward", mutates_args=(), device_types="cpu")
def _self_attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, highest: Tensor, inverse: Tensor, heads: int
) -> Tensor:
    qkv_grad = qkv.new_empty(qkv.shape)
    _run(True, heads, qkv, out, highest, inverse, grad, qkv_grad)
    return qkv_grad


@_self_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, highest: Tensor, inverse: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape)


@_self_attention_backward.register_kernel("cuda")
def _(grad: Tensor, qkv: Tensor, out: Tensor, highest: Tensor, inverse: Tensor, heads: int) -> Tensor:
    qkv_grad = qkv.new_empty(qkv.shape)
    _triton().backward(grad, qkv, out, highest, inverse, qkv_grad, heads)
    return qkv_grad


def _save(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    out, highest, inverse = output
    ctx.mark_non_differentiable(highest, inverse)
    ctx.save_for_backward(inputs[0], out, highest, inverse)
    ctx.heads = inputs[1]


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    return torch.ops.nasrec.self_attention_backward(grad, *ctx.saved_tensors, ctx.heads), None


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(
        f"nasrec::self_attention has no second derivative; set the environment variable {SWITCH}=sdpa for it"
    )


_self_attention.register_autograd(_backward, setup_context=_save)
_self_attention_backward.register_autograd(_no_second_derivative)


@register_flop_formula(torch.ops.nasrec.self_attention)
def _flops(qkv_shape: torch.Size, *_: Any, **__: Any) -> int:
    rows, tokens, columns = qkv_shape
    return 4 * rows * tokens * tokens * (columns // 3)


@register_flop_formula(torch.ops.nasrec.self_attention_backward)
def _backward_flops(_: torch.Size, qkv_shape: torch.Size, *__: Any, **___: Any) -> int:
    rows, tokens, columns = qkv_shape
    return 10 * rows * tokens * tokens * (columns // 3)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """``softmax(query key^T / sqrt(head_dim)) value`` for every head, where :func:`has_kernel` is true.

    Computed in float32, or in float64 where the tensor is of it; other types are returned as they came. Two runs on one
    machine give the same bits, whatever the number of threads. Gradients can be taken once.

    Args:
        qkv: ``(B, N, 3 * heads * head_dim)`` of any strides: queries, keys and values side by side, each head by head,
            as one linear emits them. A head has 1 to 8 columns.
        heads: how many.

    Returns:
        Tensor: ``(B, N, heads * head_dim)``.

    Raises:
        ValueError: for another shape.
    """
    exact = qkv if qkv.dtype in _SCALARS or qkv.device.type == "cuda" else qkv.float()
    out: Tensor = torch.ops.nasrec.self_attention(exact, heads)[0]
    return out.to(qkv.dtype)
