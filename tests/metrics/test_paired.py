import numpy as np
import pytest
import torch

from nasrec_torchrec.metrics.click_metrics import row_losses
from nasrec_torchrec.metrics.paired import difference


def _logits(seed: int, skill: float, truth: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(len(truth), generator=torch.Generator().manual_seed(seed))
    return skill * truth + (1 - skill) * noise


def test_the_interval_over_rows_is_that_of_a_bootstrap():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3000, generator=generator)
    labels = (torch.rand(3000, generator=generator) < truth.sigmoid()).float()
    first, second = (row_losses(_logits(seed, skill, truth), labels) for seed, skill in ((1, 0.9), (2, 0.7)))
    found = difference([first], [second])
    rng = np.random.default_rng(0)
    each = (first - second).numpy()
    means = [each[rng.integers(0, len(each), len(each))].mean() for _ in range(1000)]
    assert found.mean == pytest.approx(each.mean()) and found.mean < 0
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.002)
    assert (found.rows, found.seeds) == (3000, (1, 1))


def test_seeds_that_differ_widen_the_interval():
    rows = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    alike, apart = ([rows, rows + shift, rows - shift] for shift in (0.0, 0.1))
    narrow, wide = (difference(seeds, [rows - 0.05]) for seeds in (alike, apart))
    assert narrow.mean == pytest.approx(wide.mean, abs=1e-6) == pytest.approx(0.05)
    assert narrow.low > 0 and wide.low < 0 < wide.high
