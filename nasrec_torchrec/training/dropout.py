"""Dropout as a matter of training: no model has a layer of it, and none is left in what is exported."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.mlp import Perceptron

from nasrec_torchrec.modules.choice_block import ChoiceBlock


def add_dropout(model: nn.Module, share: float) -> None:
    """Drops outputs of a NASRecNet's dense operators, or of the hidden layers of TorchRec's MLPs, while training.

    Args:
        model: to be trained.
        share: of the outputs.

    Raises:
        ValueError: when the model has no such layer.
    """

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training) if isinstance(output, torch.Tensor) else output

    layers = [module for module in model.modules() if isinstance(module, Perceptron)]
    for module in model.modules():
        if isinstance(module, ChoiceBlock):
            layers += module.dense_operators.values()
    if not layers:
        raise ValueError(f"dropout: a {type(model).__name__} of these sizes has no layer to drop outputs of")
    for layer in layers:
        layer.register_forward_hook(drop)
