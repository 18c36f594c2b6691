"""Compares training steps and scoring with the research code's, in turns in one process.

    git clone https://github.com/facebookresearch/NasRec
    python benchmarks/research_code.py --checkout NasRec

Both sides train on the same random rows of Criteo's shape with Adagrad and clipped gradients, without LayerNorm, as
published. Tables are small: the research code's optimizer updates every row of them in every step. Architectures of the
supernets are sampled on either side, by the rule that it trains with.
"""

import copy
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click_steps import ClickSteps, click_schema, in_turns, random_batch, spread
from supernet_step import Steps
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec import NASREC_FULL, NASREC_SMALL, PUBLISHED
from nasrec_torchrec.cli import run
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.description import ModelDescription

ROWS, BLOCKS = 1000, 7
# Ours and theirs.
NETWORKS = {
    "Criteo Full": ("criteo-full", "nasrec/configs/criteo/ea_criteo_kaggle_xlarge_best_1shot.json"),
    "Criteo Small": ("criteo-small", "nasrec/configs/criteo/ea_criteo_kaggle_autoctr_best_1shot.json"),
}
SUPERNETS = {"NASRec-Full": (NASREC_FULL, "xlarge"), "NASRec-Small": (NASREC_SMALL, "autoctr")}


class Original:
    """A network of the research code with its optimizer and a batch.

    Args:
        model: The network; its lazy layers are still without parameters.
        dense: Dense features of the batch.
        ids: One id for every table.
        labels: Labels of the batch.
        train_tables: Whether the tables are trained.
    """

    def __init__(self, model: nn.Module, dense: Tensor, ids: Tensor, labels: Tensor, train_tables: bool = True) -> None:
        self.model, self.dense, self.ids, self.labels = model, dense, ids, labels.view(-1, 1)
        with torch.no_grad():
            model(dense, ids)
        model.get_submodule("_embedding").requires_grad_(train_tables)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adagrad(self.parameters, lr=0.01, eps=1e-2)

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(self.model(self.dense, self.ids), self.labels).backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()

    @torch.no_grad()
    def score(self) -> None:
        self.model.eval()
        self.model(self.dense, self.ids)


def main(checkout: Path, batch_size: int = 512, rounds: int = 20, quick: bool = False) -> None:
    """Prints the seconds of either side and how many times as fast this package is.

    Args:
        checkout: Clone of facebookresearch/NasRec.
        batch_size: Rows per step.
        rounds: Number of turns.
        quick: Takes three turns, to see that it works.
    """
    if not (checkout / "nasrec" / "supernet" / "supernet.py").exists():
        raise ValueError(f"checkout: expected a clone of facebookresearch/NasRec, found {checkout}")
    sys.path.insert(0, str(checkout.resolve()))
    research = importlib.import_module("nasrec.supernet.supernet")
    torch.set_num_threads(1)
    print(f"batch {batch_size}, 1 thread, torch {torch.__version__}")
    print(f"{'':34}{'research code':<32}{'nasrec_torchrec':<32}times as fast (deciles)")
    with process_group() as device:
        for name, calls in _pairs(research, checkout, batch_size, device):
            seconds = in_turns(calls, 3 if quick else rounds, device)
            _print(name, seconds["theirs"], seconds["ours"])


def _pairs(
    research: Any, checkout: Path, batch_size: int, device: torch.device
) -> list[tuple[str, dict[str, Callable[[], object]]]]:
    schema = click_schema(rows=ROWS)
    batch = random_batch(schema, batch_size, device)
    dense, labels = batch.dense_features, batch.labels
    ids = batch.sparse_features.values().view(len(schema.sparse), batch_size).t().contiguous()
    pairs: list[tuple[str, dict[str, Callable[[], object]]]] = []
    for name, (published, file) in NETWORKS.items():
        choice = json.loads((checkout / file).read_text())
        original = Original(
            _original(research, choice["config"], choice["num_blocks"], copy.deepcopy(choice)), dense, ids, labels
        )
        ours = ClickSteps(ModelDescription(schema, PUBLISHED[published]), batch, device)
        pairs.append((f"{name}, training step", {"theirs": original.train, "ours": ours.train}))
        pairs.append((f"{name}, scoring", {"theirs": original.score, "ours": ours.score}))
    for name, (space, config) in SUPERNETS.items():
        supernet = _original(research, config, BLOCKS)
        original = Original(supernet, dense, ids, labels, train_tables=False)
        supernet.configure_path_sampling_strategy("any-path")
        steps = Steps(space, batch_size, device)
        seeds = iter(range(1_000_000))
        pairs.append(
            (
                f"{name}, sampled supernet step",
                {"theirs": original.train, "ours": lambda steps=steps, seeds=seeds: steps.shared(next(seeds))},
            )
        )
    return pairs


def _original(research: Any, config: str, blocks: int, choice: dict[str, Any] | None = None) -> Any:
    """A fixed network, or a supernet that is about to take every path once, for its lazy layers."""
    return research.SuperNet(
        num_blocks=blocks,
        ops_config=research.ops_config_lib[config],
        use_layernorm=False,
        num_embeddings=[ROWS] * 26,
        sparse_input_size=26,
        path_sampling_strategy="full-path" if choice is None else "fixed-path",
        fixed=choice is not None,
        fixed_choice=choice,
    )


def _print(name: str, theirs: list[float], ours: list[float]) -> None:
    ratios = sorted(slow / fast for slow, fast in zip(theirs, ours, strict=True))
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.9))
    print(
        f"{name:<34}{spread(theirs):<32}{spread(ours):<32}{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    run(main)
