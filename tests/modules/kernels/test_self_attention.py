import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import on_threads
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape


def _reference(qkv: Tensor, heads: int) -> Tensor:
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _both(qkv: Tensor, heads: int) -> list[tuple[Tensor, Tensor]]:
    """Results and gradients of the kernel and of PyTorch."""
    assert has_kernel(qkv.shape[2] // (3 * heads), qkv.dtype == torch.float64), "this machine has no C++ compiler"
    results = []
    for function in (self_attention, _reference):
        leaf = qkv.detach().requires_grad_()
        out = function(leaf, heads)
        direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        (gradient,) = torch.autograd.grad(out, leaf, direction)
        results.append((out.detach(), gradient))
    return results


def _equal(results: list[tuple[Tensor, Tensor]]) -> None:
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[results[0][0].dtype]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(
    rows=st.integers(0, 5),
    tokens=st.integers(1, 20),
    heads=st.sampled_from((1, 3, 8, 16)),
    head_dim=st.sampled_from((1, 2, 8)),
    double=st.booleans(),
    layout=st.sampled_from(("contiguous", "tokens first", "every other", "expanded")),
)
def test_it_is_scaled_dot_product_attention(rows, tokens, heads, head_dim, double, layout):
    dtype, columns = (torch.float64 if double else torch.float32), 3 * heads * head_dim
    qkv = torch.randn(rows, tokens, columns, dtype=dtype)
    if layout == "tokens first":
        qkv = torch.randn(rows, columns, tokens, dtype=dtype).transpose(1, 2)
    elif layout == "every other":
        qkv = torch.randn(rows, 2 * tokens, 2 * columns, dtype=dtype)[:, ::2, ::2]
    elif layout == "expanded":
        qkv = torch.randn(1, tokens, columns, dtype=dtype).expand(rows, -1, -1)
    _equal(_both(qkv, heads))


def test_scores_may_lie_far_apart():
    for scale in (1e-3, 30.0, 1e3):
        (found, found_gradient), (expected, expected_gradient) = _both(scale * torch.randn(3, 11, 48), 8)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)
        torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_is_not_hidden(value: float):
    qkv = torch.randn(2, 5, 48)
    qkv[1, 2, 0] = value  # of a query of the first head
    (found, gradient), _ = _both(qkv, 8)
    assert found[1, 2, :2].isnan().all() and gradient[1, :, 16:18].isnan().all()
    assert found[0].isfinite().all() and found[1, :, 2:].isfinite().all() and gradient[0].isfinite().all()


def test_an_operator_as_pytorch_expects_one():
    for qkv in (torch.randn(3, 5, 48), torch.randn(0, 5, 48), torch.randn(2, 48, 3).transpose(1, 2)):
        torch.library.opcheck(torch.ops.nasrec.self_attention.default, (qkv.requires_grad_(), 8))


def test_gradients_are_those_of_small_differences():
    assert has_kernel(1, double=True)
    qkv = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda leaf: self_attention(leaf, 8), qkv)
    with pytest.raises(NotImplementedError, match="second derivative; set the environment variable NASREC_ATTENTION"):
        torch.autograd.gradgradcheck(lambda leaf: self_attention(leaf, 8), qkv)


def test_threads_do_not_change_a_bit():
    assert has_kernel(2)
    results = on_threads(lambda qkv: self_attention(qkv, 8), torch.randn(100, 40, 48, requires_grad=True))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_half_precision_is_computed_in_float32():
    assert has_kernel(2)
    qkv = torch.randn(2, 7, 48, dtype=torch.bfloat16)
    assert torch.equal(self_attention(qkv, 8), self_attention(qkv.float(), 8).bfloat16())


@pytest.mark.parametrize(
    ("qkv", "heads", "words"),
    [
        (torch.zeros(2, 3, 47), 8, r"found \(2, 3, 47\), heads 8"),
        (torch.zeros(3, 48), 8, r"expected shape \(B, N, 3 \* heads \* head_dim\), found \(3, 48\)"),
        (torch.zeros(2, 3, 27), 1, "heads of at most 8 columns, found torch.float32 and 9"),
    ],
)
def test_other_shapes_are_refused(qkv: Tensor, heads: int, words: str):
    with pytest.raises(ValueError, match=words):
        self_attention(qkv, heads)


def test_products_are_counted():
    assert has_kernel(2)
    qkv = torch.randn(3, 5, 48, requires_grad=True)
    pairs = 3 * 8 * 5 * 5
    with FlopCounterMode(display=False) as counter:
        out = self_attention(qkv, 8)
    assert counter.get_total_flops() == pairs * 2 * 2 * 2  # two products, two columns, two operations
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == pairs * 5 * 2 * 2


def _module(embedding_dim: int = 16) -> tuple[Attention, BlockInputs]:
    operator = Attention(BlockShape({}, {}, {}, {"0": 6}, embedding_dim), 9)
    return operator, BlockInputs([], [], [], [torch.randn(4, 6, embedding_dim)])


def test_models_use_it_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch):
    operator, inputs = _module()
    used = []
    for wanted in ("kernel", "sdpa"):
        monkeypatch.setenv("NASREC_ATTENTION", wanted)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            out = operator(inputs)
        used.append(({event.key for event in profile.key_averages()}, out))
    assert "nasrec::self_attention" in used[0][0] and "nasrec::self_attention" not in used[1][0]
    torch.testing.assert_close(used[0][1], used[1][1])
    monkeypatch.setenv("NASREC_ATTENTION", "fast")
    with pytest.raises(ValueError, match="NASREC_ATTENTION: expected kernel or sdpa, found 'fast'"):
        operator(inputs)


def test_without_a_compiler_there_is_one_warning_and_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    operator, inputs = _module(embedding_dim=48)  # heads of 6 columns, which nobody else needs
    monkeypatch.setenv("NASREC_ATTENTION", "sdpa")
    expected = operator(inputs)
    monkeypatch.setenv("NASREC_ATTENTION", "kernel")
    monkeypatch.setenv("CXX", "a-compiler-that-nobody-has")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(operator(inputs), expected)
    (record,) = caplog.records
    assert "attention runs as scaled_dot_product_attention" in record.getMessage()
    assert "a-compiler-that-nobody-has" in record.getMessage()


def test_a_graph_that_leaves_needs_no_library_of_ours():
    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operator = _module()[0]

        def forward(self, tokens: Tensor) -> Tensor:
            return self.operator(BlockInputs([], [], [], [tokens]))

    model, tokens = Alone().eval(), torch.randn(4, 6, 16)
    batch = {"tokens": {0: torch.export.Dim("batch", min=1, max=100)}}
    exported = torch.export.export(model, (tokens,), dynamic_shapes=batch)
    assert "nasrec" not in str(exported.graph)
    operators = {node.kind() for node in torch.jit.trace(model, (tokens,)).inlined_graph.nodes()}
    assert "aten::scaled_dot_product_attention" in operators and "nasrec::self_attention" not in operators
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(tokens), model(tokens))
