"""Loading of a trained model over all ranks, straight from its checkpoint: no process ever holds all tables."""

import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.gather import gather_rows
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.distributed.shards import shards_of
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import read_description
from nasrec_torchrec.modules.table_collection import tables_of
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.tensors import load_tensors


def load_sharded(
    run_dir: Path, device: torch.device, sharding_type: str | None = None
) -> tuple[ModelDescription, DistributedModelParallel]:
    """Loads the model of a training run over the ranks of the current process group. This call is collective.

    The checkpoint may have been written by any number of ranks, and sharded in any way. Every rank reads its own shards
    of the tables alone.

    Args:
        run_dir: folder of the training run.
        device: device of this rank.
        sharding_type: sharding type of all tables; None lets the planner choose.

    Returns:
        The description, and the model in evaluation mode. It takes a batch and returns the loss and
        ``(loss, logits, labels)``, as TorchRec's ``DLRMTrain`` does.

    Raises:
        ValueError: If the run has no complete checkpoint, it cannot be read, or no plan fits the ranks.
    """
    folder = kept_checkpoint(run_dir, collective=True)
    description = read_description(folder)
    model = description.build(torch.device("cpu"), tables=torch.device("meta"))
    # An optimizer is never run, but decides which lookup FBGEMM takes. The state of this one is a number for each row.
    tables = tables_of(model.sparse_arch.embedding_bag_collection)
    apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": 0.0})
    dmp = parallelize(DLRMTrain(model), device, sharding_type)
    state = {"model": dmp.state_dict()}
    load_tensors(state, folder)
    dmp.load_state_dict(state["model"])
    return description, dmp.eval()


@torch.no_grad()
def predict_on_ranks(
    dmp: DistributedModelParallel, data: ClickFiles, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns logits and labels ``(N,)`` of all rows of a split, in their order, on every rank; collective.

    Of T labels, they are ``(N, T)``, and a label that is not known is NaN.

    Args:
        dmp: sharded model that returns a loss and ``(loss, logits, labels)`` for a batch.
        data: the split.
        batch_size: number of rows in a global batch.
        device: device of this rank.

    Raises:
        ValueError: If the split has no rows.
    """
    dmp.eval()
    logits, labels = [], []
    for batch in data.evaluation_batches(batch_size, dist.get_rank(), dist.get_world_size()):
        _, (_, batch_logits, batch_labels) = dmp(batch.to(device))
        logits.append(batch_logits.float())
        labels.append(batch_labels.float())
    if not logits:
        raise ValueError("a split without rows has no metrics")
    predicted, observed = (data.restore(gather_rows(torch.cat(rows))).cpu() for rows in (logits, labels))
    return predicted, observed


def describe_memory(dmp: DistributedModelParallel) -> str:
    """Returns a line for each rank: the part of the tables that it holds, and its peak memory. This call is collective.

    Args:
        dmp: sharded model.
    """
    held = total = 0
    for value in dmp.state_dict().values():
        shards = shards_of(value)
        if shards is not None:
            held += sum(shard.nbytes for _, shard in shards)
            total += value.size().numel() * value.dtype.itemsize
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    everyones: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(everyones, (held, peak))
    return "\n".join(
        f"rank {rank}: {part / 2**20:,.1f} of {total / 2**20:,.1f} MiB of tables, peak memory {most / 2**20:,.0f} MiB"
        for rank, (part, most) in enumerate(everyones)
    )
