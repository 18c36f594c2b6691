"""Rows per second of training and of inference, beside TorchRec's models over the same tables.

    python benchmarks/throughput.py

NASRecNets (published for Criteo, and one that was searched) and TorchRec's DLRM and DLRM_DCN over the same 26 tables,
as the trainer runs them: DistributedModelParallel, tables with fused Adagrad. All models take turns in one process. The
rate of the matrix products, counted by PyTorch (a training step as three forward passes), stands beside the rate that
this machine reaches in a float32 product of 1,024 x 1,024 matrices, measured in the same turns.
"""

import json
import statistics
from pathlib import Path
from typing import Literal

import torch
from click_steps import ClickSteps, click_schema, gemm, in_turns, random_batch, spread

from nasrec_torchrec import PUBLISHED, Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import write_text

_HEAD = (
    f"{'parameters':>11}{'MFLOP/row':>11}  {'median step (deciles)':<30}{'rows/s':>9}{'DLRM/model':>12}"
    f"{'GFLOP/s':>9}{'of GEMM':>9}"
)
SEARCHED = Path(__file__).parent / "searched-frappe.json"


def main(
    batch_sizes: tuple[int, ...] = (512, 4096),
    rounds: int = 10,
    architecture: Path = SEARCHED,
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32",),
    compile: bool = False,
    threads: int = 1,
    out: Path | None = None,
    quick: bool = False,
) -> None:
    """Prints a table for every batch size and precision; on CUDA where there is one, with TF32.

    Args:
        batch_sizes: rows of a step.
        rounds: turns of each model.
        architecture: of the searched NASRecNet.
        precisions: of the dense part.
        compile: the dense parts, with torch.compile.
        threads: that PyTorch computes with.
        out: JSON file for the raw seconds.
        quick: three rounds at the first batch size, to see that it runs.
    """
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    models = {
        "NASRecNet criteo-full": PUBLISHED["criteo-full"],
        "NASRecNet criteo-small": PUBLISHED["criteo-small"],
        "NASRecNet searched": Architecture.from_json(architecture.read_text()),
        "DLRM": Baseline("dlrm", (512, 256, 16), (512, 512, 256, 1)),
        "DLRM_DCN": Baseline("dcn", (512, 256, 16), (512, 512, 256, 1), cross_layers=3, cross_rank=128),
    }
    schema = click_schema()
    raw = []
    with process_group() as device:
        for batch_size in batch_sizes[: 1 if quick else None]:
            batch = random_batch(schema, batch_size, device)
            for precision in precisions:
                steps = {
                    name: ClickSteps(ModelDescription(schema, interaction), batch, device, precision, compile)
                    for name, interaction in models.items()
                }
                product, product_flops = gemm(device)
                calls = {f"{name}/train": step.train for name, step in steps.items()}
                calls |= {f"{name}/score": step.score for name, step in steps.items()}
                seconds = in_turns({**calls, "GEMM": product}, 3 if quick else rounds, device)
                rate = product_flops / statistics.median(seconds["GEMM"])
                place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread(s)"
                print(
                    f"\nbatch {batch_size}, {precision}{', compiled' if compile else ''}, {place}, "
                    f"torch {torch.__version__}; GEMM {rate / 1e9:.0f} GFLOP/s"
                )
                print(f"{'':30}{_HEAD}")
                flops_of = {name: step.flops() for name, step in steps.items()}
                for kind, passes in (("train", 3), ("score", 1)):
                    reference = statistics.median(seconds[f"DLRM/{kind}"])
                    for name, step in steps.items():
                        measured = seconds[f"{name}/{kind}"]
                        median = statistics.median(measured)
                        flops = flops_of[name]
                        reached = passes * flops / median
                        print(
                            f"{name:<24}{kind:<6}{step.parameters:>11,}"
                            f"{flops / batch_size / 1e6:>11.2f}  {spread(measured):<30}{batch_size / median:>9,.0f}"
                            f"{reference / median:>12.2f}{reached / 1e9:>9.0f}{reached / rate:>9.2f}",
                            flush=True,
                        )
                raw.append({"batch": batch_size, "precision": precision, "place": place, "seconds": seconds})
    if out is not None:
        write_text(out, json.dumps(raw))


if __name__ == "__main__":
    run(main)
