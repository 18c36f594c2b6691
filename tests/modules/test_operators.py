import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.dot_product import lower_triangle, num_projected_tokens
from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape
from nasrec_torchrec.modules.registry import OPERATORS
from nasrec_torchrec.operator_kinds import KINDS

SHAPE = BlockShape(
    dense={"0": 5, "1": 11}, left={"0": 5}, right={"1": 11}, tokens={"0": 6, "1": 3, "1_merged": 8}, embedding_dim=16
)


def _inputs(shape: BlockShape, batch_size: int) -> BlockInputs:
    return BlockInputs(
        [torch.randn(batch_size, width, requires_grad=True) for width in shape.dense.values()],
        [torch.randn(batch_size, width, requires_grad=True) for width in shape.left.values()],
        [torch.randn(batch_size, width) for width in shape.right.values()],
        [torch.randn(batch_size, width, shape.embedding_dim) for width in shape.tokens.values()],
    )


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("use_layernorm", [False, True])
@given(width=st.integers(1, 40), batch_size=st.integers(1, 5))
def test_every_operator_emits_its_width_and_passes_gradients(name, use_layernorm, width, batch_size):
    operator = OPERATORS[name](SHAPE, width, use_layernorm, shared=False, device=None)
    out = operator(_inputs(SHAPE, batch_size))
    assert out.shape == ((batch_size, width, 16) if KINDS[name].side == "sparse" else (batch_size, width))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in operator.parameters())


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_ready_for_meta_and_reset(name):
    operator = OPERATORS[name](SHAPE, 8, True, shared=False, device=torch.device("meta"))
    assert all(parameter.is_meta for parameter in operator.parameters())
    operator.to_empty(device="cpu")
    for module in operator.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in operator.parameters())
    assert torch.isfinite(operator(_inputs(SHAPE, 2))).all()


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 9), st.booleans())
def test_multi_source_linear_is_a_linear_over_the_concatenation(widths, out_features, bias):
    linear = MultiSourceLinear({str(i): width for i, width in enumerate(widths)}, out_features, bias)
    inputs = [torch.randn(3, 2, width) for width in widths]
    weight = torch.cat([linear.weight(str(i)) for i in range(len(widths))], dim=1)
    torch.testing.assert_close(linear(inputs), F.linear(torch.cat(inputs, -1), weight, linear.bias))


def test_multi_source_linear_starts_as_one_xavier_linear():
    linear = MultiSourceLinear({"a": 100, "b": 300}, 200)
    bound = (6 / (400 + 200)) ** 0.5
    for source in "ab":
        assert linear.weight(source).abs().max() <= bound
        assert float(linear.weight(source).detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not linear.bias.any()


@given(st.integers(1, 12), st.integers(1, 12))
def test_lower_triangle_of_fewer_tokens_is_a_prefix(few, more):
    gram = torch.randn(2, few + more, few + more)
    small, large = lower_triangle(gram[:, :few, :few]), lower_triangle(gram)
    assert torch.equal(small, large[:, : small.shape[1]])
    assert large.shape[1] == (few + more) * (few + more - 1) // 2


def test_operator_balancing():
    assert [num_projected_tokens(width) for width in (16, 32, 128, 512, 768, 1024)] == [6, 8, 16, 32, 39, 45]


def test_attention_equals_torch_multihead_attention():
    operator = OPERATORS["attention"](SHAPE, 7, False, shared=False, device=None)
    reference = torch.nn.MultiheadAttention(16, 8, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(operator.project_qkv.weight)
        reference.out_proj.weight.copy_(operator.project_heads.weight)
    inputs = _inputs(SHAPE, 4)
    tokens = operator.linear([t.transpose(1, 2) for t in inputs.tokens]).transpose(1, 2)
    attended = operator.attention_norm(reference(tokens, tokens, tokens, need_weights=False)[0] + tokens)
    expected = operator.output_norm(attended + operator.contract(torch.relu(operator.expand(attended))))
    torch.testing.assert_close(operator(inputs), expected)


@pytest.mark.parametrize(("left", "right"), [(3, 7), (7, 3), (5, 5)])
@pytest.mark.parametrize("name", ["sigmoid_gating", "sum"])
def test_binary_operators_pad_the_narrower_operand(name, left, right):
    shape = BlockShape({"0": 2}, {"0": left}, {"1": right}, {"0": 4}, embedding_dim=16)
    operator = OPERATORS[name](shape, 9, False, shared=False, device=None)
    inputs = _inputs(shape, 4)
    padded = max(left, right)
    a, b = (F.pad(x[0], (0, padded - x[0].shape[1])) for x in (inputs.left, inputs.right))
    if name == "sigmoid_gating":
        square = F.pad(operator.gate.weight("0"), (0, padded - left), value=123.0)  # meets only padding
        expected = operator.project(torch.sigmoid(F.linear(a, square, operator.gate.bias)) * b)
    else:
        expected = operator.project(a + b)
    torch.testing.assert_close(operator(inputs), expected)


def test_attention_says_which_embedding_dim_it_needs():
    shape = BlockShape({"0": 5}, {"0": 5}, {"0": 5}, {"0": 6}, embedding_dim=10)
    with pytest.raises(ValueError, match="multiple of 8, found 10"):
        OPERATORS["attention"](shape, 7, False, shared=False, device=None)


@pytest.mark.parametrize("scale", (0.1, 1.0, 5.0, 50.0))
@pytest.mark.parametrize("embedding_dim", (8, 16, 32))
def test_attention_for_compilers_is_attention(scale: float, embedding_dim: int, monkeypatch: pytest.MonkeyPatch):
    """Also where the scores of a query lie far apart; where they are absurd it stays finite."""
    shape = BlockShape({}, {}, {}, {"0": 5}, embedding_dim)
    operator = Attention(shape, 20)
    torch.nn.init.normal_(operator.project_qkv.weight, std=scale / embedding_dim**0.5)
    torch.nn.init.normal_(operator.project_qkv.bias)
    inputs = _inputs(shape, 7)
    with torch.no_grad():
        expected = operator(inputs)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        found = operator(inputs)
    assert found.isfinite().all()
    if scale <= 5:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
