from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasrec_torchrec.modules.kernels.products import PADDED, activated, products, runs_eagerly
from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear


def _reference(bias: Tensor | None, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    out = torch.cat(list(inputs), dim=-1) @ torch.cat(list(weights), dim=1).t()
    return out if bias is None else out + bias


@given(
    shape=st.sampled_from(((4,), (0,), (3, 5))),
    widths=st.lists(st.sampled_from((0, 1, 7, PADDED + 3, PADDED + 8)), min_size=1, max_size=3),
    columns=st.sampled_from((1, 5, PADDED + 5)),
    biased=st.booleans(),
    turned=st.booleans(),
)
def test_it_is_a_linear_over_the_concatenation(shape, widths, columns, biased, turned):
    def make(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, requires_grad=True)

    bias = make(columns) if biased else None
    inputs, weights = [make(*shape, width) for width in widths], [make(columns, width) for width in widths]
    if turned:  # as tokens are whose columns come first in memory
        inputs = [make(width, *shape).movedim(0, -1) for width in widths]
    results = []
    for function in (products, _reference):
        out = function(bias, inputs, weights)
        grad = (
            torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape[::-1]).permute(*range(out.dim())[::-1])
        )
        leaves = [tensor for tensor in (bias, *inputs, *weights) if tensor is not None]
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(products(bias, inputs, weights), results[0][0])


def test_flops_are_those_of_the_products():
    inputs = [torch.randn(5, width, requires_grad=True) for width in (3, 4)]
    weights = [torch.randn(2, 3), torch.randn(2, 4)]
    with FlopCounterMode(display=False) as counter:
        out = products(torch.zeros(2), inputs, weights)
    assert counter.get_total_flops() == 2 * 5 * 2 * (3 + 4)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 5 * 2 * (3 + 4)


def test_what_needs_no_gradient_gets_none():
    weight, data = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    products(None, [data], [weight]).sum().backward()
    assert data.grad is None and weight.grad is not None
    products(None, [data], [weight.detach()]).sum()
    assert not products(None, [data], [weight.detach()]).requires_grad


def test_there_are_second_derivatives():
    def make(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, requires_grad=True)

    def function(bias: Tensor, first: Tensor, second: Tensor, *weights: Tensor) -> Tensor:
        return activated(nn.ReLU(), products(bias, [first, second], weights)).square().sum()

    given = make(4), make(3, 2), make(3, PADDED + 1), make(4, 2), make(4, PADDED + 1)
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("turned", (False, True))
def test_relu_takes_the_place_of_what_nobody_else_reads(turned: bool):
    fresh = torch.randn(3, 4, 5)
    leaf = fresh.clone().requires_grad_()
    grad = torch.randn(3, 5, 4).transpose(1, 2) if turned else torch.randn(3, 4, 5)
    (expected,) = torch.autograd.grad(leaf.relu(), leaf, grad)
    copied = leaf * 1
    out = activated(nn.ReLU(), copied)
    (found,) = torch.autograd.grad(out, leaf, grad)
    assert torch.equal(out, fresh.relu()) and torch.equal(found, expected)
    assert out.data_ptr() == copied.data_ptr() and found.is_contiguous()
    with torch.no_grad():
        again = fresh.clone()
        assert torch.equal(activated(nn.ReLU(), again), fresh.relu()) and torch.equal(again, fresh.relu())
    # A view belongs to somebody, and other activations are as they are.
    base = fresh.clone()
    assert torch.equal(activated(nn.ReLU(), base[0]), fresh[0].relu()) and torch.equal(base, fresh)
    assert torch.equal(activated(nn.GELU(), base), nn.functional.gelu(fresh)) and torch.equal(base, fresh)


@pytest.mark.parametrize("make", (lambda: MultiSourceLinear({"0": 300, "1": 5}, 7), lambda: XavierLinear(301, 7)))
def test_layers_compile_and_run_in_other_precisions(make: Callable[[], nn.Module]):
    layer = make()
    widths = list(layer.in_features.values()) if isinstance(layer, MultiSourceLinear) else [301]
    inputs = [torch.randn(6, width) for width in widths]
    given = inputs if isinstance(layer, MultiSourceLinear) else inputs[0]
    expected = layer(given)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(given), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_eagerly(inputs[0]) and layer(given).dtype == torch.bfloat16
    exported = torch.export.export(layer, (given,))
    assert {str(node.target) for node in exported.graph.nodes if "nasrec" in str(node.target)} == set()
    torch.testing.assert_close(exported.module()(given), expected)
