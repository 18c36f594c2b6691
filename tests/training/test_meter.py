import time
from collections.abc import Iterator

import pytest
import torch
from support import make_kjt
from torchrec.datasets.utils import Batch

from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.meter import CountedBatches, StepMeter

ROWS = 8


def _slowly() -> Iterator[Batch]:
    for _ in range(4):
        time.sleep(0.05)
        yield Batch(torch.zeros(ROWS, 1), make_kjt(1, ROWS), torch.zeros(ROWS))


def test_the_share_of_the_time_that_waits_for_data(one_rank):
    meter = StepMeter(TrainConfig(batch_size=ROWS), 1, torch.device("cpu"), 0)
    batches = CountedBatches(_slowly())
    for _ in range(2):
        batch = next(batches)
        meter.update(torch.tensor(0.7), torch.zeros(ROWS), batch.labels)
    waits = meter.read(torch.tensor(0.7), 2, batches.waited())["waits_for_data"]
    assert 0.3 < waits <= 1 and batches.count == 2
    time.sleep(0.2)
    next(batches)
    assert meter.read(torch.tensor(0.7), 3, batches.waited())["waits_for_data"] < waits
    assert batches.waited() == 0
    assert meter.read(torch.tensor(0.7), 3, batches.waited())["waits_for_data"] == pytest.approx(0)
