"""What a supernet training step costs beside the same step of the extracted model, timed alternately in one process.

    python benchmarks/supernet_step.py --batch_size 512

Both steps look up the same tables, run forward and backward, clip and update with Adagrad. The supernet's step also
draws its architecture and binds the views. Tables are updated with plain gradients here: it is the dense part that
differs.
"""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_FULL, NASREC_SMALL, NASRecNet, SuperNet
from nasrec_torchrec.cli import run
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

NUM_DENSE, NUM_SPARSE, ROWS, EMBEDDING_DIM = 13, 26, 1000, 16


def main(
    batch_size: int = 512, architectures: int = 50, space: Literal["full", "small"] = "full", threads: int = 1
) -> None:
    """Times supernet steps and steps of the extracted models alternately.

    Args:
        batch_size: rows of a step.
        architectures: drawn from the space; each is timed three times on either side.
        space: NASRec-Full or NASRec-Small.
        threads: compute threads.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    search_space = NASREC_FULL if space == "full" else NASREC_SMALL
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=EMBEDDING_DIM, num_embeddings=ROWS, feature_names=[f"f{i}"])
        for i in range(NUM_SPARSE)
    ]
    supernet = SuperNet(EmbeddingBagCollection(tables=tables), NUM_DENSE, search_space)
    supernet.sparse_arch.requires_grad_(False)
    interaction = supernet.interaction_arch
    optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters)
    dense = torch.randn(batch_size, NUM_DENSE)
    kjt = KeyedJaggedTensor(
        [f"f{i}" for i in range(NUM_SPARSE)],
        torch.randint(0, ROWS, (batch_size * NUM_SPARSE,)),
        lengths=torch.ones(batch_size * NUM_SPARSE, dtype=torch.int64),
    )
    labels = (torch.rand(batch_size, 1) < 0.25).float()
    generator = torch.Generator().manual_seed(0)

    def shared_step(seed: int) -> None:
        supernet.set_architecture(search_space.sample(generator.manual_seed(seed)))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(supernet(dense, kjt), labels).backward()
        nn.utils.clip_grad_norm_([view for _, view in interaction.active_parameters()], 5.0)
        optimizer.step()

    def alone_step(model: NASRecNet, alone: torch.optim.Optimizer) -> None:
        alone.zero_grad()
        F.binary_cross_entropy_with_logits(model(dense, kjt), labels).backward()
        nn.utils.clip_grad_norm_(model.interaction_arch.parameters(), 5.0)
        alone.step()

    print(f"float32 GEMM 1024^3: {gemm_rate():.0f} GFLOP/s, {threads} thread(s), torch {torch.__version__}")
    shared_times, alone_times, bind_times = [], [], []
    for seed in range(architectures):
        architecture = search_space.sample(generator.manual_seed(seed))
        model = supernet.extract(architecture)
        model.sparse_arch.requires_grad_(False)
        alone = torch.optim.Adagrad(model.interaction_arch.parameters(), lr=0.12, eps=1e-2)
        alone_step(model, alone)
        shared_step(seed)
        pairs = [(timed(shared_step, seed), timed(alone_step, model, alone)) for _ in range(3)]
        shared_times.append(statistics.median(pair[0] for pair in pairs))
        alone_times.append(statistics.median(pair[1] for pair in pairs))
        supernet.set_architecture(architecture)
        bind_times.append(timed(lambda: list(interaction.active_parameters())))
    ratios = sorted(shared / own for shared, own in zip(shared_times, alone_times, strict=True))
    print(f"batch {batch_size}, NASRec-{space}, {architectures} architectures; medians:")
    print(f"  supernet step    {1000 * statistics.median(shared_times):8.1f} ms")
    print(f"  extracted model  {1000 * statistics.median(alone_times):8.1f} ms")
    print(f"  ratio            {statistics.median(ratios):8.2f}    (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"  of which binding {1000 * statistics.median(bind_times):8.1f} ms")


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def gemm_rate() -> float:
    """GFLOP/s of a 1024^3 float32 matrix product: the best of ten."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timed(torch.mm, a, b) for _ in range(10)) / 1e9


if __name__ == "__main__":
    run(main)
