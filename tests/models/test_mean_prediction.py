"""Several models that predict as one."""

import torch

from nasrec_torchrec.models.mean_prediction import mean_prediction


def test_the_mean_is_one_of_probabilities():
    first, second = torch.tensor([0.0, 2.0, 40.0]), torch.tensor([0.0, -1.0, 40.0])
    expected = (first.sigmoid() + second.sigmoid()) / 2
    found = mean_prediction([first, second])
    torch.testing.assert_close(found.sigmoid(), expected)
    assert found[2] > 30  # probabilities that round to 1 keep their order
