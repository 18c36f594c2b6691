"""What an architecture costs: counts from the meta device, and a measured latency."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from torchrec.datasets.utils import Batch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.metrics.passes import ActivationBytes
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.search.cost_values import Cost, Latency
from nasrec_torchrec.table_widths import table_bytes


def cost(
    architecture: Architecture,
    dense_in_features: int,
    num_tokens: int,
    embedding_dim: int,
    use_layernorm: bool = False,
    tables: Sequence[tuple[str, int]] = (),
) -> Cost:
    """Counts with ``torch.utils.flop_counter`` on the meta device, where nothing is computed.

    Args:
        architecture: architecture to count.
        dense_in_features: number of dense features.
        num_tokens: number of sparse features.
        embedding_dim: width of a token.
        use_layernorm: see :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.
        tables: name and embedding dimension of the table of every token, if some of them have to be projected.
    """
    meta = torch.device("meta")
    sizes = dense_in_features, num_tokens, embedding_dim
    arch = InteractionArch(architecture, *sizes, use_layernorm, device=meta, tables=tables)
    dense = torch.empty(1, dense_in_features, device=meta)
    tokens = torch.empty(1, *arch.row_shape, device=meta)
    with FlopCounterMode(display=False) as counter, ActivationBytes() as activations, torch.no_grad():
        arch(dense, tokens)
    counts = counter.get_flop_counts()
    prefix = type(arch).__name__
    by_module = {
        path: (
            sum(counts.get(f"{prefix}.{path}", {}).values()) // 2,
            sum(parameter.numel() for parameter in module.parameters()),
        )
        for path, module in arch.named_modules()
        if path
    }
    parameters = sum(parameter.numel() for parameter in arch.parameters())
    return Cost(counter.get_total_flops() // 2, parameters, activations.total, by_module=by_module)


def cost_in_supernet(supernet: SuperNet, architecture: Architecture) -> Cost:
    """Counts what an architecture costs as a subnet of a supernet, its tables included; see :func:`cost`."""
    arch = supernet.interaction_arch
    sizes = arch.storage.dense_in_features, arch.storage.num_tokens, arch.storage.embedding_dim
    projection = arch.storage.projection
    counted = cost(architecture, *sizes, arch.use_layernorm, () if projection is None else projection.tables)
    return replace(counted, table_bytes=table_bytes(supernet.sparse_arch.configs, dict(architecture.embedding_widths)))


@torch.inference_mode()
def measure_latency(
    interaction_arch: InteractionArch, batch_size: int, device: torch.device, min_run_time: float = 0.2
) -> Latency:
    """Times the fused form of an interaction part on random rows, with all threads of this process.

    Args:
        interaction_arch: interaction part to time; it is not changed.
        batch_size: number of rows in a forward pass.
        device: device to run it on.
        min_run_time: shortest duration of the measurement, in seconds.

    Returns:
        Latency: Median and interquartile range.
    """
    arch = fuse(interaction_arch).to(device)
    dense = torch.rand(batch_size, arch.dense_in_features, device=device)
    tokens = torch.rand(batch_size, *arch.row_shape, device=device)
    timer = Timer("arch(dense, tokens)", globals=locals(), num_threads=torch.get_num_threads())
    timer.timeit(2)  # warms up
    measured = timer.blocked_autorange(min_run_time=min_run_time)
    return Latency(1e6 * measured.median, 1e6 * measured.iqr)


@torch.no_grad()
def model_multiply_adds(model: nn.Module, batch: Batch) -> int:
    """Counts the multiply-adds per example of any click model on a batch."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(batch.dense_features, batch.sparse_features)
    return counter.get_total_flops() // 2 // batch.dense_features.shape[0]
