"""Known models as architectures, beside TorchRec's models with the same weights."""

from dataclasses import replace

import pytest
import torch
from support import make_ebc, make_kjt
from torch import nn
from torch.nn import functional as F
from torchrec.models.dlrm import DLRM, DLRM_DCN

from nasrec_torchrec import NASREC_2026, NASREC_FULL, REFERENCE, Architecture, NASRecNet, SuperNet
from nasrec_torchrec.drawing import to_dot, to_svg

DENSE, TOKENS, E = 3, 5, 16


def _network(name: str, dense: int = DENSE) -> NASRecNet:
    torch.manual_seed(0)
    return NASRecNet(make_ebc(TOKENS), dense, REFERENCE[name](dense, TOKENS, E))


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


@torch.no_grad()
def _copy(theirs: nn.Linear, ours: nn.Module) -> None:
    pieces = theirs.weight.split(list(ours.in_features.values()), dim=1)
    for source, piece in zip(ours.in_features, pieces, strict=True):
        ours.weight(source).copy_(piece)
    ours.bias.copy_(theirs.bias)


def _copy_mlps(theirs: DLRM, ours: NASRecNet, first_over: int) -> None:
    blocks = ours.interaction_arch.blocks
    for index, linear in enumerate(_linears(theirs.dense_arch)):
        _copy(linear, blocks[index].dense_operators["fully_connected"].linear)
    *over, last = _linears(theirs.over_arch)
    for index, linear in enumerate(over, start=first_over):
        _copy(linear, blocks[index].dense_operators["fully_connected"].linear)
    _copy(last, ours.interaction_arch.over_arch)
    ours.sparse_arch.embedding_bag_collection.load_state_dict(theirs.sparse_arch.embedding_bag_collection.state_dict())


def _same_logits(theirs: nn.Module, ours: nn.Module) -> None:
    dense, kjt = torch.randn(7, DENSE), make_kjt(TOKENS, 7, max_length=3)
    torch.testing.assert_close(ours(dense, kjt), theirs(dense, kjt), rtol=0, atol=1e-5)


def test_dlrm_is_torchrecs():
    theirs = DLRM(make_ebc(TOKENS), DENSE, [64, E], [128, 64, 1])
    ours = _network("dlrm")
    first = _linears(theirs.over_arch)[0]
    # TorchRec lists the pairs of an upper triangle, and the architecture those of a lower one.
    size = TOKENS + 1
    theirs_order = {pair: number for number, pair in enumerate(zip(*torch.triu_indices(size, size, 1).tolist()))}  # noqa: B905
    order = [theirs_order[column, row] for row in range(size) for column in range(row)]
    weight = first.weight.detach().clone()
    _copy_mlps(theirs, ours, first_over=3)
    reads_products = ours.interaction_arch.blocks[3].dense_operators["fully_connected"].linear.weight("3")
    with torch.no_grad():
        reads_products.copy_(weight[:, E:][:, order])
    _same_logits(theirs, ours)


def _dcn() -> tuple[DLRM_DCN, NASRecNet]:
    width = (TOKENS + 1) * E
    theirs = DLRM_DCN(make_ebc(TOKENS), DENSE, [64, E], [128, 64, 1], dcn_num_layers=2, dcn_low_rank_dim=width // 4)
    ours = _network("dcn-v2")
    _copy_mlps(theirs, ours, first_over=5)
    crossnet = theirs.inter_arch.crossnet
    with torch.no_grad():
        for layer in range(2):
            nn.init.normal_(crossnet.bias[layer])
            cross = ours.interaction_arch.blocks[3 + layer].dense_operators["low_rank_cross"]
            (compress,) = cross.compress.parameters()
            compress.copy_(crossnet.V_kernels[layer])
            cross.expand.weight.copy_(crossnet.W_kernels[layer])
            cross.expand.bias.copy_(crossnet.bias[layer])
    return theirs, ours


def test_dcn_v2_is_torchrecs():
    _same_logits(*_dcn())


def test_parallel_dcn_v2_adds_a_deep_and_a_cross_tower():
    model = _network("dcn-v2-parallel").interaction_arch
    dense, tokens = torch.randn(4, DENSE), torch.randn(4, TOKENS, E)

    def layer(index: int) -> nn.Module:
        return next(iter(model.blocks[index].dense_operators.values()))

    def linear(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, torch.cat([module.weight(name) for name in module.in_features], 1), module.bias)

    bottom = torch.relu(linear(layer(1).linear, torch.relu(linear(layer(0).linear, dense))))
    x0 = x = deep = torch.cat([bottom, tokens.flatten(1)], 1)
    for index in (3, 4):
        x = x0 * layer(index).expand(linear(layer(index).compress, x)) + x
    for index in (5, 6):
        deep = torch.relu(linear(layer(index).linear, deep))
    weight = model.over_arch
    assert list(weight.in_features) == ["dense_5", "dense"]
    expected = x @ weight.weight("dense_5").T + deep @ weight.weight("dense").T + weight.bias
    torch.testing.assert_close(model(dense, tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense", (0, DENSE))
@pytest.mark.parametrize("name", REFERENCE)
def test_every_reference_trains_and_can_be_searched_around(name: str, dense: int):
    model = _network(name, dense)
    architecture = model.architecture
    assert Architecture.from_json(architecture.to_json()) == architecture
    kjt = make_kjt(TOKENS, 6)
    logits = model(torch.randn(6, dense), kjt)
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.interaction_arch.parameters())
    table = model.sparse_arch.embedding_bag_collection.embedding_bags["t0"].weight
    assert table.grad is not None and table.grad.any(), "the logit does not depend on the ids"
    fitted = NASREC_2026.fitted(architecture)
    assert NASREC_2026.fitted(fitted) == fitted
    child = NASREC_2026.mutate(fitted, torch.Generator().manual_seed(0))
    assert child != fitted
    for drawing in (to_svg(architecture), to_dot(architecture)):
        assert "final linear" in drawing
    with pytest.raises(ValueError, match=r"not in this space|reads the last block"):
        NASREC_FULL.fitted(architecture)


def test_a_wider_network_can_compute_dcn_v2():
    """A point of a space whose widths do not follow from the data is as good: surplus columns have zero weights."""
    theirs, ours = _dcn()
    width = (TOKENS + 1) * E
    space = replace(NASREC_2026, dense_widths=(E, 64, 128), sparse_widths=(1,))
    architecture = space.fitted(ours.architecture)
    assert {block.dense_width for block in architecture.blocks[2:5]} == {128} and width < 128
    supernet = SuperNet(make_ebc(TOKENS), DENSE, space, use_layernorm=False)
    wide = supernet.extract(architecture)
    with torch.no_grad():
        for parameter in wide.interaction_arch.parameters():
            parameter.zero_()
        narrow = dict(ours.interaction_arch.named_parameters())
        for name, parameter in wide.interaction_arch.named_parameters():
            if name in narrow:
                parameter[tuple(slice(0, size) for size in narrow[name].shape)] = narrow[name]
        flatten = wide.interaction_arch.blocks[2].dense_operators["flatten"].project
        flatten.weight("dense_2")[:E] = torch.eye(E)
        flatten.weight("tokens_0")[E:width] = torch.eye(TOKENS * E)
    wide.sparse_arch.load_state_dict(ours.sparse_arch.state_dict())
    _same_logits(theirs, wide)
