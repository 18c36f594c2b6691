"""Measures rows per second of training and inference, compared with TorchRec's models over the same tables.

    python benchmarks/throughput.py

The models are NASRecNets (published for Criteo, and a searched one) and TorchRec's DLRM and DLRM_DCN over the same 26
tables, set up as the trainer does it: DistributedModelParallel with fused Adagrad in the tables. All models take turns
in one process. The rate of their matrix products, as counted by PyTorch (a training step as three forward passes), is
compared to the rate that this machine reaches in a float32 product of two 1,024 x 1,024 matrices in the same turns.
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
    """Prints a table for every batch size and precision. On CUDA devices it uses TF32.

    Args:
        batch_sizes: Numbers of rows per step.
        rounds: Number of turns of each model.
        architecture: Architecture of the searched NASRecNet.
        precisions: Precisions of the dense part.
        compile: Whether to compile the dense parts with torch.compile.
        threads: Number of threads that PyTorch computes with.
        out: JSON file for the raw seconds.
        quick: Measures three rounds at the first batch size, to see that it works.
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
