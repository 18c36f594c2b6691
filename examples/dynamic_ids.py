"""Streams ids that are not known beforehand through a table of fixed size, and shows that memory stays flat.

    torchrun --nproc-per-node 2 examples/dynamic_ids.py                     # 10 million distinct ids, 100,000 rows

Every batch has new ids, which are seen once, beside ids that come back: these keep their rows. After the training, the
form of the model that is exported maps ids as the training did.
"""

import argparse
import os
import resource
import time

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.distributed.sharding import table_sharders
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids

FEATURE, DENSE, DIM = "user", 4, 16


def spread(numbers: torch.Tensor) -> torch.Tensor:
    """Distinct ids that are spread over the whole range, as hashes are."""
    return 1 + (numbers * 0x1F0A2BE71D163FA1) % (ID_SPACE - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=10_000_000, help="distinct ids, over all ranks")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--batch_size", type=int, default=16_384, help="rows per rank; half of them have new ids")
    arguments = parser.parse_args()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29535"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    device = torch.device("cpu")
    config = EmbeddingBagConfig(
        name="t_user", embedding_dim=DIM, num_embeddings=arguments.rows, feature_names=[FEATURE]
    )
    tables = EmbeddingBagCollection(tables=[config])
    apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.02})
    collection = with_dynamic_ids(tables, {"t_user": DynamicIds(arguments.rows)})
    model = DLRMTrain(NASRecNet(collection, DENSE, "dlrm"))
    dmp = DistributedModelParallel(model, device=device, sharders=table_sharders())
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())), lambda p: torch.optim.Adagrad(p, lr=0.02)
    )
    pipeline = TrainPipelineSparseDist(dmp, CombinedOptimizer([dmp.fused_optimizer, dense]), device)
    ids = next(module for module in dmp.modules() if isinstance(module, DynamicIds))

    half = arguments.batch_size // 2
    steps = arguments.ids // (half * ranks)
    often = spread(torch.arange(arguments.rows // 10))  # they come back all the time

    def batches():
        generator = torch.Generator().manual_seed(rank)
        for step in range(steps):
            first = 10**9 + (step * ranks + rank) * half
            new = spread(torch.arange(first, first + half))
            again = often[torch.randint(len(often), (half,), generator=generator)]
            rows = torch.cat([new, again])
            kjt = KeyedJaggedTensor([FEATURE], rows, lengths=torch.ones(len(rows), dtype=torch.int64))
            labels = (rows % 3 == 0).float()
            yield Batch(torch.randn(len(rows), DENSE, generator=generator), kjt, labels)

    stream, started = batches(), time.perf_counter()
    for step in range(steps):
        pipeline.progress(stream)
        if step in (steps // 10, steps // 2, steps - 1):
            counts = torch.tensor([*ids.counts().values()])
            dist.all_reduce(counts)
            peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024])
            dist.all_reduce(peak, dist.ReduceOp.MAX)
            if rank == 0:
                seen = (step + 1) * half * ranks
                print(
                    f"{seen:>12,} distinct ids after {time.perf_counter() - started:5.0f} s: {int(counts[0]):,} rows "
                    f"in use, {int(counts[1]):,} evictions, peak memory of a rank {int(peak)} MiB",
                    flush=True,
                )
    kept = torch.isin(often, ids.id_map()[0]).sum()
    dist.all_reduce(kept)
    if rank == 0:
        print(f"{int(kept):,} of {len(often):,} ids that came back have a row of their own at the end")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
