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
        share: fraction of the outputs to drop.

    Raises:
        ValueError: If the model has no such layer.
    """

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training) if isinstance(output, torch.Tensor) else output

    layers = [module for module in model.modules() if isinstance(module, Perceptron | FactorizedLayer)]
    for module in model.modules():
        if isinstance(module, ChoiceBlock):
            layers += module.dense_operators.values()
    if not layers:
        raise ValueError(f"dropout: a {type(model).__name__} of these sizes has no layer to drop outputs of")
    for layer in layers:
        layer.register_forward_hook(drop)
