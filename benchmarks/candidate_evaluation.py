"""Compares the cost of evaluating a candidate with the bare forward passes of the model extracted for it.

    python benchmarks/candidate_evaluation.py --supernet runs/supernet --data DATA

For every architecture, two things are timed in turns: an evaluation as in a search (counting costs, fine-tuning the
last layer, computing exact metrics), and the interaction part of the extracted model over the same rows with the same
embedded features. These are the fine-tuning rows, each once, and the validation rows.
"""

import resource
import statistics
import time
from pathlib import Path

import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.supernet import load_supernet


@torch.no_grad()
def main(supernet: Path, data: Path, evaluation: EvaluationConfig, architectures: int = 20, threads: int = 1) -> None:
    """Prints the seconds of both, and the median of their ratios.

    Args:
        supernet: Folder of the run that trained the supernet.
        data: The prepared data set.
        architectures: Number of architectures to sample from the supernet's space.
        threads: Number of threads that PyTorch computes with.
    """
    torch.set_num_threads(threads)
    model = load_supernet(supernet)
    started = time.perf_counter()
    evaluator = Evaluator(model, open_split(data, "train"), open_split(data, "validation"), evaluation)
    cached = [evaluator.validation_rows]
    if evaluator.finetuning_rows is not None:
        cached.insert(0, evaluator.finetuning_rows.cached)
    print(
        f"{' + '.join(f'{len(rows):,}' for rows in cached)} rows looked up in {time.perf_counter() - started:.1f} s; "
        f"the cache has {sum(rows.nbytes for rows in cached) / 2**20:,.1f} MiB"
    )
    generator = torch.Generator().manual_seed(0)
    ratios, seconds = [], []
    print("  evaluation, s   forward, s   ratio")
    for _ in range(architectures):
        architecture = model.search_space.sample(generator)
        arch = model.extract(architecture).interaction_arch.eval()
        started = time.perf_counter()
        evaluator(architecture)
        evaluated = time.perf_counter() - started
        started = time.perf_counter()
        for rows in cached:
            for part in rows.chunks(evaluation.pass_rows):
                arch(*part)
        bare = time.perf_counter() - started
        seconds.append(evaluated)
        ratios.append(evaluated / bare)
        print(f"  {evaluated:13.3f}   {bare:10.3f}   {ratios[-1]:5.2f}", flush=True)
    print(
        f"median of {architectures}: evaluation {statistics.median(seconds):.3f} s, "
        f"ratio {statistics.median(ratios):.2f}; {60 / statistics.fmean(seconds):.3g} candidates per minute; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB of memory at most"
    )


if __name__ == "__main__":
    run(main)
