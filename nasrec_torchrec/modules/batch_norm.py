"""Batch normalization."""

import torch
from torch import Tensor, nn

_MOMENTUM, _EPSILON = 0.1, 1e-5


class BatchNorm(nn.Module):
    """Normalizes each column over the rows of a batch (arXiv 1502.03167), over the columns of all tokens if it has any.

    In training the statistics are those of the rows that this rank has in a pass. In evaluation they are running means
    of these, and so they are where the weights are frozen, or where a rank has one row alone, which has no variance.

    Args:
        width: Columns.
        device: Device of the parameters; ``meta`` is allowed.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device))
        self.bias = nn.Parameter(torch.empty(width, device=device))
        self.register_buffer("running_mean", torch.empty(width, device=device))
        self.register_buffer("running_var", torch.empty(width, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1)):
            tensor.fill_(value)

    def forward(self, values: Tensor) -> Tensor:
        """Normalizes ``(..., width)``."""
        rows = values.flatten(0, -2)
        learns = self.training
        if learns and isinstance(rows, Tensor):  # not while torch.fx traces through
            learns = self.weight.requires_grad and len(rows) > 1
        # Not F.batch_norm, which looks at the number of rows and cannot be traced.
        parameters = self.weight, self.bias, self.running_mean, self.running_var
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(rows, *parameters, learns, _MOMENTUM, _EPSILON, cudnn).view(values.shape)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Lists the running means and variances of a model; they change in training, though no optimizer knows them."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
