"""One step of gpu.sh: ``python benchmarks/gpu_steps.py STEP --out FOLDER``.

Most steps import PyTorch, TorchRec, FBGEMM and those parts of this package that need nothing else, since such a machine
may have nothing else. Every result is a line of JSON in ``FOLDER/STEP.jsonl`` as soon as it is known.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_FULL, PUBLISHED, NASRecNet, SuperNet, load_research_state_dict
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.modules.attention import NUM_HEADS
from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.search.sharing import SharedFeatures
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

Result = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DENSE, SPARSE, DIM = 13, 26, 16
# Peak rates of one H100 SXM without sparsity, in FLOP/s (NVIDIA's data sheet).
H100 = {"fp32": 67e12, "tf32": 494.7e12, "bf16": 989.4e12}


def imports(quick: bool) -> Iterator[Result]:
    """Versions, and what the device is."""
    import fbgemm_gpu

    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "none: measured on the CPU"
    yield {
        "torch": torch.__version__,
        "torchrec": torchrec.__version__,
        "fbgemm_gpu": getattr(fbgemm_gpu, "__version__", "unknown"),
        "python": sys.version.split()[0],
        "device": name,
    }


def lookup(quick: bool) -> Iterator[Result]:
    """A fused look-up and update under DistributedModelParallel, against plain tables on the CPU; bytes per second."""
    for rows in (64,) if quick else (512, 4096, 16384):
        tables, (_, kjt, _) = _tables(1000), _batch(rows, 1000)
        plain = tables(kjt.to("cpu")).values().detach()
        apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.1, "eps": 1e-2})
        fused = parallelize(nn.ModuleDict({"tables": tables}), DEVICE).module["tables"]

        def step(fused: Any = fused, kjt: KeyedJaggedTensor = kjt) -> Tensor:
            values = _values(fused(kjt))
            values.sum().backward()
            return values

        first = torch.stack([_by_key(fused(kjt))[name] for name in kjt.keys()], 1).flatten(1)
        difference = float((first.detach().cpu() - plain.view(rows, -1)).abs().max())
        seconds = _seconds({"step": step}, quick)["step"]
        # Read forward; read and written backward, with the optimizer's sums.
        yield {"rows": rows, "difference": difference, "seconds": seconds} | _rate(
            "bytes", 5 * 4 * rows * SPARSE * DIM, seconds
        )


def golden(quick: bool) -> Iterator[Result]:
    """Largest difference of published networks' logits from those of the research code, in float32 and float64."""
    sys.path.insert(0, str(ROOT / "tests"))
    from golden.generate import inputs, weight

    for name in ("criteo-full",) if quick else PUBLISHED:
        vectors = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())
        case = vectors["cases"]["layernorm_off"]
        rows, sparse = vectors["rows"], vectors["sparse_features"]
        shapes = {parameter: tuple(shape) for parameter, (shape, *_) in case["parameters"].items()}
        embeddings = next(shape[0] for parameter, shape in shapes.items() if parameter.startswith("_embedding."))
        model = NASRecNet(_tables(embeddings, sparse), vectors["dense_features"], PUBLISHED[name])
        load_research_state_dict(model, {parameter: weight(parameter, shape) for parameter, shape in shapes.items()})
        model.to(DEVICE)
        dense, ids, _ = inputs(rows, vectors["dense_features"], sparse)
        lengths = torch.ones(rows * sparse, dtype=torch.int64)
        kjt = KeyedJaggedTensor([f"f{i}" for i in range(sparse)], ids.t().flatten(), lengths=lengths).to(DEVICE)
        expected = torch.tensor(case["logits"], dtype=torch.float64)
        found = {}
        for kind in (torch.float32, torch.float64):
            model.interaction_arch.to(kind)
            with torch.no_grad():
                logits = model(dense.to(DEVICE, kind), kjt).flatten().double().cpu()
            found[str(kind).removeprefix("torch.")] = float((logits - expected).abs().max())
        yield {"network": name, **found}
        if found["float32"] > 2e-4 or found["float64"] > 1e-9:
            raise ValueError(f"{name}: expected logits within 2e-4 and 1e-9 of the research code's, found {found}")


def attention(quick: bool) -> Iterator[Result]:
    """Forward and backward passes of self-attention with narrow heads: PyTorch's kernels and ours, in turns.

    Each starts from the queries, keys and values side by side, as the model's linear emits them.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "math": SDPBackend.MATH,
    }
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for rows, tokens in [(8, 16)] if quick else [(rows, tokens) for rows in (512, 4096) for tokens in (16, 32, 48, 64)]:
        for precision, dtype in types.items():
            qkv = torch.randn(rows, tokens, 3 * DIM, device=DEVICE, dtype=dtype, requires_grad=True)
            grad = torch.randn(rows, tokens, DIM, device=DEVICE, dtype=dtype)

            def sdpa(qkv: Tensor, backend: SDPBackend) -> Tensor:
                heads = qkv.unflatten(-1, (3, NUM_HEADS, DIM // NUM_HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

            kernels: dict[str, Callable[[Tensor], Tensor]] = {
                name: partial(sdpa, backend=backend) for name, backend in backends.items()
            }
            if has_kernel(DIM // NUM_HEADS, device=DEVICE.type, tokens=tokens):
                kernels["ours"] = partial(self_attention, heads=NUM_HEADS)
            result: Result = {"rows": rows, "tokens": tokens, "precision": precision}
            calls: dict[str, Callable[[], object]] = {}
            for name, kernel in kernels.items():
                try:
                    torch.autograd.grad(kernel(qkv), qkv, grad)
                except RuntimeError as error:
                    yield result | {"kernel": name, "refused": str(error).splitlines()[0][:200]}
                    continue
                calls[f"{name} forward"] = partial(_without_gradients, kernel, qkv)
                calls[name] = lambda kernel=kernel, qkv=qkv, grad=grad: torch.autograd.grad(kernel(qkv), qkv, grad)
            exact = qkv.detach().double().requires_grad_()
            out = sdpa(exact, SDPBackend.MATH)
            expected = out, *torch.autograd.grad(out, exact, grad.double())
            difference = {}
            for name in kernels.keys() & calls.keys():
                out = kernels[name](qkv)
                found = out, *torch.autograd.grad(out, qkv, grad)
                difference[name] = [float((a - b).abs().max().detach()) for a, b in zip(found, expected, strict=True)]
            yield result | {"difference": difference, "seconds": _seconds(calls, quick)}


def _without_gradients(kernel: Callable[[Tensor], Tensor], qkv: Tensor) -> Tensor:
    with torch.no_grad():
        return kernel(qkv)


def training(quick: bool) -> Iterator[Result]:
    """Rows per second of training steps: published networks, sampled supernet steps and TorchRec's DLRM."""
    for rows in (16,) if quick else (512, 4096, 16384):
        for precision in ("fp32",) if quick else ("fp32", "tf32", "bf16"):
            for name in ("criteo-small", "dlrm") if quick else ("criteo-full", "criteo-small", "dlrm", "supernet-full"):
                yield _training_step(name, rows, precision, False, quick)


def compiled(quick: bool) -> Iterator[Result]:
    """The same with the dense part compiled by ``torch.compile``; the first step compiles, which takes a minute."""
    for precision in () if quick else ("bf16", "tf32"):
        for name in ("criteo-full", "criteo-small", "dlrm"):
            yield _training_step(name, 4096, precision, True, quick)


def _training_step(name: str, rows: int, precision: str, compiled: bool, quick: bool) -> Result:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    table_rows = 1000 if quick else 100_000
    step = _Step(name, _batch(rows, table_rows), precision, compiled, table_rows)
    started = time.perf_counter()
    step()
    _wait()
    first = time.perf_counter() - started
    seconds = _seconds({name: step}, quick)[name]
    result: Result = {"model": name, "rows": rows, "precision": precision, "compiled": compiled, "first_step": first}
    return result | {"seconds": seconds, "rows_per_second": rows / seconds[0]} | step.mfu(seconds[0])


def search(quick: bool) -> Iterator[Result]:
    """Rows per second of scoring a generation of mutated candidates, each alone and all in one pass."""
    supernet = _supernet(1000)
    generator = torch.Generator().manual_seed(0)
    parent = NASREC_FULL.sample(generator)
    family = [NASREC_FULL.mutate(parent, generator) for _ in range(2 if quick else 8)]
    subnets = [supernet.interaction_arch.subnet(architecture) for architecture in family]
    for chunk in (16,) if quick else (1024, 8192):
        dense = torch.randn(chunk, DENSE, device=DEVICE)
        embedded = torch.randn(chunk, SPARSE, DIM, device=DEVICE)
        together = SharedFeatures(subnets)

        def alone(dense: Tensor = dense, embedded: Tensor = embedded) -> None:
            for subnet in subnets:
                subnet.features(dense, embedded)

        def shared(together: SharedFeatures = together, dense: Tensor = dense, embedded: Tensor = embedded) -> None:
            for _ in together(dense, embedded):
                pass

        with torch.no_grad():
            seconds = _seconds({"alone": alone, "shared": shared}, quick)
        whole = 150 * 8192 / chunk / len(family)
        yield {
            "chunk": chunk,
            "candidates": len(family),
            "computed_share": together.computed_share,
            "seconds": seconds,
            "passes_over_the_paper_rows_per_minute": {name: 60 / (whole * value[0]) for name, value in seconds.items()},
        }


def export(quick: bool) -> Iterator[Result]:
    """Compiles the fused dense part with AOTInductor; its relative difference from eager mode, and its latency."""
    architecture = PUBLISHED["criteo-small" if quick else "criteo-full"]
    model = NASRecNet(_tables(1000), DENSE, architecture).to(DEVICE).eval()
    fused = fuse(model.interaction_arch).eval()
    rows = torch.export.Dim("rows", min=2, max=65536)
    example = torch.randn(8, DENSE, device=DEVICE), torch.randn(8, SPARSE, DIM, device=DEVICE)
    started = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(fused, example, dynamic_shapes=({0: rows}, {0: rows}))
    yield {"what": "torch.export", "seconds": time.perf_counter() - started, "nodes": len(program.graph.nodes)}
    if quick:  # compiling takes a minute
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "dense.pt2"))
        yield {"what": "AOTInductor", "seconds": time.perf_counter() - started}
        loaded = torch._inductor.aoti_load_package(package)
        for count in (2, 64, 512, 4096):
            inputs = torch.randn(count, DENSE, device=DEVICE), torch.randn(count, SPARSE, DIM, device=DEVICE)
            with torch.no_grad():
                expected = model.interaction_arch(*inputs)
                difference = float((loaded(*inputs) - expected).abs().max() / expected.abs().max())
                calls = {"package": partial(loaded, *inputs), "eager": partial(model.interaction_arch, *inputs)}
                yield {"rows": count, "difference": difference, "seconds": _seconds(calls, quick)}


def tests(quick: bool) -> Iterator[Result]:
    """The tests that are marked ``cuda``. Those that need several GPUs are not among them, and were not run."""
    missing = [name for name in ("pytest", "hypothesis", "pyarrow", "optuna") if importlib.util.find_spec(name) is None]
    if missing:
        yield {"status": "not run", "missing": missing}
        return
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-q", "-m", "cuda"]
    done = subprocess.run([*command, "tests/test_cuda.py"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    yield {"status": done.returncode, "summary": lines[-1] if lines else done.stderr[-300:], "several_gpus": "not run"}
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-1000:])


def programs(quick: bool) -> Iterator[Result]:
    """The commands of a user, one after the other, on rows of Criteo's shape: exit codes, seconds, metrics."""
    from benchmarks.criteo_shaped import write_text

    epochs = ["--epochs", "1"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text, data, supernet = folder / "train.txt", folder / "data", folder / "supernet"
        search, model, package = folder / "search", folder / "model", folder / "package"
        write_text(text, 20_000 if quick else 200_000)
        batch = ["--batch_size", "512" if quick else "4096"]
        network = ["--architecture", "criteo-small" if quick else "criteo-full"]
        few = ["--population", 8, "--generations", 2, "--children", 4, "--tournament", 4, "--finetune_steps", 50]
        commands: dict[str, list[object]] = {
            "doctor": [],
            "prepare": ["criteo", "--source", text, "--out", data],
            "supernet": ["--data", data, "--out", supernet, *epochs, *batch, "--log_every", 5],
            "search": ["--supernet", supernet, "--data", data, "--out", search, *few],
            "train": ["--data", data, "--out", model, *network, *epochs, *batch, "--log_every", 5],
            "evaluate": ["--model", model, "--data", data, "--json", "true"],
            "export": ["--model", model, "--data", data, "--out", package, "--device", DEVICE.type],
            "score": ["--package", package, "--data", data, "--out", folder / "scores"],
        }
        for name, flags in list(commands.items())[: 2 if quick else None]:
            started = time.perf_counter()
            command = [sys.executable, "-m", "nasrec_torchrec", name, *map(str, flags)]
            done = subprocess.run(command, capture_output=True, text=True)
            result = {"program": name, "status": done.returncode, "seconds": time.perf_counter() - started}
            log = {"supernet": supernet, "train": model}.get(name, folder) / "log.jsonl"
            last = log.read_text().splitlines()[-3:] if log.exists() else []
            yield result | {"last": done.stdout.strip()[-1500:], "log": last}
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-3000:]}")


STEPS: dict[str, Callable[[bool], Iterator[Result]]] = {
    step.__name__: step
    for step in (imports, lookup, golden, attention, training, search, export, compiled, programs, tests)
}


class _Step:
    """A training step as the trainer takes it, with fused Adagrad in the tables.

    Args:
        name: a published network, ``dlrm`` or ``supernet-full``, which samples an architecture in every step.
        batch: dense features, ids and labels.
        precision: fp32, tf32 or bf16.
        compiled: whether the dense part is compiled.
        rows: rows of each table.
    """

    def __init__(
        self, name: str, batch: tuple[Tensor, KeyedJaggedTensor, Tensor], precision: str, compiled: bool, rows: int
    ) -> None:
        torch.manual_seed(0)
        self.precision, self.batch, self.seed = precision, batch, 0
        if name == "supernet-full":
            model: nn.Module = _supernet(rows)
        elif name == "dlrm":
            model = DLRM(_tables(rows), DENSE, [512, 256, DIM], [512, 512, 256, 1])
        else:
            model = NASRecNet(_tables(rows), DENSE, PUBLISHED[name])
        self.supernet = model if isinstance(model, SuperNet) else None
        tables = [parameter for path, parameter in model.named_parameters() if "embedding_bag" in path]
        apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": 0.01, "eps": 1e-2})
        if compiled:
            for path, child in model.named_children():
                if path != "sparse_arch":
                    child.compile()
        self.model = parallelize(model, DEVICE)
        self.optimizer: torch.optim.Optimizer
        if self.supernet is not None:
            interaction = self.supernet.interaction_arch
            self.optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters)
        else:
            self.dense = [value for path, value in self.model.named_parameters() if "embedding_bag" not in path]
            self.optimizer = torch.optim.Adagrad(self.dense, 0.01, eps=1e-2, foreach=True)

    def __call__(self) -> None:
        dense, kjt, labels = self.batch
        parameters = self._active()
        self.optimizer.zero_grad()
        with self._autocast():
            logits = self.model(dense, kjt)
        F.binary_cross_entropy_with_logits(logits.float().flatten(), labels).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        self.optimizer.step()

    def mfu(self, seconds: float) -> Result:
        """Model FLOPs of a step, and their rate as a share of an H100's peak. A supernet's steps differ: none then."""
        if self.supernet is not None:
            return {}
        dense, kjt, _ = self.batch
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(dense, kjt)
        return _rate("flops", 3 * counter.get_total_flops(), [seconds]) | {
            "mfu": 3 * counter.get_total_flops() / seconds / H100[self.precision] if DEVICE.type == "cuda" else None
        }

    def _active(self) -> list[Tensor]:
        if self.supernet is None:
            return list(self.dense)
        self.seed += 1
        self.supernet.set_architecture(NASREC_FULL.sample(torch.Generator().manual_seed(self.seed)))
        return [view for _, view in self.supernet.interaction_arch.active_parameters()]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(DEVICE.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def _tables(rows: int, count: int = SPARSE) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t_f{i}", embedding_dim=DIM, num_embeddings=rows, feature_names=[f"f{i}"])
            for i in range(count)
        ]
    )


def _supernet(rows: int) -> SuperNet:
    return SuperNet(_tables(rows), DENSE, NASREC_FULL).to(DEVICE)


def _batch(rows: int, embeddings: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embeddings, (rows * SPARSE,), generator=generator)
    lengths = torch.ones(rows * SPARSE, dtype=torch.int64)
    kjt = KeyedJaggedTensor([f"f{i}" for i in range(SPARSE)], ids, lengths=lengths)
    labels = (torch.rand(rows, generator=generator) < 0.25).float()
    return torch.randn(rows, DENSE, generator=generator).to(DEVICE), kjt.to(DEVICE), labels.to(DEVICE)


def _by_key(output: Any) -> Any:
    return output.wait() if hasattr(output, "wait") else output


def _values(output: Any) -> Tensor:
    return _by_key(output).values()


def _seconds(calls: dict[str, Callable[[], object]], quick: bool) -> dict[str, list[float]]:
    """Median and first and last decile of each call's seconds, in turns, after two calls each to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    warm, rounds = (0, 2) if quick else (2, 20)
    for turn in range(warm + rounds):
        for name, call in calls.items():
            _wait()
            started = time.perf_counter()
            call()
            _wait()
            if turn >= warm:
                found[name].append(time.perf_counter() - started)
    ordered = {name: sorted(seconds) for name, seconds in found.items()}
    last = rounds - 1
    return {
        name: [statistics.median(values), values[round(0.1 * last)], values[round(0.9 * last)]]
        for name, values in ordered.items()
    }


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _rate(what: str, amount: float, seconds: list[float]) -> Result:
    return {what: amount, f"{what}_per_second": amount / seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that it works")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (flags.out / f"{flags.step}.jsonl").open("w") as file:
            for result in STEPS[flags.step](flags.quick):
                print(json.dumps(result), file=file, flush=True)
                print(json.dumps(result), flush=True)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
