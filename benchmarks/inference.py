"""Measures how fast the forms of a model score, compared with TorchRec's DLRM exported in the same way.

    python benchmarks/inference.py

The models are the published Criteo networks with random weights over 26 tables of 100,000 rows. All forms of all models
are called in turns on one thread. "GEMM" is the time that the matrix products of the interaction part alone would take
at the rate that this machine reaches in a float32 product of two 1,024 x 1,024 matrices. "exp" is the time that the
exponentials of its attention alone would take as the export computes them, over cached numbers. Both are measured in
the same turns. No exact form of the model can be faster than their sum, unless its exponentials are.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import PUBLISHED, NASRecNet
from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import INDUCTOR_OPTIONS
from nasrec_torchrec.inference.scoring_model import ScoringModel, scoring_model, trace
from nasrec_torchrec.inference.tables import FloatTables
from nasrec_torchrec.modules.attention import NUM_HEADS, power_of_two

NUM_DENSE, NUM_SPARSE, ROWS, DIM = 13, 26, 100_000, 16
Call = Callable[[], Tensor]


class ScoringDLRM(ScoringModel):
    """TorchRec's DLRM with the tables and the inputs of a :class:`ScoringModel`."""

    def __init__(self, model: DLRM) -> None:
        nn.Module.__init__(self)
        ebc = model.sparse_arch.embedding_bag_collection
        self.tables = FloatTables(ebc, model.sparse_arch.sparse_feature_names)
        self.has_dense, self.weighted, self.dtype = True, False, torch.float32
        self.dense_arch, self.inter_arch, self.over_arch = model.dense_arch, model.inter_arch, model.over_arch
        self.interaction_arch = nn.Module()
        self.interaction_arch.dense_in_features = NUM_DENSE

    def forward(self, *inputs: Tensor) -> Tensor:
        dense, ids, lengths = inputs
        pooled = self.tables(ids, lengths, None)
        return self.over_arch(self.inter_arch(self.dense_arch(dense), pooled)).flatten()


@torch.inference_mode()
def main(batch_sizes: tuple[int, ...] = (1, 64, 512), seconds: float = 20.0, threads: int = 1) -> None:
    """Prints a table for every model and batch size.

    Args:
        batch_sizes: Numbers of rows per call.
        seconds: Seconds of measurements for each table.
        threads: Number of threads that PyTorch computes with.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for name in ("criteo-full", "criteo-small"):
        model = NASRecNet(_tables(), NUM_DENSE, PUBLISHED[name]).eval()
        forms = {
            "eager": lambda request, model=model: lambda: model(request[0], _keyed(request)),
            "eager, fused": _scoring(scoring_model(model, ExportConfig())),
            "torch.compile": _scoring(torch.compile(scoring_model(model, ExportConfig()), dynamic=True)),
            "AOTInductor": _scoring(compiled(scoring_model(model, ExportConfig()))),
            "AOTInductor, int8 tables": _scoring(compiled(scoring_model(model, ExportConfig(tables="int8")))),
        }
        attention = [block for block in PUBLISHED[name].blocks if "attention" in block.sparse_operators]
        exponentials = sum(NUM_HEADS * block.sparse_width**2 for block in attention)
        _measure(name, forms, batch_sizes, seconds, exponentials)
    dlrm = DLRM(_tables(), NUM_DENSE, [512, 256, DIM], [512, 512, 256, 1]).eval()
    forms = {
        "eager": lambda request: lambda: dlrm(request[0], _keyed(request)),
        "AOTInductor": _scoring(compiled(ScoringDLRM(dlrm).eval())),
    }
    _measure("DLRM (512-256-16, 512-512-256-1)", forms, batch_sizes, seconds, 0)


def _tables() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t{i}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[f"f{i}"])
            for i in range(NUM_SPARSE)
        ]
    )


def _request(batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, ROWS, (NUM_SPARSE * batch_size,))
    return torch.randn(batch_size, NUM_DENSE), ids, torch.ones(NUM_SPARSE, batch_size, dtype=torch.int64)


def _keyed(request: tuple[Tensor, Tensor, Tensor]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor([f"f{i}" for i in range(NUM_SPARSE)], request[1], lengths=request[2].flatten())


def _scoring(model: Callable[..., Tensor]) -> Callable[[tuple[Tensor, ...]], Call]:
    return lambda request: lambda: model(*request)


def compiled(scoring: ScoringModel) -> Callable[..., Tensor]:
    """Returns the compiled form of a model, as a package has it."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        package = str(Path(folder) / "model.pt2")
        torch._inductor.aoti_compile_and_package(
            trace(scoring), package_path=package, inductor_configs=INDUCTOR_OPTIONS
        )
        return torch._inductor.aoti_load_package(package)


def _measure(
    name: str, forms: dict[str, Callable[..., Call]], batch_sizes: tuple[int, ...], seconds: float, exponentials: int
) -> None:
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    rows, columns = torch.rand(256), torch.rand(8192)
    powers = torch.compile(lambda: power_of_two(rows.unsqueeze(1) + columns).sum(1), options=INDUCTOR_OPTIONS)
    powers()
    for batch_size in batch_sizes:
        request = _request(batch_size)
        calls = {form: make(request) for form, make in forms.items()}
        reference = calls["eager"]().flatten()
        for form, call in calls.items():
            call()
            difference = float((call().flatten() - reference).abs().max())
            assert difference < (0.1 if "int8" in form else 1e-4), (form, difference)
        with FlopCounterMode(display=False) as counter:
            calls["eager"]()
        calls |= {"GEMM": lambda: left @ right, "exp": powers}
        times: dict[str, list[float]] = {form: [] for form in calls}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times["GEMM"]) < 20:
            for form, call in calls.items():
                started = time.perf_counter()
                call()
                times[form].append(time.perf_counter() - started)
        rate = 2 * 1024**3 / statistics.median(times.pop("GEMM"))
        power = exponentials * batch_size * statistics.median(times.pop("exp")) / (rows.numel() * columns.numel())
        ideal = counter.get_total_flops() / rate
        eager = statistics.median(times["eager"])
        print(
            f"\n{name}, batch {batch_size}: GEMM {1e3 * ideal:.3f} ms at {rate / 1e9:.0f} GFLOP/s, "
            f"exp {1e3 * power:.3f} ms"
        )
        print("  form                        p50 ms    p99 ms     rows/s  eager/form  form/GEMM")
        for form, measured in times.items():
            p50, p99 = statistics.median(measured), sorted(measured)[int(0.99 * len(measured))]
            print(
                f"  {form:25} {1e3 * p50:8.3f}  {1e3 * p99:8.3f}  {batch_size / p50:9,.0f}  {eager / p50:10.2f}"
                f"  {p50 / ideal:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    run(main)
