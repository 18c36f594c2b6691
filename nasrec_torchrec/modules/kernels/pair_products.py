"""Products of all pairs of tokens as an operator of PyTorch: ``torch.ops.nasrec.pair_products``."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nasrec_torchrec.modules.kernels.compiled_library import compiled_function

SCALARS = torch.float32, torch.float64
_SOURCE = Path(__file__).with_suffix(".cpp")


@torch.compiler.assume_constant_result
def has_kernel(double: bool = False) -> bool:
    """Returns whether the operator can run on the CPU of this machine.

    It compiles its kernel, once per machine; where there is no C++ compiler the result is false, which is logged once.
    Callers then take a matrix product of all tokens with all tokens.

    Args:
        double: float64 instead of float32.
    """
    return _kernel(double) is not None


@cache
def _kernel(double: bool) -> Any:
    definitions = {"NASREC_SCALAR": "double" if double else "float"}
    otherwise = "products of pairs run as a matrix product, several times slower"
    return compiled_function(_SOURCE, definitions, "nasrec_pair_products", otherwise)


def _run(tokens: Tensor, products: Tensor, tokens_grad: Tensor | None = None) -> None:
    """Runs the kernel forward, or backward from the gradient of the products to that of the tokens."""
    kernel = _kernel(tokens.dtype == torch.float64)
    if kernel is None:
        raise RuntimeError("nasrec::pair_products: its kernel could not be compiled on this machine")
    given = (tokens, products) if tokens_grad is None else (tokens, products, tokens_grad)
    data = [ctypes.c_void_p(tensor.data_ptr()) for tensor in given] + [None] * (3 - len(given))
    strides = [*tokens.stride(), products.stride(0), *(() if tokens_grad is None else tokens_grad.stride())]
    rows, columns, count = tokens.shape
    # A thread takes 30 microseconds to start, in which another one computes some hundred thousand products.
    threads = max(1, min(torch.get_num_threads(), rows * columns * count * count // 2_000_000))
    sizes = [ctypes.c_int64(size) for size in (rows, columns, count, threads)]
    backwards = ctypes.c_int(tokens_grad is not None)
    if kernel(backwards, *data, (ctypes.c_int64 * len(strides))(*strides), *sizes):
        raise MemoryError("nasrec::pair_products: no memory left")


@torch.library.custom_op("nasrec::pair_products", mutates_args=(), device_types="cpu")
def _pair_products(tokens: Tensor) -> Tensor:
    products = _products(tokens)
    _run(tokens, products)
    return products


@_pair_products.register_fake
def _products(tokens: Tensor) -> Tensor:
    if tokens.dim() != 3 or tokens.dtype not in SCALARS:
        raise ValueError(
            f"tokens: expected float32 or float64 of shape (B, E, K), found {tokens.dtype} of {tuple(tokens.shape)}"
        )
    rows, _, count = tokens.shape
    return tokens.new_empty(rows, count * (count - 1) // 2)


@torch.library.custom_op("nasrec::pair_products_backward", mutates_args=(), device_types="cpu")
def _pair_products_backward(grad: Tensor, tokens: Tensor) -> Tensor:
    tokens_grad = _tokens_grad(grad, tokens)
    _run(tokens, grad if grad.stride(1) == 1 else grad.contiguous(), tokens_grad)
    return tokens_grad


@_pair_products_backward.register_fake
def _tokens_grad(grad: Tensor, tokens: Tensor) -> Tensor:
    return tokens.new_empty(tokens.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    found: Tensor = torch.ops.nasrec.pair_products_backward(grad, *ctx.saved_tensors)
    return found


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError("nasrec::pair_products has no second derivative")


_pair_products.register_autograd(_backward, setup_context=_save)
_pair_products_backward.register_autograd(_no_second_derivative)


# Those of the matrix product that it replaces, so that a network costs the same on every machine.
@register_flop_formula(torch.ops.nasrec.pair_products)
def _flops(tokens_shape: torch.Size, *_: Any, **__: Any) -> int:
    rows, columns, count = tokens_shape
    return 2 * rows * count * count * columns


@register_flop_formula(torch.ops.nasrec.pair_products_backward)
def _backward_flops(_: torch.Size, tokens_shape: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * _flops(tokens_shape)


def pair_products(tokens: Tensor) -> Tensor:
    """Products of all pairs of different tokens, on the CPU where :func:`has_kernel` is true.

    Two runs on one machine give the same bits, whatever the number of threads. Gradients can be taken once.

    Args:
        tokens: ``(B, E, K)`` in float32 or float64, of any strides.

    Returns:
        Tensor: ``(B, K * (K - 1) / 2)``, each token's products with those before it, token after token.

    Raises:
        ValueError: for another shape or type.
    """
    products: Tensor = torch.ops.nasrec.pair_products(tokens)
    return products
