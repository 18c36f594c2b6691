"""Measures what a generation of children costs by the default evaluation, and by the paper's, in turns.

    python benchmarks/generation_cost.py

Rows have Criteo's shape and random labels, and the supernet of NASRec-Full is not trained: the seconds are real, and
the losses mean nothing. The children are mutations of one architecture. As in a search, they race against the best one
so far: the best of themselves and their parent, which is evaluated first, on all rows.
"""

import statistics
import time

import torch
from click_steps import click_schema
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_FULL, SuperNet
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator

GROUP = 65_536


class GeneratedRows:
    """Rows with random features and labels, which are read like those of a prepared split."""

    log_odds_added = 0.0

    def __init__(self, schema: Schema, count: int) -> None:
        self.schema = schema
        self.groups = tuple((0, first, min(GROUP, count - first)) for first in range(0, count, GROUP))

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.groups)

    def read(self, group: int) -> ClickData:
        generator = torch.Generator().manual_seed(group)
        rows, features = self.groups[group][2], self.schema.sparse
        ids = torch.randint(features[0].num_embeddings, (rows * len(features),), generator=generator)
        sparse = KeyedJaggedTensor(self.schema.feature_names, ids, lengths=torch.ones_like(ids))
        labels = (torch.rand(rows, generator=generator) < 0.25).float()
        return ClickData(torch.randn(rows, len(self.schema.dense), generator=generator), sparse, labels)


def main(children: int = 3, mutations: int = 1, quick: bool = False) -> None:
    """Prints the seconds of every child, and how many times as fast the default is.

    Args:
        children: Number of children.
        mutations: Number of mutations of a child.
        quick: Uses few rows, to see that it works.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    few = {"finetune_steps": 4, "finetune_batch_size": 64, "evaluation_rows": 2000} if quick else {}
    schema = click_schema(rows=1000)
    supernet = SuperNet(EmbeddingBagCollection(tables=schema.tables()), len(schema.dense), NASREC_FULL)
    default = EvaluationConfig(**few)
    paper = EvaluationConfig(**few, finetune_rows=None, race_tolerance=0, together=1)
    wanted = default.finetune_steps * default.finetune_batch_size
    rows = GeneratedRows(schema, wanted), GeneratedRows(schema, default.evaluation_rows)
    evaluators = {"default": Evaluator(supernet, *rows, default), "paper": Evaluator(supernet, *rows, paper)}
    generator = torch.Generator().manual_seed(0)
    parent = NASREC_FULL.sample(generator)
    family = []
    for _ in range(children):
        child = parent
        for _ in range(mutations):
            child = NASREC_FULL.mutate(child, generator)
        family.append(child)
    every = evaluators["default"].several([parent, *family])
    incumbent = min(every, key=lambda candidate: candidate.loss)
    family = [candidate.architecture for candidate in every if candidate is not incumbent]
    started = time.perf_counter()
    together = evaluators["default"].several(family, incumbent)
    each = (time.perf_counter() - started) / len(family)
    print(f"{children} children of {mutations} mutation(s), {wanted:,} + {default.evaluation_rows:,} rows, 1 thread")
    print(f"default, together: {each:.2f} s a candidate; rows seen: {[one.metrics.rows for one in together]}")
    print("  paper, s   default alone, s   times as fast   with the others")
    ratios = []
    for child in family:
        seconds = {}
        for name, evaluator in evaluators.items():
            started = time.perf_counter()
            evaluator(child, incumbent)
            seconds[name] = time.perf_counter() - started
        ratios.append(seconds["paper"] / each)
        alone = seconds["paper"] / seconds["default"]
        print(
            f"  {seconds['paper']:8.2f}   {seconds['default']:16.2f}   {alone:13.1f}   {ratios[-1]:15.1f}", flush=True
        )
    print(f"median: {statistics.median(ratios):.1f} times as fast")


if __name__ == "__main__":
    run(main)
