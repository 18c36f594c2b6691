"""Runs the research code and records what its networks compute, as the vectors that the tests compare with.

The vectors are numbers only; none of the research code is copied here. To write them again, clone the repository
and run, in an environment with PyTorch and NumPy::

    git clone https://github.com/facebookresearch/NasRec
    python tests/golden/generate.py --checkout NasRec --output tests/golden

Weights and inputs are not stored: every tensor is drawn from a generator seeded with the CRC-32 of its name, so a
test regenerates them from the names and shapes in the file (``RULE`` below, which every file repeats).
"""

import argparse
import copy
import importlib
import json
import math
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn import functional as F

RULE = """\
rs(name) is numpy.random.RandomState(zlib.crc32(name.encode())). All values are float32; a scale is computed in \
float64, rounded to float32 and multiplied in float32.
Weights, by their name in the research code: z = rs(name).standard_normal(shape).astype(float32), then
  _embedding.*                        0.2 z
  1-D, ends with .weight (LayerNorm)  c (1 + 0.1 z), where c is 0.17 in names with ._attn_ and 1 in all others
  1-D, all others (biases)            0.05 z
  2-D, name contains .deep_fm.        0.1 / sqrt(shape[1]) z
  2-D, all others                     1 / sqrt(shape[1]) z
Inputs: B rows, nd dense and ns sparse features, 50 rows per table.
  dense   rs('int_x').standard_normal((B, nd)).astype(float32)
  ids     rs('cat_x').randint(0, 50, size=(B, ns))
  labels  (rs('y').random_sample((B, 1)) < 0.5).astype(float32)"""
FIELDS = {
    "parameters": "by name: shape, sum and l2 norm of the loss's gradient (null where no gradient arrives)",
    "logits": "in evaluation mode, weights and inputs cast to float64",
    "blocks": "of each choice block's dense, then sparse output: sum and l2 norm",
    "loss": "mean binary cross-entropy with logits",
    "training": "three steps on the batch with clip_grad_norm_(5) and Adagrad(lr=0.001, eps=1e-2): "
    "the loss before each step, the gradient norm before clipping, the logits after the last step",
}
FEATURES = {"criteo": (13, 26), "avazu": (1, 23), "kdd": (3, 10)}
ROWS_PER_TABLE = 50

# Published architecture -> the file that holds it.
NETWORKS = {
    f"{dataset}-{size}": f"nasrec/configs/{dataset}/ea_{dataset}_kaggle_{config}_best_1shot.json"
    for dataset in FEATURES
    for size, config in (("full", "xlarge"), ("small", "autoctr"))
}
_LAYERNORM = {False: "layernorm_off", True: "layernorm_on"}


def _micro(operators: tuple[int, int], dense: int, tokens: int, dense_to_sparse: int, fm: int) -> dict[str, Any]:
    return {
        "active_nodes": list(operators),
        "dense_in_dims": dense,
        "sparse_in_dims": tokens,
        "dense_sparse_interact": dense_to_sparse,
        "deep_fm": fm,
    }


def _macro(dense: list[int], sparse: list[int], operand: int = 0) -> dict[str, Any]:
    return {"dense_idx": dense, "sparse_idx": sparse, "dense_left_idx": [operand], "dense_right_idx": [operand]}


# Subnets of supernets with three blocks. The research code runs every operator at its largest and masks what is not
# selected; the linears, the factorization machine and the mergers then compute what the subnet alone computes, and so
# do these choices of the other operators: attention and the dot product at full width, binary operators whose two
# operands are one output. (The masked tokens of a narrower attention still take part in it there.)
SUPERNETS: dict[str, dict[str, dict[str, Any]]] = {
    "xlarge": {
        "gating-attention": {
            "micro": [_micro((2, 4), 256, 64, 1, 0), _micro((0, 5), 32, 48, 1, 1), _micro((1, 4), 1024, 64, 0, 1)],
            "macro": [_macro([0], [0]), _macro([0, 1], [1], 1), _macro([1], [0, 1, 2], 2)],
        },
        "sum-linear": {
            "micro": [_micro((3, 5), 64, 32, 0, 1), _micro((2, 5), 768, 16, 1, 0), _micro((3, 4), 512, 64, 1, 0)],
            "macro": [_macro([0], [0]), _macro([1], [0, 1], 1), _macro([0, 2], [2], 1)],
        },
    },
    "autoctr": {
        "linear": {
            "micro": [_micro((0, 2), 512, 48, 1, 1), _micro((0, 2), 64, 16, 1, 0), _micro((0, 2), 256, 32, 1, 1)],
            "macro": [_macro([0], [0]), _macro([1], [0]), _macro([0, 1, 2], [1, 2])],
        },
        "dot-product": {
            "micro": [_micro((1, 2), 1024, 64, 0, 1), _micro((0, 2), 32, 64, 0, 0), _micro((1, 2), 1024, 16, 0, 0)],
            "macro": [_macro([0], [0]), _macro([0, 1], [1]), _macro([2], [0, 2])],
        },
    },
}


def _rs(name: str) -> RandomState:
    return RandomState(zlib.crc32(name.encode()))


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that ``RULE`` gives a name and a shape."""
    z = _rs(name).standard_normal(shape).astype(np.float32)
    if name.startswith("_embedding."):
        value = np.float32(0.2) * z
    elif len(shape) == 1 and name.endswith(".weight"):
        value = np.float32(0.17 if "._attn_" in name else 1) * (np.float32(1) + np.float32(0.1) * z)
    elif len(shape) == 1:
        value = np.float32(0.05) * z
    else:
        value = z * np.float32((0.1 if ".deep_fm." in name else 1.0) / math.sqrt(shape[1]))
    return torch.from_numpy(value)


def inputs(rows: int, dense: int, sparse: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense features, ids and labels by ``RULE``."""
    return (
        torch.from_numpy(_rs("int_x").standard_normal((rows, dense)).astype(np.float32)),
        torch.from_numpy(_rs("cat_x").randint(0, ROWS_PER_TABLE, size=(rows, sparse))),
        torch.from_numpy((_rs("y").random_sample((rows, 1)) < 0.5).astype(np.float32)),
    )


def _number(value: float) -> float:
    return float(f"{value:.12g}")


def _summary(tensor: Tensor) -> list[float]:
    return [_number(tensor.sum().item()), _number(tensor.norm().item())]


def _gradients(model: nn.Module) -> dict[str, list[Any]]:
    return {
        name: [list(parameter.shape), *([None, None] if parameter.grad is None else _summary(parameter.grad))]
        for name, parameter in model.named_parameters()
    }


def _prepared(model: nn.Module, dense: Tensor, ids: Tensor) -> nn.Module:
    """Materialises the lazy layers by one forward pass, then loads the weights of ``RULE``."""
    with torch.no_grad():
        model(dense, ids)
    model.load_state_dict({name: weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    return model.double()


def _observe(model: nn.Module, dense: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Any]:
    """Logits, block outputs, loss and gradients in float64."""
    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda _, __, out: outputs.append(out)) for block in model._blocks]
    model.eval()
    with torch.no_grad():
        logits = model(dense, ids)
    for handle in handles:
        handle.remove()
    model.train()
    model.zero_grad()
    loss = F.binary_cross_entropy_with_logits(model(dense, ids), labels)
    loss.backward()
    return {
        "logits": [_number(value) for value in logits.flatten().tolist()],
        "blocks": [[_summary(part) for part in output] for output in outputs],
        "loss": _number(loss.item()),
        "parameters": _gradients(model),
    }


def _train(model: nn.Module, dense: Tensor, ids: Tensor, labels: Tensor) -> dict[str, list[float]]:
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.001, eps=1e-2)
    losses, norms = [], []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(dense, ids), labels)
        loss.backward()
        losses.append(_number(loss.item()))
        norms.append(_number(nn.utils.clip_grad_norm_(model.parameters(), 5.0).item()))
        optimizer.step()
    with torch.no_grad():
        logits = model(dense, ids).flatten()
    return {"losses": losses, "gradient_norms": norms, "logits": [_number(value) for value in logits.tolist()]}


def network(research: Any, checkout: Path, name: str, rows: int = 16) -> dict[str, Any]:
    """One published network, with LayerNorm off (as published) and on."""
    choice = json.loads((checkout / NETWORKS[name]).read_text())
    dense_features, sparse_features = FEATURES[name.split("-")[0]]
    dense, ids, labels = inputs(rows, dense_features, sparse_features)
    cases = {}
    for use_layernorm in (False, True):
        model = research.SuperNet(
            num_blocks=choice["num_blocks"],
            ops_config=research.ops_config_lib[choice["config"]],
            use_layernorm=use_layernorm,
            num_embeddings=[ROWS_PER_TABLE] * sparse_features,
            sparse_input_size=sparse_features,
            path_sampling_strategy="fixed-path",
            fixed=True,
            fixed_choice=copy.deepcopy(choice),
        )
        model = _prepared(model, dense, ids)
        batch = dense.double(), ids, labels.double()
        cases[_LAYERNORM[use_layernorm]] = _observe(model, *batch) | {"training": _train(model, *batch)}
    return {
        "architecture": choice,
        "dense_features": dense_features,
        "sparse_features": sparse_features,
        "rows": rows,
        "cases": cases,
    }


def supernet(research: Any, config: str, rows: int = 8) -> dict[str, Any]:
    """A supernet of three blocks on Criteo's features: its full path, and subnets of it with LayerNorm off."""
    dense_features, sparse_features = FEATURES["criteo"]
    dense, ids, labels = inputs(rows, dense_features, sparse_features)
    cases = {}
    for use_layernorm in (False, True):
        model = research.SuperNet(
            num_blocks=3,
            ops_config=research.ops_config_lib[config],
            use_layernorm=use_layernorm,
            num_embeddings=[ROWS_PER_TABLE] * sparse_features,
            sparse_input_size=sparse_features,
            path_sampling_strategy="full-path",
        )
        model = _prepared(model, dense, ids)
        batch = dense.double(), ids, labels.double()
        cases[_LAYERNORM[use_layernorm]] = _observe(model, *batch)
        if use_layernorm:
            continue  # there over the largest width, here over the width in use
        subnets = {}
        for name, choice in SUPERNETS[config].items():
            model.configure_path_sampling_strategy("fixed-path")
            model.configure_choice(choice)
            observed = _observe(model, *batch)
            reached = {key: value[1:] for key, value in observed.pop("parameters").items() if value[1] is not None}
            subnets[name] = {"architecture": choice} | observed | {"gradients": reached}
    return {
        "config": config,
        "dense_features": dense_features,
        "sparse_features": sparse_features,
        "rows": rows,
        "cases": cases,
        "subnets": subnets,
    }


def _learning_rates(schedule: Any) -> list[dict[str, Any]]:
    """The warm-up and cosine curve of two trainings, every 7th step of it."""
    cases = []
    for steps, warmup, peak in ((200, 20, 0.16), (150, 15, 0.12)):
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adagrad([parameter], lr=peak)
        scheduler = schedule(optimizer, first_cycle_steps=steps, warmup_steps=warmup, max_lr=peak, min_lr=1e-8)
        rates = []
        for _ in range(steps):
            rates.append(_number(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        chosen = sorted({*range(0, steps, 7), 1, warmup - 1, warmup, warmup + 1, steps - 1})
        cases.append({"steps": steps, "warmup": warmup, "peak": peak, "rates": {step: rates[step] for step in chosen}})
    return cases


# How many embeddings the research code's search and its final trainings allow a table.
CAPS = {"search": 500_000, "final": 500_000 * 10_000}


def _lines(dataset: str, count: int = 8) -> list[str]:
    """Raw rows made up here: missing and negative counts, missing, short and long hexadecimal ids."""
    rng = _rs(f"lines of {dataset}")
    dense, sparse = FEATURES[dataset]
    lines = []
    for row in range(count):
        counts = [
            "" if rng.random_sample() < 0.2 else str(rng.randint(-3, 10 ** rng.randint(1, 7))) for _ in range(dense)
        ]
        ids = [
            "" if rng.random_sample() < 0.1 else f"{rng.randint(2**32):0{1 + 7 * (row % 2)}x}" for _ in range(sparse)
        ]
        lines.append("\t".join([str(row % 2), *counts, *ids]))
    return lines


def _transforms(pipes: Any) -> list[dict[str, Any]]:
    """Raw rows and the tensors that the research code's data pipeline makes of them."""
    cases = []
    for dataset in FEATURES:
        reader = getattr(pipes, dataset)
        transform = getattr(
            pipes,
            {"criteo": "VanillaTransformCriteo", "avazu": "VanillaTransformAvazu"}.get(dataset, "VanillaTransformKDD"),
        )
        tables = f"NUM_EMBEDDINGS_{dataset.upper()}"
        whole = getattr(pipes, tables)
        lines = _lines(dataset)
        rows = [reader._default_row_mapper(line.split("\t")) for line in lines]
        batch = {key: [row[key] for row in rows] for key in rows[0]}
        for key, values in batch.items():
            if not isinstance(values[0], str):
                batch[key] = torch.tensor(values)
        for cap in CAPS.values():
            setattr(pipes, tables, [min(size, cap) for size in whole])
            dense, ids, labels = transform(batch)
            cases.append(
                {
                    "dataset": dataset,
                    "num_embeddings": getattr(pipes, tables),
                    "lines": lines,
                    "labels": labels.flatten().tolist(),
                    "dense": [[_number(value) for value in row] for row in dense.tolist()],
                    "ids": ids.tolist(),
                }
            )
    return cases


def _write(file: Path, content: dict[str, Any], commit: str) -> None:
    source = {"source": f"facebookresearch/NasRec at {commit}, run by tests/golden/generate.py in float64 on the CPU"}
    text = json.dumps(source | content, separators=(",", ":"))
    file.write_text(re.sub(r'(?<=[\]}]),(?=")', ",\n", text) + "\n")


def main() -> None:
    """Writes every vector file."""
    parser = argparse.ArgumentParser(description="Record what the research code's networks compute.")
    parser.add_argument("--checkout", type=Path, required=True, help="a clone of facebookresearch/NasRec")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where the files go")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(flags.checkout.resolve()))
    research = importlib.import_module("nasrec.supernet.supernet")
    schedule = importlib.import_module("nasrec.utils.lr_schedule").CosineAnnealingWarmupRestarts
    commit = subprocess.run(
        ["git", "-C", flags.checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    rule = {"rule": RULE, "fields": FIELDS}
    for name in NETWORKS:
        _write(flags.output / f"{name}.json", rule | network(research, flags.checkout, name), commit)
    for config, name in (("xlarge", "full"), ("autoctr", "small")):
        _write(flags.output / f"supernet-{name}.json", rule | supernet(research, config), commit)
    pipes = importlib.import_module("nasrec.utils.data_pipes")
    _write(flags.output / "transforms.json", {"cases": _transforms(pipes)}, commit)
    _write(flags.output / "learning-rate.json", {"cases": _learning_rates(schedule)}, commit)


if __name__ == "__main__":
    main()
