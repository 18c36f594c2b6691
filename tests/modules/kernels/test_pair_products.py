import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import on_threads
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nasrec_torchrec.modules.dot_product import DotProduct, lower_triangle
from nasrec_torchrec.modules.kernels import pair_products as kernels
from nasrec_torchrec.modules.kernels.pair_products import has_kernel, pair_products
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape


def _reference(tokens: Tensor) -> Tensor:
    return lower_triangle(torch.bmm(tokens.transpose(1, 2), tokens))


def _both(tokens: Tensor, padded: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Results and gradients of the kernel and of PyTorch."""
    assert has_kernel(tokens.dtype == torch.float64), "this machine has no C++ compiler"
    results = []
    for function in (pair_products, _reference):
        leaf = tokens.detach().requires_grad_()
        out = function(leaf)
        rows, pairs = out.shape
        room = torch.linspace(-1, 1, rows * (pairs + 3), dtype=out.dtype).view(rows, pairs + 3)[:, :pairs]
        (gradient,) = torch.autograd.grad(out, leaf, room if padded else room.contiguous())
        results.append((out.detach(), gradient))
    return results


@given(
    rows=st.integers(0, 5),
    columns=st.integers(1, 18),
    tokens=st.integers(2, 40),
    double=st.booleans(),
    layout=st.sampled_from(("contiguous", "columns first", "every other", "expanded")),
    padded=st.booleans(),
)
def test_it_is_the_lower_triangle_of_a_matrix_product(rows, columns, tokens, double, layout, padded):
    dtype = torch.float64 if double else torch.float32
    given = torch.randn(rows, columns, tokens, dtype=dtype)
    if layout == "columns first":
        given = torch.randn(rows, tokens, columns, dtype=dtype).transpose(1, 2)
    elif layout == "every other":
        given = torch.randn(rows, 2 * columns, 2 * tokens, dtype=dtype)[:, ::2, ::2]
    elif layout == "expanded":
        given = torch.randn(1, columns, tokens, dtype=dtype).expand(rows, -1, -1)
    tolerance = 1e-12 if double else 1e-4
    for found, expected in zip(*_both(given, padded), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_one_token_has_no_pairs():
    assert has_kernel()
    tokens = torch.randn(3, 4, 1, requires_grad=True)
    out = pair_products(tokens)
    out.sum().backward()
    assert out.shape == (3, 0) and tokens.grad is not None and not tokens.grad.any()


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_is_not_hidden(value: float):
    tokens = torch.randn(2, 4, 11)
    tokens[1, 2, 5] = value
    (found, gradient), (expected, _) = _both(tokens)
    assert torch.equal(found.isfinite(), expected.isfinite()) and found[0].isfinite().all()
    assert gradient[0].isfinite().all() and not gradient[1, 2].isfinite().all()


def test_an_operator_as_pytorch_expects_one():
    for tokens in (torch.randn(3, 5, 9), torch.randn(0, 5, 9), torch.randn(2, 9, 3).transpose(1, 2)):
        torch.library.opcheck(torch.ops.nasrec.pair_products.default, (tokens.requires_grad_(),))


def test_gradients_are_those_of_small_differences():
    tokens = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    assert has_kernel(True) and torch.autograd.gradcheck(pair_products, tokens)
    with pytest.raises(NotImplementedError, match="pair_products has no second derivative"):
        torch.autograd.gradgradcheck(pair_products, tokens)


def test_threads_do_not_change_a_bit():
    assert has_kernel()
    results = on_threads(pair_products, torch.randn(300, 16, 46, requires_grad=True))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    "tokens", (torch.zeros(3, 4), torch.zeros(1, 2, 3, dtype=torch.bfloat16)), ids=("shape", "type")
)
def test_other_tensors_are_refused(tokens: Tensor):
    with pytest.raises(ValueError, match=r"tokens: expected float32 or float64 of shape \(B, E, K\), found torch\."):
        pair_products(tokens)


def test_products_count_as_those_of_a_matrix_product():
    counts = []
    for function in (pair_products, _reference):
        tokens = torch.randn(3, 5, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            function(tokens).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_models_use_it_and_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog):
    operator = DotProduct(BlockShape({"0": 5}, {}, {}, {"0": 6}, 16), 32)
    inputs, results = BlockInputs([torch.randn(4, 5)], [], [], [torch.randn(4, 6, 16)]), []
    for compiler in ("g++", "/no/compiler"):
        monkeypatch.setenv("CXX", compiler)
        kernels._kernel.cache_clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            out = operator(inputs)
        results.append((out, "nasrec::pair_products" in {event.key for event in profile.key_averages()}))
        if compiler == "/no/compiler":
            with caplog.at_level(logging.WARNING):
                has_kernel(True)
    kernels._kernel.cache_clear()
    torch.testing.assert_close(results[0][0], results[1][0])
    assert (results[0][1], results[1][1]) == (True, False)
    assert "products of pairs run as a matrix product, several times slower: $CXX is /no/compiler" in caplog.text
