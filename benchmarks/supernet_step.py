"""Compares a training step of the supernet with the same step of the extracted model, in turns in one process.

    python benchmarks/supernet_step.py --batch_size 512 --profile profile.txt

Both steps look up the same tables, run forward and backward, clip the gradients and update with Adagrad. The supernet's
step also samples its architecture and binds the views. The tables are frozen, because only the dense part differs.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_2026, NASREC_FULL, NASREC_SMALL, Architecture, NASRecNet, SearchSpace, SuperNet
from nasrec_torchrec.cli import run
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

NUM_DENSE, NUM_SPARSE, ROWS, EMBEDDING_DIM = 13, 26, 1000, 16
_SPACES = {"full": NASREC_FULL, "small": NASREC_SMALL, "2026": NASREC_2026}
PHASES = ("sample and bind", "forward", "backward", "clip", "optimizer")


class Steps:
    """Training steps of a supernet and of the models extracted from it, with the seconds of their phases."""

    def __init__(self, space: SearchSpace, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        tables = [
            EmbeddingBagConfig(name=f"t{i}", embedding_dim=EMBEDDING_DIM, num_embeddings=ROWS, feature_names=[f"f{i}"])
            for i in range(NUM_SPARSE)
        ]
        self.space, self.device = space, device
        self.supernet = SuperNet(EmbeddingBagCollection(tables=tables), NUM_DENSE, space).to(device)
        self.supernet.sparse_arch.requires_grad_(False)
        interaction = self.supernet.interaction_arch
        self.optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters)
        self.dense = torch.randn(batch_size, NUM_DENSE, device=device)
        self.kjt = KeyedJaggedTensor(
            [f"f{i}" for i in range(NUM_SPARSE)],
            torch.randint(0, ROWS, (batch_size * NUM_SPARSE,)),
            lengths=torch.ones(batch_size * NUM_SPARSE, dtype=torch.int64),
        ).to(device)
        self.labels = (torch.rand(batch_size, 1) < 0.25).float().to(device)

    def architecture(self, seed: int) -> Architecture:
        return self.space.sample(torch.Generator().manual_seed(seed))

    def shared(self, seed: int, precision: Callable[[], AbstractContextManager[object]] = nullcontext) -> "Timing":
        timing = Timing(self.device)
        self.supernet.set_architecture(self.architecture(seed))
        interaction = self.supernet.interaction_arch
        active = [view for _, view in interaction.active_parameters()]
        self._step(self.supernet, self.optimizer, active, precision, timing.after(PHASES[0]))
        return timing

    def alone(self, model: NASRecNet, optimizer: torch.optim.Optimizer) -> "Timing":
        timing = Timing(self.device).after(PHASES[0])
        self._step(model, optimizer, list(model.interaction_arch.parameters()), nullcontext, timing)
        return timing

    def _step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        precision: Callable[[], AbstractContextManager[object]],
        timing: "Timing",
    ) -> None:
        optimizer.zero_grad()
        with precision():
            logits: Tensor = model(self.dense, self.kjt)
        loss = F.binary_cross_entropy_with_logits(logits.float(), self.labels)
        timing.after(PHASES[1]).loss = loss.detach()
        loss.backward()
        timing.after(PHASES[2])
        nn.utils.clip_grad_norm_(parameters, 5.0)
        timing.after(PHASES[3])
        optimizer.step()
        timing.after(PHASES[4])


class Timing:
    """The seconds of a step by phase."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.loss = torch.tensor(0.0)
        self._last = time.perf_counter()

    def after(self, phase: str) -> "Timing":
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now
        return self

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def main(
    batch_size: int = 512,
    architectures: int = 50,
    space: Literal["full", "small", "2026"] = "full",
    threads: int = 1,
    device: str = "cpu",
    profile: Path | None = None,
    compile: bool = False,
) -> None:
    """Times the steps of the supernet and of the extracted models in turns.

    Args:
        batch_size: Rows per step.
        architectures: Number of architectures to sample; each is timed three times on either side.
        space: NASRec-Full, NASRec-Small, or the space with the operators of later models.
        threads: Number of threads that PyTorch computes with.
        device: cpu or cuda.
        profile: File for a table of the operators in which the supernet's steps spend their time.
        compile: Whether to time the first extracted model compiled as well.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    steps = Steps(_SPACES[space], batch_size, where)
    print(
        f"float32 GEMM 1024^3: {gemm_rate(where):.0f} GFLOP/s, {threads} thread(s), torch {torch.__version__}, {device}"
    )

    def half() -> AbstractContextManager[object]:
        return torch.autocast(where.type, torch.bfloat16)

    shared, alone, halves, ratios, differences = [], [], [], [], []
    for seed in range(architectures):
        model = steps.supernet.extract(steps.architecture(seed))
        model.sparse_arch.requires_grad_(False)
        optimizer = torch.optim.Adagrad(model.interaction_arch.parameters(), lr=0.12, eps=1e-2)
        steps.alone(model, optimizer)
        steps.shared(seed)
        turns = [(steps.shared(seed), steps.alone(model, optimizer), steps.shared(seed, half)) for _ in range(3)]
        for found, column in zip((shared, alone, halves), zip(*turns, strict=True), strict=True):
            found.append(sorted(column, key=lambda timing: timing.total)[1])
        ratios.append(shared[-1].total / alone[-1].total)
        # The same weights and rows in both precisions.
        with torch.no_grad(), half():
            low = steps.supernet(steps.dense, steps.kjt).float()
        with torch.no_grad():
            exact = steps.supernet(steps.dense, steps.kjt)
        losses = [float(F.binary_cross_entropy_with_logits(logits, steps.labels)) for logits in (low, exact)]
        differences.append(abs(losses[0] - losses[1]))
    ordered = sorted(ratios)
    print(f"batch {batch_size}, NASRec-{space}, {architectures} architectures; medians in ms:")
    print(f"  {'':<18}{'supernet':>10}{'alone':>10}{'difference':>12}")
    for phase in (*PHASES, "step"):
        both = [statistics.median(_phase(t, phase) for t in found) * 1000 for found in (shared, alone)]
        print(f"  {phase:<18}{both[0]:>10.1f}{both[1]:>10.1f}{both[0] - both[1]:>12.1f}")
    print(
        f"  supernet / alone   {statistics.median(ratios):.2f} (from {ordered[0]:.2f} to {ordered[-1]:.2f}); "
        "by architecture:"
    )
    for start in range(0, len(ratios), 10):
        print("    " + " ".join(f"{ratio:.2f}" for ratio in ratios[start : start + 10]))
    faster = statistics.median(a.total / b.total for a, b in zip(shared, halves, strict=True))
    print(f"  bf16 autocast: {faster:.2f} times as fast as float32, loss differs by {max(differences):.1e} at most")
    if compile:
        _time_compiled(steps)
    if profile is not None:
        _write_profile(steps, min(architectures, 10), profile)


def _phase(timing: Timing, phase: str) -> float:
    return timing.total if phase == "step" else timing.seconds[phase]


def _time_compiled(steps: Steps) -> None:
    models = [steps.supernet.extract(steps.architecture(0)) for _ in range(2)]
    optimizers = []
    for model in models:
        model.sparse_arch.requires_grad_(False)
        optimizers.append(torch.optim.Adagrad(model.interaction_arch.parameters(), lr=0.12, eps=1e-2))
    started = time.perf_counter()
    models[0].interaction_arch.compile()
    steps.alone(models[0], optimizers[0])
    seconds = time.perf_counter() - started
    turns = [[steps.alone(m, o).total for m, o in zip(models, optimizers, strict=True)] for _ in range(10)]
    ratio = statistics.median(eager / compiled for compiled, eager in turns)
    print(f"  extracted model compiled: {ratio:.2f} times as fast, after {seconds:.0f} s of compiling (architecture 0)")


def _write_profile(steps: Steps, count: int, file: Path) -> None:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if steps.device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        for seed in range(count):
            steps.shared(seed)
    key = "self_cuda_time_total" if steps.device.type == "cuda" else "self_cpu_time_total"
    write_text(file, profiler.key_averages().table(sort_by=key, row_limit=25))
    print(f"  operators of {count} supernet steps: {file}")


def gemm_rate(device: torch.device) -> float:
    """Measures the GFLOP/s of a 1024^3 float32 matrix product, as the best of ten."""
    a, b = (torch.randn(1024, 1024, device=device) for _ in range(2))
    seconds = []
    for _ in range(10):
        timing = Timing(device)
        torch.mm(a, b)
        seconds.append(timing.after("product").total)
    return 2 * 1024**3 / min(seconds) / 1e9


if __name__ == "__main__":
    run(main)
