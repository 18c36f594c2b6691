"""Measures how the cost of a training step grows, and prints what TorchRec's planner expects of many GPUs.

    python benchmarks/scale.py

The base is a NASRecNet of NASRec-Small with 7 blocks over 26 tables of 100,000 rows at batch size 512. One thing is
varied at a time: the batch size, the number of tables, their rows, the blocks, or the ranks (on gloo, each with its own
batch of 512). The values of one row take turns in one process.

The last table is arithmetic: TorchRec's planner places the tables of Criteo 1TB (at most 40 million rows each) on GPUs
with 80 GiB and its default bandwidths, and estimates the embedding part of a step. None of that was run.
"""

import json
import multiprocessing
import os
import socket
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from click_steps import ClickSteps, click_schema, in_turns, random_batch, spread
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.stats import EmbeddingStats
from torchrec.distributed.planner.types import ShardingOption

from nasrec_torchrec import NASREC_SMALL
from nasrec_torchrec.cli.program import quiet_libraries, run
from nasrec_torchrec.datasets.public import criteo_1tb
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.distributed.sharding import TableSharder
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.search_space import SearchSpace

BASE = {"batch": 512, "tables": 26, "rows": 100_000, "blocks": 7}
VALUES = {
    "batch": (128, 512, 2048, 8192),
    "tables": (13, 26, 52, 104),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "blocks": (3, 5, 7, 9),
}
GPUS = (64, 512)


def main(
    rounds: int = 10, embedding_dim: int = 128, batch_per_gpu: int = 1024, out: Path | None = None, quick: bool = False
) -> None:
    """Prints a table for everything that is varied.

    Args:
        rounds: Number of turns of each value.
        embedding_dim: Embedding dimension for the planner.
        batch_per_gpu: Batch size per GPU for the planner.
        out: JSON file for the raw seconds.
        quick: Measures only the first two values of each, around three blocks over small tables, with three rounds.
    """
    torch.set_num_threads(1)
    rounds = 3 if quick else rounds
    base = BASE | ({"rows": 1_000, "blocks": 3} if quick else {})
    raw: dict[str, Any] = {}
    with process_group() as device:
        for name, values in VALUES.items():
            calls = {str(value): _step(base | {name: value}, device).train for value in values[: 2 if quick else None]}
            raw[name] = in_turns(calls, rounds, device)
            _print(name, raw[name])
    raw["ranks"] = {str(ranks): _ranks(ranks, rounds, base) for ranks in (1, 2)}
    _print("ranks", raw["ranks"])
    for gpus in GPUS:
        _plan(gpus, embedding_dim, batch_per_gpu)
    if out is not None:
        write_text(out, json.dumps(raw))


def _step(size: dict[str, int], device: torch.device) -> ClickSteps:
    schema = click_schema(num_sparse=size["tables"], rows=size["rows"])
    space = SearchSpace(size["blocks"], NASREC_SMALL.dense_operators, NASREC_SMALL.sparse_operators)
    architecture = space.sample(torch.Generator().manual_seed(0))
    return ClickSteps(ModelDescription(schema, architecture), random_batch(schema, size["batch"], device), device)


def _print(name: str, seconds: dict[str, list[float]]) -> None:
    first, *_ = (statistics.median(measured) for measured in seconds.values())
    print(f"\n{name:>10}  {'median step (deciles)':<34}{'times the first':>16}")
    for value, measured in seconds.items():
        print(f"{int(value):>10,}  {spread(measured):<34}{statistics.median(measured) / first:>16.2f}", flush=True)


def _ranks(ranks: int, rounds: int, size: dict[str, int]) -> list[float]:
    """Measures the steps of rank 0 among several ranks on this machine."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
        file = Path(folder) / "seconds.json"
        free.close()
        context = multiprocessing.get_context("forkserver")
        workers = [
            context.Process(target=_rank, args=(address | {"RANK": str(rank)}, rounds, size, file))
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"a rank failed: exit codes {[worker.exitcode for worker in workers]}")
        return json.loads(file.read_text())


def _rank(environment: dict[str, str], rounds: int, size: dict[str, int], file: Path) -> None:
    os.environ |= environment | {"LOCAL_WORLD_SIZE": environment["WORLD_SIZE"], "LOCAL_RANK": environment["RANK"]}
    torch.set_num_threads(1)
    quiet_libraries()
    with process_group() as device:
        seconds = in_turns({"step": _step(size, device).train}, rounds, device)["step"]
        if environment["RANK"] == "0":
            file.write_text(json.dumps(seconds))


class _Placed(EmbeddingStats):
    """Keeps the placed shards, which a plan does not estimate."""

    options: list[ShardingOption]

    def log(self, *arguments: Any, **named: Any) -> None:
        self.options = named["best_plan"]


def _plan(gpus: int, embedding_dim: int, batch_per_gpu: int) -> None:
    """Prints the planner's estimate for a number of GPUs with eight per host."""
    schema = criteo_1tb((), 40_000_000, embedding_dim).schema
    space = SearchSpace(3, NASREC_SMALL.dense_operators, NASREC_SMALL.sparse_operators)
    description = ModelDescription(schema, space.sample(torch.Generator().manual_seed(0)))
    placed = _Placed()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=gpus, compute_device="cuda", local_world_size=8, hbm_cap=80 << 30),
        batch_size=batch_per_gpu,
        stats=placed,
    )
    planner.plan(description.build(torch.device("meta")), [TableSharder()])
    kinds: dict[str, int] = {}
    held, busy = [0] * gpus, [[0.0] * 4 for _ in range(gpus)]
    for option in placed.options:
        kinds[option.sharding_type] = kinds.get(option.sharding_type, 0) + 1
        for shard in option.shards:
            assert shard.rank is not None and shard.storage is not None and shard.perf is not None
            held[shard.rank] += shard.storage.hbm
            perf = shard.perf
            for index, part in enumerate((perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms)):
                busy[shard.rank][index] += part
    slowest = max(busy, key=sum)
    rows = sum(feature.num_embeddings or 0 for feature in schema.sparse)
    print(
        f"\n{gpus} GPUs of 80 GiB, 8 a host, batch {batch_per_gpu} each ({gpus * batch_per_gpu:,} in all), "
        f"{rows:,} rows of {embedding_dim} (Criteo 1TB), on paper:"
    )
    print(f"  sharding: {', '.join(f'{count} tables {kind}' for kind, count in sorted(kinds.items()))}")
    print(f"  memory of a GPU: {min(held) / 2**30:.2f} to {max(held) / 2**30:.2f} GiB")
    print(
        "  embedding part of a step on the slowest GPU: {:.2f} ms: forward {:.2f} + {:.2f} of communication, "
        "backward {:.2f} + {:.2f}".format(sum(slowest), *slowest)
    )


if __name__ == "__main__":
    run(main)
