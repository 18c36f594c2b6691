"""Which precisions of the dense part a device has, and which make it faster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nasrec_torchrec.training.config import TrainPrecision

# Compute capability of the first GPUs with TF32 and bfloat16.
_AMPERE = (8, 0)


def check_precision(precision: TrainPrecision, device: torch.device) -> list[str]:
    """Returns what to say about a precision that is slower than float32 here, if it is.

    Args:
        precision: precision of the dense part.
        device: device that trains.

    Raises:
        ValueError: If the device does not have it.
    """
    if precision == "fp32":
        return []
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < _AMPERE:
            raise ValueError(
                f"precision: {precision} needs a GPU of compute capability 8.0 or newer, and "
                f"{torch.cuda.get_device_name(device)} has "
                f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}; use fp32"
            )
        return []
    if precision == "tf32":
        raise ValueError("precision: tf32 is a mode of GPUs, and this training runs on the CPU; use fp32 or bf16")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return []
    return ["precision bf16: this CPU has no instructions for it (AVX512-BF16 or AMX), so that fp32 is faster"]


@contextmanager
def matmul_precision(precision: TrainPrecision) -> Iterator[None]:
    """Lets matrix products of float32 run in TF32 for as long as the context lasts, if that is the precision."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
