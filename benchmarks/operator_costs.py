"""Measures what each operator costs: a training step, and the latency of the compiled network that serves.

    python benchmarks/operator_costs.py

A network of two equal blocks has one dense and one sparse operator in each, and its final layer reads both outputs. The
first one has the cheapest of both sides, `fully_connected` and `embedded_fully_connected`; each of the others has one
of these replaced. All read 13 dense features and 26 fields of width 16, and all networks of a side take turns on one
thread, so that their times can be compared.
"""

import statistics
from collections.abc import Callable

import torch
from click_steps import ClickSteps, click_schema, in_turns, random_batch, spread
from inference import compiled
from torch import Tensor

from nasrec_torchrec import Architecture
from nasrec_torchrec.architecture import BlockArchitecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.scoring_model import scoring_model
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.operator_kinds import KINDS, Side
from nasrec_torchrec.search.cost import model_multiply_adds

_CHEAPEST: dict[Side, str] = {"dense": "fully_connected", "sparse": "embedded_fully_connected"}
_BLOCKS = 2


def main(batch_size: int = 512, rounds: int = 100, rows: int = 10_000, quick: bool = False) -> None:
    """Prints a table for the dense and one for the sparse operators.

    Args:
        batch_size: Rows of a step and of a request.
        rows: Rows of every table.
        rounds: Measurements of each network.
        quick: Three measurements of two sparse operators.
    """
    torch.set_num_threads(1)
    for side, cheapest in _CHEAPEST.items():
        names = [name for name, kind in KINDS.items() if kind.side == side and name != cheapest]
        if not quick:
            _measure(side, [cheapest, *names], batch_size, rounds, rows)
        elif side == "sparse":
            _measure(side, [cheapest, "squeeze_excitation"], batch_size, 3, rows)


def _architecture(side: Side, operator: str) -> Architecture:
    """Returns a network of two blocks with one operator of each side."""
    chosen = _CHEAPEST | {side: operator}
    blocks = [
        BlockArchitecture(
            dense_operators=(chosen["dense"],),
            sparse_operators=(chosen["sparse"],),
            dense_width=128,
            sparse_width=16,
            dense_inputs=(block,),
            sparse_inputs=(block,),
            left_inputs=(0,),
            right_inputs=(block,),
            dense_to_sparse=False,
            sparse_to_dense=False,
        )
        for block in range(_BLOCKS)
    ]
    return Architecture(tuple(blocks))


def _measure(side: Side, operators: list[str], batch_size: int, rounds: int, rows: int) -> None:
    schema = click_schema(rows=rows)
    counted: dict[str, int] = {}
    steps: dict[str, Callable[[], object]] = {}
    requests: dict[str, Callable[[], Tensor]] = {}
    with process_group() as device:
        batch = random_batch(schema, batch_size, device)
        sparse = batch.sparse_features
        request = batch.dense_features, sparse.values(), sparse.lengths().view(-1, batch_size).long()
        for operator in operators:
            description = ModelDescription(schema, _architecture(side, operator))
            steps[operator] = ClickSteps(description, batch, device).train
            model = description.build().eval()
            counted[operator] = model_multiply_adds(model, batch)
            scoring = scoring_model(model, ExportConfig(), schema.feature_names)
            fast = compiled(scoring)
            with torch.no_grad():
                torch.testing.assert_close(fast(*request), scoring(*request), rtol=1e-5, atol=1e-5)
            requests[operator] = torch.inference_mode()(lambda fast=fast: fast(*request))
        latency = in_turns(requests, rounds, device)
        training = in_turns(steps, rounds, device)
    print(f"| {side} operator | multiply-adds | compiled, {batch_size} rows | times | training step | times |")
    print("|---|---:|---:|---:|---:|---:|")
    for operator in operators:
        ratios = [
            statistics.median(one / other for one, other in zip(found[operator], found[operators[0]], strict=True))
            for found in (latency, training)
        ]
        print(
            f"| `{operator}` | {counted[operator]:,} | {spread(latency[operator]).strip()} | {ratios[0]:.2f} "
            f"| {spread(training[operator]).strip()} | {ratios[1]:.2f} |"
        )
    print()


if __name__ == "__main__":
    run(main)
