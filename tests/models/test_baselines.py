"""FinalNet and FinalMLP beside their papers' formulas; the later baselines as models that train."""

import pytest
import torch
from support import make_ebc, make_kjt
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from nasrec_torchrec.architecture import recorded
from nasrec_torchrec.models.baselines import build_baseline
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.streams import FinalMLPInteraction, FinalNetInteraction

FIELDS, E, DENSE = 5, 16, 3


@pytest.mark.parametrize("batch_norm", (False, True))
def test_the_streams_of_finalnet_are_taught_by_their_mean(batch_norm):
    model = FinalNetInteraction(DENSE, FIELDS, E, (8, 7), batch_norm=batch_norm)
    dense, tokens = torch.randn(6, DENSE), torch.randn(6, FIELDS, E)
    labels = torch.randint(0, 2, (6, 1)).float()
    columns = torch.cat([dense, tokens.flatten(1)], 1)
    gated = tokens * (torch.einsum("mn,bne->bme", model.gate.weight, tokens) + model.gate.bias[:, None])

    def stack(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for layer in layers[:-1]:
            half = layer.linear.out_features // 2
            first, rest = layer.linear(x)[:, :half], layer.linear(x)[:, half:]
            x = torch.relu(layer.norm(torch.cat([rest, rest[:, :half] * first], 1)))
        return layers[-1](x)

    logits = stack(model.first, torch.cat([columns, gated.flatten(1)], 1)), stack(model.second, columns)
    assert [len(model.first), len(model.second)] == [3, 2]
    mean = (logits[0] + logits[1]) / 2
    target = torch.sigmoid(mean).detach()
    loss = F.binary_cross_entropy_with_logits(mean, labels)
    loss = loss + sum(F.binary_cross_entropy_with_logits(logit, target) for logit in logits)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(model(dense, tokens), mean)
    found = torch.autograd.grad(
        F.binary_cross_entropy_with_logits(model(dense, tokens), labels), list(model.parameters())
    )
    torch.testing.assert_close(found, expected)
    if batch_norm:
        assert not torch.allclose(model.eval()(dense, tokens), mean)
        with pytest.raises(ValueError, match="batch_norm: expected false for finalmlp"):
            build_baseline(Baseline("finalmlp", batch_norm=True), make_ebc(FIELDS), DENSE)
        assert recorded(Baseline("finalnet"))["kind"] == "finalnet" and "batch_norm" not in recorded(Baseline())
    else:
        torch.testing.assert_close(model.eval()(dense, tokens), mean)


def test_finalmlp_fuses_two_streams_head_by_head():
    model = FinalMLPInteraction(DENSE, FIELDS, E, (8, 6))
    nn.init.normal_(model.gates.weight)
    dense, tokens = torch.randn(6, DENSE), torch.randn(6, FIELDS, E)
    columns = torch.cat([dense, tokens.flatten(1)], 1)
    gates = 2 * torch.sigmoid(model.gates.weight)
    first, second = model.first(columns * gates[0]), model.second(columns * gates[1])
    whole = torch.block_diag(*(head.weight for head in model.bilinear))
    assert whole.shape == (6, 6)
    expected = (
        model.over_arch(torch.cat([first, second], 1)) + torch.einsum("bi,ji,bj->b", first, whole, second)[:, None]
    )
    torch.testing.assert_close(model(dense, tokens), expected)
    # A training pipeline traces the model where its tables are replicated, as with Adam.
    torch.testing.assert_close(symbolic_trace(model)(dense, tokens), expected)


@pytest.mark.parametrize("dense", (0, DENSE))
@pytest.mark.parametrize("kind", BASELINES[4:])
def test_later_baselines_learn_and_start_anywhere(kind, dense):
    baseline = Baseline(kind, (8, E), (16, 8, 1))
    model = build_baseline(baseline, make_ebc(FIELDS), dense)
    meta = build_baseline(baseline, make_ebc(FIELDS, device="meta"), dense, torch.device("meta"))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in meta.named_parameters()}
    kjt, labels = make_kjt(FIELDS, 64), torch.randint(0, 2, (64, 1)).float()
    columns = torch.randn(64, dense)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(columns, kjt), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(ValueError, match=f"over_layers: {kind} needs a layer before the last one"):
        Baseline(kind, over_layers=(1,))
