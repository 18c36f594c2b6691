"""What a rank holds of a sharded tensor, whichever of PyTorch's two kinds it is."""

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed.shards_wrapper import LocalShardsWrapper


def shards_of(value: object) -> list[tuple[tuple[int, ...], Tensor]] | None:
    """Returns this rank's parts of a sharded tensor, each with its offsets in the whole; None if it is not sharded.

    Where several groups of ranks hold copies of the tables, TorchRec's tensors are a ``DTensor``, else a
    ``ShardedTensor``.
    """
    if isinstance(value, ShardedTensor):
        return [(tuple(shard.metadata.shard_offsets), shard.tensor) for shard in value.local_shards()]
    if isinstance(value, DTensor):
        local = value.to_local()
        assert isinstance(local, LocalShardsWrapper)
        return list(zip(map(tuple, local.local_offsets()), local.local_shards(), strict=True))
    return None
