"""Self-attention with narrow heads on a GPU, as Triton kernels.

Imported only where they run. One program computes one head of one row. All pairs of its tokens fit into registers, so
every pass reads and writes each tensor once and takes one launch: at small batches launches are what a step waits for.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program holds a square of the next power of two of tokens.
MAX_TOKENS = 128


@triton.jit
def _forward(
    qkv,
    out,
    highest,
    inverse,
    row_stride,
    token_stride,
    column_stride,
    tokens,
    heads,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    width = heads * HEAD_DIM
    lane = tl.arange(0, BLOCK)
    there = lane < tokens
    source = qkv + row * row_stride + lane * token_stride + head * HEAD_DIM * column_stride
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    for d in tl.static_range(HEAD_DIM):
        query = tl.load(source + d * column_stride, there, 0).to(tl.float32) * scale
        key = tl.load(source + (width + d) * column_stride, there, 0).to(tl.float32)
        scores += query[:, None] * key[None, :]
    scores = tl.where(there[None, :], scores, float("-inf"))
    most = tl.max(scores, 1)
    weights = tl.exp2(scores - most[:, None])
    factor = 1 / tl.sum(weights, 1)
    target = (row * tokens + lane) * heads + head
    tl.store(highest + target, most, there)
    tl.store(inverse + target, factor, there)
    for d in tl.static_range(HEAD_DIM):
        value = tl.load(source + (2 * width + d) * column_stride, there, 0).to(tl.float32)
        result = tl.sum(weights * value[None, :], 1) * factor
        tl.store(out + target * HEAD_DIM + d, result.to(out.dtype.element_ty), there)


@triton.jit
def _backward(
    grad,
    qkv,
    out,
    highest,
    inverse,
    qkv_grad,
    grad_row_stride,
    grad_token_stride,
    grad_column_stride,
    row_stride,
    token_stride,
    column_stride,
    tokens,
    heads,
    scale,
    slope_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    width = heads * HEAD_DIM
    lane = tl.arange(0, BLOCK)
    there = lane < tokens
    source = qkv + row * row_stride + lane * token_stride + head * HEAD_DIM * column_stride
    above = grad + row * grad_row_stride + lane * grad_token_stride + head * HEAD_DIM * grad_column_stride
    target = (row * tokens + lane) * heads + head
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    slopes = tl.zeros((BLOCK, BLOCK), tl.float32)
    delta = tl.zeros((BLOCK,), tl.float32)
    for d in tl.static_range(HEAD_DIM):
        query = tl.load(source + d * column_stride, there, 0).to(tl.float32) * scale
        key = tl.load(source + (width + d) * column_stride, there, 0).to(tl.float32)
        scores += query[:, None] * key[None, :]
        value = tl.load(source + (2 * width + d) * column_stride, there, 0).to(tl.float32)
        direction = tl.load(above + d * grad_column_stride, there, 0).to(tl.float32)
        slopes += direction[:, None] * value[None, :]
        delta += direction * tl.load(out + target * HEAD_DIM + d, there, 0).to(tl.float32)
    most = tl.load(highest + target, there, 0)
    factor = tl.load(inverse + target, there, 0)
    scores = tl.where(there[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - most[:, None]) * factor[:, None]
    slopes = weights * (slopes - delta[:, None])
    # The gradient is contiguous: (row, token, 3 * heads * HEAD_DIM).
    end = qkv_grad + (row * tokens + lane) * 3 * width + head * HEAD_DIM
    for d in tl.static_range(HEAD_DIM):
        query = tl.load(source + d * column_stride, there, 0).to(tl.float32)
        key = tl.load(source + (width + d) * column_stride, there, 0).to(tl.float32)
        direction = tl.load(above + d * grad_column_stride, there, 0).to(tl.float32)
        of_query = tl.sum(slopes * key[None, :], 1) * slope_scale
        of_key = tl.sum(slopes * query[:, None], 0) * slope_scale
        of_value = tl.sum(weights * direction[:, None], 0)
        kind = qkv_grad.dtype.element_ty
        tl.store(end + d, of_query.to(kind), there)
        tl.store(end + width + d, of_key.to(kind), there)
        tl.store(end + 2 * width + d, of_value.to(kind), there)


def forward(qkv: Tensor, out: Tensor, highest: Tensor, inverse: Tensor, heads: int) -> None:
    """Fills ``out``, and what :func:`backward` needs of every query: its largest score and the inverse of its sum.

    Args:
        qkv: ``(B, N, 3 * heads * head_dim)`` of any strides, N at most ``MAX_TOKENS``.
        out: ``(B, N, heads * head_dim)``, contiguous.
        highest: ``(B, N, heads)`` of float32, contiguous.
        inverse: the same.
        heads: how many.
    """
    rows, tokens, columns = qkv.shape
    if not qkv.numel():
        return
    head_dim = columns // (3 * heads)
    with torch.cuda.device_of(qkv):
        _forward[(rows * heads,)](
            *(qkv, out, highest, inverse, *qkv.stride(), tokens, heads, _scale(head_dim)),
            HEAD_DIM=head_dim,
            **_size(tokens),
        )


def backward(
    grad: Tensor, qkv: Tensor, out: Tensor, highest: Tensor, inverse: Tensor, qkv_grad: Tensor, heads: int
) -> None:
    """Fills ``qkv_grad``, contiguous, given the gradient of ``out``, of any strides. See :func:`forward`."""
    rows, tokens, columns = qkv.shape
    if not qkv.numel():
        return
    head_dim = columns // (3 * heads)
    with torch.cuda.device_of(qkv):
        _backward[(rows * heads,)](
            *(grad, qkv, out, highest, inverse, qkv_grad, *grad.stride(), *qkv.stride(), tokens, heads),
            *(_scale(head_dim), 1 / math.sqrt(head_dim)),
            HEAD_DIM=head_dim,
            **_size(tokens),
        )


def _scale(head_dim: int) -> float:
    """Scores are in powers of two, which the hardware computes."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _size(tokens: int) -> dict[str, int]:
    """The edge of a program's square, and warps for about 32 pairs of tokens to a thread."""
    block = max(16, triton.next_power_of_2(tokens))
    return {"BLOCK": block, "num_warps": max(1, block * block // 1024)}
