"""One step of gpu.sh: ``python benchmarks/gpu_steps.py STEP --out FOLDER``.

Most steps import PyTorch, TorchRec, FBGEMM and those parts of this package that need nothing else, since such a machine
may have nothing else. Every result is a line of JSON in ``FOLDER/STEP.jsonl`` as soon as it is known.
"""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torchrec
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.gpu_models import (
    DENSE,
    DEVICE,
    DIM,
    SPARSE,
    Result,
    Step,
    batch_of,
    by_key,
    most_memory,
    rate_of,
    seconds_of,
    start_counting,
    supernet_of,
    tables_of,
    values_of,
    wait,
)
from nasrec_torchrec import NASREC_FULL, PUBLISHED, NASRecNet, load_research_state_dict
from nasrec_torchrec.distributed.config import TableMemory
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.modules.attention import NUM_HEADS
from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.search.sharing import SharedFeatures

ROOT = Path(__file__).resolve().parents[1]
FIXED = ("criteo-full", "dlrm", "criteo-small")
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
    """A fused look-up and update under DistributedModelParallel, against plain tables on the CPU; bytes per second.

    Then the same in larger tables, whose frequent rows are asked for most, in the memory of the GPU and of its host.
    """
    for rows in (64,) if quick else (512, 4096, 16384):
        yield _lookup(rows, 1000, "device", quick)
    for memory in ("device",) if DEVICE.type == "cpu" else ("device", "host_cached", "host"):
        yield _lookup(64 if quick else 4096, 2000 if quick else 500_000, memory, quick)


def _lookup(rows: int, table_rows: int, memory: TableMemory, quick: bool) -> Result:
    tables, kjts = (
        tables_of(table_rows),
        [batch_of(rows, table_rows, seed, skew=4)[1] for seed in range(4 if quick else 25)],
    )
    plain = tables(kjts[0].to("cpu")).values().detach()
    apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.1, "eps": 1e-2})
    before = start_counting()
    fused = parallelize(nn.ModuleDict({"tables": tables}), DEVICE, table_memory=memory).module["tables"]
    found = by_key(fused(kjts[0]))
    first = torch.stack([found[name] for name in kjts[0].keys()], 1).flatten(1)
    difference = float((first.detach().cpu() - plain.view(rows, -1)).abs().max())
    turns = itertools.cycle(kjts)
    seconds = seconds_of({"step": lambda: values_of(fused(next(turns))).sum().backward()}, quick)["step"]
    result: Result = {"rows": rows, "table_rows": table_rows, "memory": memory, "difference": difference}
    # Read forward; read and written backward, with the optimizer's sums.
    moved = rate_of("bytes", 5 * 4 * rows * SPARSE * DIM, seconds)
    return result | {"seconds": seconds, "peak_memory": most_memory(before)} | moved


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
        model = NASRecNet(tables_of(embeddings, sparse), vectors["dense_features"], PUBLISHED[name])
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
            yield result | {"difference": difference, "seconds": seconds_of(calls, quick)}


def _without_gradients(kernel: Callable[[Tensor], Tensor], qkv: Tensor) -> Tensor:
    with torch.no_grad():
        return kernel(qkv)


def training(quick: bool) -> Iterator[Result]:
    """Rows per second of training steps: published networks, sampled supernet steps and TorchRec's DLRM."""
    for rows in (16,) if quick else (512, 4096, 16384):
        for precision in ("fp32",) if quick else ("fp32", "tf32", "bf16"):
            for name in ("criteo-small", "dlrm") if quick else (*FIXED, "supernet-full"):
                yield from _training_steps(name, rows, precision, ["eager"], quick)


def graphs(quick: bool) -> Iterator[Result]:
    """Training steps of fixed networks, launched kernel by kernel and as CUDA graphs, in turns."""
    modes = ["eager"] if DEVICE.type == "cpu" else ["eager", "graphs"]
    for precision in ("fp32",) if quick else ("fp32", "bf16"):
        for rows in (16,) if quick else (512, 4096):
            for name in ("dlrm",) if quick else FIXED:
                yield from _training_steps(name, rows, precision, modes, quick)


def compiled(quick: bool) -> Iterator[Result]:
    """The same with the dense part compiled by ``torch.compile``; the first step compiles, which takes a minute."""
    for precision, rows in () if quick else (("fp32", 512), ("bf16", 4096), ("fp32", 4096), ("bf16", 512)):
        for name in FIXED:
            yield from _training_steps(name, rows, precision, ["compiled", "compiled graphs"], quick)


def _training_steps(name: str, rows: int, precision: str, modes: list[str], quick: bool) -> Iterator[Result]:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.compiler.reset()  # another model would be one more variant of the last one
    table_rows = 1000 if quick else 100_000
    steps, results = {}, {}
    for mode in modes:
        before = start_counting()
        step = Step(name, batch_of(rows, table_rows), precision, mode, table_rows)
        started = time.perf_counter()
        try:
            losses = [step() for _ in range(3)]
        except (RuntimeError, ValueError) as error:
            yield {"model": name, "rows": rows, "precision": precision, "mode": mode, "refused": str(error)[:2000]}
            continue
        wait()
        steps[mode] = step
        results[mode] = {"first_steps": time.perf_counter() - started, "peak_memory": most_memory(before)}
        results[mode]["losses"] = [float(loss) for loss in losses]
    # A compiled one would be compiled again to count its operations.
    more = steps["eager"].flops() if "eager" in steps else {}
    for mode, seconds in seconds_of(dict(steps), quick).items():
        result: Result = {"model": name, "rows": rows, "precision": precision, "mode": mode, **results[mode]}
        result |= {"seconds": seconds, "rows_per_second": rows / seconds[0]}
        if more:
            result |= rate_of("flops", more["flops"], seconds)
            rate = result["flops_per_second"] / H100[precision]
            result["mfu"] = rate if DEVICE.type == "cuda" else None
        yield result


def search(quick: bool) -> Iterator[Result]:
    """Rows per second of scoring a generation of mutated candidates, each alone and all in one pass."""
    supernet = supernet_of(1000)
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
            seconds = seconds_of({"alone": alone, "shared": shared}, quick)
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
    model = NASRecNet(tables_of(1000), DENSE, architecture).to(DEVICE).eval()
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
        calls_of = {}
        for count in (2, 64, 512, 4096):
            inputs = torch.randn(count, DENSE, device=DEVICE), torch.randn(count, SPARSE, DIM, device=DEVICE)
            with torch.no_grad():
                expected = model.interaction_arch(*inputs)
                difference = float((loaded(*inputs) - expected).abs().max() / expected.abs().max())
                calls = {"package": partial(loaded, *inputs), "eager": partial(model.interaction_arch, *inputs)}
                calls_of[count] = calls
                yield {"rows": count, "difference": difference, "seconds": seconds_of(calls, quick)}
        # Last, since a graph that cannot be captured may leave the device unusable.
        for name in ("eager", "package"):
            for count, calls in calls_of.items():
                try:
                    with torch.no_grad():
                        replay = _captured(calls[name])
                        yield {"graph_of": name, "rows": count, "seconds": seconds_of({name: replay}, quick)[name]}
                except RuntimeError as error:
                    yield {"graph_of": name, "rows": count, "refused": str(error)[:300]}


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    """A call as one CUDA graph, after some calls to warm up beside the current stream, as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def tests(quick: bool) -> Iterator[Result]:
    """The tests that are marked ``cuda``. Those that need several GPUs are not among them, and were not run."""
    missing = [name for name in ("pytest", "hypothesis", "pyarrow", "optuna") if importlib.util.find_spec(name) is None]
    if missing:
        yield {"status": "not run", "missing": missing}
        return
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-v", "-m", "cuda"]
    lines: list[str] = []
    with subprocess.Popen(
        [*command, "tests/test_cuda.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:  # as it goes, so that a time limit costs only what is left
            print(line, end="", flush=True)
            lines.append(line.strip())
    yield {"status": running.returncode, "summary": lines[-1] if lines else "", "several_gpus": "not run"}
    if running.returncode:
        raise RuntimeError("some tests failed")


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
        train = ["--data", data, *network, *epochs, *batch, "--log_every", 5]
        commands: dict[str, list[object]] = {
            "doctor": [],
            "prepare": ["criteo", "--source", text, "--out", data],
            "supernet": ["--data", data, "--out", supernet, *epochs, *batch, "--log_every", 5],
            "search": ["--supernet", supernet, "--data", data, "--out", search, *few],
            "train": [*train, "--out", model],
            "train with graphs": [
                *train,
                "--out",
                folder / "graphs",
                "--cuda_graphs",
                str(DEVICE.type == "cuda").lower(),
            ],
            "evaluate": ["--model", model, "--data", data, "--json", "true"],
            "export": ["--model", model, "--data", data, "--out", package, "--device", DEVICE.type],
            "score": ["--package", package, "--data", data, "--out", folder / "scores"],
        }
        for name, flags in list(commands.items())[: 2 if quick else None]:
            started = time.perf_counter()
            command = [sys.executable, "-m", "nasrec_torchrec", name.split()[0], *map(str, flags)]
            done = subprocess.run(command, capture_output=True, text=True)
            result = {"program": name, "status": done.returncode, "seconds": time.perf_counter() - started}
            logs = {"supernet": supernet, "train": model, "train with graphs": folder / "graphs"}
            log = logs.get(name, folder) / "log.jsonl"
            last = log.read_text().splitlines()[-3:] if log.exists() else []
            yield result | {"last": done.stdout.strip()[-1500:], "log": last}
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-3000:]}")


STEPS: dict[str, Callable[[bool], Iterator[Result]]] = {
    step.__name__: step
    for step in (imports, graphs, lookup, attention, training, search, export, compiled, golden, programs, tests)
}


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
