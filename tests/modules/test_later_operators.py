"""The operators of later models beside their papers' equations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.crossnet import LowRankCrossNet

from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Operator
from nasrec_torchrec.modules.registry import OPERATORS

E = 16


def _dense(name: str, left: int, right: int, width: int, use_layernorm: bool = False) -> Operator:
    shape = BlockShape({"0": left, "1": right}, {"0": left}, {"1": right}, {"0": 3}, E)
    operator = OPERATORS[name](shape, width, use_layernorm, shared=False, device=None)
    return _randomized(operator)


def _sparse(name: str, tokens: dict[str, int], width: int) -> Operator:
    return _randomized(OPERATORS[name](BlockShape({}, {}, {}, tokens, E), width, False, shared=False, device=None))


def _randomized(operator: Operator) -> Operator:
    """No bias is zero and no LayerNorm weight is one, so that none of them can be forgotten."""
    for name, parameter in operator.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter)
    return operator


def _weight(linear: nn.Module) -> Tensor:
    return torch.cat([linear.weight(source) for source in linear.in_features], dim=1)


def test_flatten_is_a_linear_over_dense_features_and_embeddings():
    dense, tokens = torch.randn(4, 5), torch.randn(4, 3, E)
    columns = torch.cat([dense, tokens.flatten(1)], 1)
    shape = BlockShape({"0": 5}, {}, {}, {"0": 3}, E)
    inputs = BlockInputs([dense], [], [], [tokens])
    fits = OPERATORS["flatten"](shape, 5 + 3 * E, False, shared=False, device=None)
    assert torch.equal(fits(inputs), columns) and not list(fits.parameters())
    narrower = _randomized(OPERATORS["flatten"](shape, 7, False, shared=False, device=None))
    expected = F.linear(columns, _weight(narrower.project), narrower.project.bias)
    torch.testing.assert_close(narrower(inputs), expected)


def test_low_rank_cross_is_torchrecs_cross_layer():
    layer = _dense("low_rank_cross", 32, 32, 32)
    crossnet = LowRankCrossNet(in_features=32, num_layers=1, low_rank=8)
    with torch.no_grad():
        crossnet.V_kernels[0].copy_(_weight(layer.compress))
        crossnet.W_kernels[0].copy_(layer.expand.weight)
        crossnet.bias[0].copy_(layer.expand.bias)
    x0 = torch.randn(4, 32)
    torch.testing.assert_close(layer(BlockInputs([], [x0], [x0], [])), crossnet(x0))


@pytest.mark.parametrize(("left", "right"), [(3, 7), (7, 3)])
def test_gated_cross_pads_and_gates(left, right):
    layer = _dense("gated_cross", left, right, 9)
    x0, x = torch.randn(4, left), torch.randn(4, right)
    gate = torch.sigmoid(x @ _weight(layer.gate).T)
    crossed = F.pad(x0, (0, 7 - left)) * (x @ _weight(layer.cross).T + layer.cross.bias) * gate
    expected = layer.project(crossed + F.pad(x, (0, 7 - right)))
    torch.testing.assert_close(layer(BlockInputs([], [x0], [x], [])), expected)


def test_factorized_interaction_is_quadratic():
    layer = _dense("factorized_interaction", 3, 5, 6)
    inputs = [torch.randn(4, 3), torch.randn(4, 5)]
    x = torch.cat(inputs, 1)
    linear, factor = (F.linear(x, _weight(part), part.bias) for part in (layer.linear, layer.factor))
    torch.testing.assert_close(layer(BlockInputs(inputs, [], [], [])), torch.relu(linear * (1 + factor)))


def test_instance_mask_is_a_mask_block():
    layer = _dense("instance_mask", 3, 5, 6)
    left, right = torch.randn(4, 3), torch.randn(4, 5)
    hidden = torch.relu(F.linear(left, _weight(layer.aggregate), layer.aggregate.bias))
    mask = F.linear(hidden, layer.mask.weight, layer.mask.bias)
    expected = F.layer_norm((right * mask) @ layer.project.weight.T, (6,), layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(layer(BlockInputs([], [left], [right], [])), torch.relu(expected))


def test_squeeze_excitation_weights_tokens():
    layer = _sparse("squeeze_excitation", {"0": 5, "1": 4}, 9)
    tokens = torch.randn(4, 9, E)
    means = tokens.mean(2)
    weights = torch.sigmoid(layer.excite(torch.relu(layer.squeeze(means))))
    found = layer(BlockInputs([], [], [], [tokens[:, :5], tokens[:, 5:]]))
    torch.testing.assert_close(found, torch.stack([tokens[:, n] * weights[:, n : n + 1] for n in range(9)], 1))


def test_compressed_fm_is_a_wukong_layer():
    layer = _sparse("compressed_fm", {"0": 5, "1": 4}, 9)
    tokens = torch.randn(4, 9, E)
    y, w = _weight(layer.compress).T, _weight(layer.linear)
    products = tokens @ tokens.transpose(1, 2) @ y
    # The pieces of the hidden layer read the products of one source each.
    flat = F.layer_norm(products.flatten(1), (9 * 8,))
    hidden = torch.relu(F.linear(flat, _weight(layer.hidden), layer.hidden.bias))
    interacting = layer.emit(hidden).view(4, 5, E)
    found = layer(BlockInputs([], [], [], [tokens[:, :5], tokens[:, 5:]]))
    expected = layer.norm(torch.cat([interacting, w @ tokens], 1) + tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(8, 8), (4, 4), (32, 16), (9, 8), (1, 1)])
def test_token_mixing_exchanges_heads_and_computes_each_token(width, heads):
    layer = _sparse("token_mixing", {"0": 3, "1": 2}, width)
    assert layer.heads == heads
    inputs = [torch.randn(4, 3, E), torch.randn(4, 2, E)]
    x = torch.einsum("wn,bne->bwe", _weight(layer.linear), torch.cat(inputs, 1)) + layer.linear.bias[:, None]
    pieces = [x[:, :, h * E // heads : (h + 1) * E // heads].flatten(1) for h in range(heads)]
    mixed = layer.mixed_norm(x + torch.cat(pieces, 1).view(4, width, E))
    rows = []
    for n in range(width):
        hidden = F.gelu(mixed[:, n] @ layer.expand.weight[n] + layer.expand.bias[n])
        rows.append(hidden @ layer.contract.weight[n] + layer.contract.bias[n])
    expected = layer.output_norm(mixed + torch.stack(rows, 1))
    torch.testing.assert_close(layer(BlockInputs([], [], [], inputs)), expected, rtol=1e-4, atol=1e-5)
    if width == heads:  # the paper's case: a new token is one head of all tokens
        torch.testing.assert_close(torch.cat(pieces, 1).view(4, width, E)[:, 0], x[:, :, : E // heads].flatten(1))


def test_wide_attention_is_attention_with_two_heads():
    layer = _sparse("wide_attention", {"0": 5}, 7)
    reference = nn.MultiheadAttention(E, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(layer.project_qkv.weight)
        reference.in_proj_bias.copy_(layer.project_qkv.bias)
        reference.out_proj.weight.copy_(layer.project_heads.weight)
        reference.out_proj.bias.copy_(layer.project_heads.bias)
    inputs = torch.randn(4, 5, E)
    tokens = layer.linear([inputs.transpose(1, 2)]).transpose(1, 2)
    attended = layer.attention_norm(reference(tokens, tokens, tokens, need_weights=False)[0] + tokens)
    expected = layer.output_norm(attended + layer.contract(torch.relu(layer.expand(attended))))
    torch.testing.assert_close(layer(BlockInputs([], [], [], [inputs])), expected, rtol=1e-4, atol=1e-5)
