"""The kernels for GPUs, on the CPU: this file runs itself again under Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

CASES = [
    (2, 5, 8, 2, "contiguous", "float32"),
    (1, 1, 8, 2, "contiguous", "float32"),
    (0, 5, 8, 2, "contiguous", "float32"),
    (2, 17, 3, 1, "tokens first", "float32"),
    (1, 33, 1, 8, "every other", "float32"),
    (1, 16, 8, 2, "contiguous", "bfloat16"),
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_are_scaled_dot_product_attention():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (*_, kind), differences in zip(CASES, json.loads(done.stdout), strict=True):
        tolerance = {"float32": 2e-6, "bfloat16": 2e-2}[kind]
        assert all(difference < tolerance for difference in differences), differences


def _differences(rows: int, tokens: int, heads: int, head_dim: int, layout: str, kind: torch.dtype) -> list[float]:
    """Returns the largest difference of the result and that of the gradient, from PyTorch's in float64."""
    from nasrec_torchrec.modules.kernels.self_attention_triton import backward, forward

    columns = 3 * heads * head_dim
    if layout == "tokens first":
        qkv = torch.randn(rows, columns, tokens).to(kind).transpose(1, 2)
    elif layout == "every other":
        qkv = torch.randn(rows, 2 * tokens, 2 * columns).to(kind)[:, ::2, ::2]
    else:
        qkv = torch.randn(rows, tokens, columns).to(kind)
    grad = torch.randn(rows, heads * head_dim, tokens).to(kind).transpose(1, 2)
    leaf = qkv.double().requires_grad_()
    query, key, value = leaf.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad.double())

    # What a kernel leaves unwritten stays NaN.
    out, qkv_grad = torch.full(grad.shape, torch.nan, dtype=kind), torch.full(qkv.shape, torch.nan, dtype=kind)
    highest, inverse = torch.full((2, rows, tokens, heads), torch.nan)
    forward(qkv, out, highest, inverse, heads)
    backward(grad, qkv, out, highest, inverse, qkv_grad, heads)
    return [_largest(out - expected.detach()), _largest(qkv_grad - expected_grad)]


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps([_differences(*case, getattr(torch, kind)) for *case, kind in CASES]))
