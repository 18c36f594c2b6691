"""Tests of dropout on the CPU."""

import pytest
import torch

from nasrec_torchrec.training.dropout import dropped

_VALUES = 400_000


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.75])
def test_each_byte_of_a_random_word_drops_the_same_share(share: float):
    torch.manual_seed(3)
    zeros = (dropped(torch.ones(_VALUES), share) == 0).view(-1, 8).float().mean(0)
    # Five standard deviations of a share of 50,000 values, and half a step of the rounding.
    tolerance = 5 * (share * (1 - share) / (_VALUES / 8)) ** 0.5 + 1 / 512
    torch.testing.assert_close(zeros, torch.full((8,), share), atol=tolerance, rtol=0)


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.3, 0.999])
def test_the_mean_stays(share: float):
    torch.manual_seed(4)
    values = dropped(torch.full((16 * _VALUES,), 3.0), share)
    kept = values[values != 0]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), atol=0, rtol=0)
    limit = min(max(round(256 * share), 1), 255) / 256
    assert kept[0].item() == pytest.approx(3 / (1 - limit))
    assert values.mean().item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 7)])
def test_any_shape_and_the_gradient_is_that_of_the_kept_values(shape: tuple[int, ...]):
    torch.manual_seed(5)
    values = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    outputs = dropped(values, 0.5)
    outputs.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), outputs.detach())


def test_a_seed_repeats_the_choice():
    torch.manual_seed(6)
    first = dropped(torch.ones(1000), 0.3)
    torch.manual_seed(6)
    second = dropped(torch.ones(1000), 0.3)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
