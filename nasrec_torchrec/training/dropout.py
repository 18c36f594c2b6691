"""Dropout that belongs to the training: no model contains a dropout layer, so none is left in what is exported."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.mlp import Perceptron

from nasrec_torchrec.models.streams import FactorizedLayer
from nasrec_torchrec.modules.choice_block import ChoiceBlock


def add_dropout(model: nn.Module, share: float) -> None:
    """Drops outputs of a NASRecNet's dense operators, or of the hidden layers of TorchRec's MLPs, during training.

    Args:
        model: model to be trained.
        share: fraction of the outputs to drop. On the CPU, it is rounded to a multiple of 1/256.

    Raises:
        ValueError: If the model has no such layer.
    """

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return dropped(output, share) if module.training and isinstance(output, torch.Tensor) else output

    layers = [module for module in model.modules() if isinstance(module, Perceptron | FactorizedLayer)]
    for module in model.modules():
        if isinstance(module, ChoiceBlock):
            layers += module.dense_operators.values()
    if not layers:
        raise ValueError(f"dropout: a {type(model).__name__} of these sizes has no layer to drop outputs of")
    for layer in layers:
        layer.register_forward_hook(drop)


def dropped(values: Tensor, share: float) -> Tensor:
    """Sets values to zero at random, and scales the others so that the mean stays the same.

    PyTorch's dropout draws one random number for every value, one after the other on the CPU, which takes as long as
    the matrix product before it. One number of 64 bits decides about eight values here.

    Args:
        values: Tensor of any shape.
        share: fraction to drop. On the CPU, it is rounded to a multiple of 1/256.

    Returns:
        The values that are left, in a new tensor.
    """
    if values.device.type != "cpu":
        return F.dropout(values, share)
    limit = min(max(round(256 * share), 1), 255)
    words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= limit
    return values * kept.to(values.dtype).mul_(256 / (256 - limit))
