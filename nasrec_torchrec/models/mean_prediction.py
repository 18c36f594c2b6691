"""Several models that predict as one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_prediction(logits: Sequence[Tensor]) -> Tensor:
    """Returns the logit of the mean probability of several models, from their logits of the same shape."""
    every = torch.stack(list(logits))
    return F.logsigmoid(every).logsumexp(0) - F.logsigmoid(-every).logsumexp(0)
