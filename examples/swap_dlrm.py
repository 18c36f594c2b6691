"""Trains TorchRec's DLRM, or a NASRecNet after changing one line.

    python examples/swap_dlrm.py                                        # one process
    torchrun --nproc-per-node 2 examples/swap_dlrm.py --model nasrec    # several, on GPUs if there are any

Everything except :func:`make_model` is code that a TorchRec user already has: an EmbeddingBagCollection, a fused
optimizer for its tables, DistributedModelParallel, and a pipeline that sends the ids of the next batch while the
current one is computed.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.random import RandomRecDataset
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec import PUBLISHED, NASRecNet

FEATURES = [f"C{number}" for number in range(1, 27)]
ROWS, DIM, DENSE = 10_000, 16, 13


def make_model(kind: str, ebc: EmbeddingBagCollection, device: torch.device) -> nn.Module:
    if kind == "nasrec":
        return NASRecNet(ebc, DENSE, PUBLISHED["criteo-small"], dense_device=device)
    return DLRM(ebc, DENSE, [512, 256, DIM], [512, 256, 1], dense_device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("dlrm", "nasrec"), default="nasrec")
    parser.add_argument("--batch_size", type=int, default=256, help="rows per rank")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)

    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[name])
        for name in FEATURES
    ]
    ebc = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    model = DLRMTrain(make_model(arguments.model, ebc, device))
    apply_optimizer_in_backward(torch.optim.Adagrad, ebc.parameters(), {"lr": 0.01, "eps": 1e-2})
    dmp = DistributedModelParallel(model, device=device)
    dense = dict(in_backward_optimizer_filter(dmp.named_parameters()))
    optimizer = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adagrad(parameters, lr=0.01, eps=1e-2))

    data = RandomRecDataset(
        keys=FEATURES,
        batch_size=arguments.batch_size,
        hash_size=ROWS,
        ids_per_feature=1,
        num_dense=DENSE,
        manual_seed=dist.get_rank(),
        num_batches=arguments.steps,
    )
    batches = iter(data)
    pipeline = TrainPipelineSparseDist(dmp, optimizer, device, execute_all_batches=True)
    for step in range(arguments.steps):
        loss, _, _ = pipeline.progress(batches)
        if dist.get_rank() == 0 and step % 5 == 0:
            print(f"{arguments.model}: step {step}, loss {loss.item():.4f}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
