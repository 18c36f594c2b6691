"""What several tests build: small tables, random rows; and how they start programs and ranks.

Importing torch takes six seconds, so that a test should start no new interpreter where it can do without:

- :func:`run_program` runs a program in this process. Use it unless the test is about processes.
- :func:`run_process` runs one in a forked process: for other variables, another folder, or state that must not leak.
- :func:`run_ranks` runs a function on gloo ranks, each a forked process.
- :func:`forked` is the context behind these two, for processes of a test's own.
- :func:`run_script` runs a script like this, and returns what it printed.
- :func:`launch` runs a script on gloo ranks, each a forked process that finds the variables of ``torchrun``; those of
  :func:`start_ranks` can be killed.
- :func:`component_program` says what a torchx component would start, to give it to :func:`run_program`.

A real ``torchrun``, ``torchx`` or server is a subprocess: for tests that kill ranks or look at a launcher.
"""

import io
import math
import os
import pty
import runpy
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import Architecture, SearchSpace
from nasrec_torchrec.cli.main import main
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.cost_values import Cost, Latency

# Vectors of the original implementation and real rows; only some machines have them.
_ROOT = Path(__file__).resolve().parents[1]
SHARED = _ROOT.parent / "shared"

SMALL_SPACE = SearchSpace(num_blocks=3, dense_widths=(16, 24, 32), sparse_widths=(4, 6, 9))


def make_ebc(
    num_features: int, embedding_dim: int = 16, rows: int = 50, device: str = "cpu", is_weighted: bool = False
) -> EmbeddingBagCollection:
    """Tables t0, t1, ... for features f0, f1, ..."""
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=embedding_dim, num_embeddings=rows, feature_names=[f"f{i}"])
        for i in range(num_features)
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device(device), is_weighted=is_weighted)


def make_kjt(
    num_features: int, batch_size: int, seed: int = 0, rows: int = 50, max_length: int = 1, weighted: bool = False
) -> KeyedJaggedTensor:
    """Random ids; bags of exactly one id, or of 0 to ``max_length`` ids."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_features * batch_size,)
    lengths = torch.ones(shape, dtype=torch.int64)
    if max_length > 1:
        lengths = torch.randint(0, max_length + 1, shape, generator=generator)
    count = int(lengths.sum())
    return KeyedJaggedTensor(
        [f"f{i}" for i in range(num_features)],
        torch.randint(0, rows, (count,), generator=generator),
        lengths=lengths,
        weights=torch.rand(count, generator=generator) if weighted else None,
    )


def make_schema(num_dense: int = 3, num_features: int = 4, rows: int = 50, weighted: bool = False) -> Schema:
    """Features f0, f1, ...; the last one is multi-hot, or all are when weighted."""
    sparse = tuple(
        SparseFeature(
            f"f{i}",
            rows,
            multi_hot=weighted or i == num_features - 1,
            weighted=weighted,
            pooling="mean" if i == num_features - 1 and not weighted else "sum",
        )
        for i in range(num_features)
    )
    return Schema("label", tuple(DenseFeature(f"d{i}") for i in range(num_dense)), sparse)


def make_click_data(schema: Schema, count: int, seed: int = 0) -> ClickData:
    """Random rows whose label depends on the first feature's id."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.ones(len(schema.sparse), count, dtype=torch.int64)
    for index, feature in enumerate(schema.sparse):
        if feature.multi_hot:
            lengths[index] = torch.randint(0, 4, (count,), generator=generator)
    total = int(lengths.sum())
    ids = torch.randint(0, schema.sparse[0].num_embeddings, (total,), generator=generator)
    weights = torch.rand(total, generator=generator) if schema.weighted else None
    sparse = KeyedJaggedTensor(schema.feature_names, ids, lengths=lengths.flatten(), weights=weights)
    first = ids[:count] if lengths[0].eq(1).all() else torch.randint(0, 2, (count,), generator=generator)
    noise = torch.rand(count, generator=generator)
    labels = ((first % 2 == 0).float() * 0.5 + noise > 0.75).float()
    return ClickData(torch.randn(count, len(schema.dense), generator=generator), sparse, labels)


def click_table(data: ClickData, schema: Schema) -> pa.Table:
    """Rows in memory as the columns of a prepared file."""
    columns = {schema.label: pa.array(data.labels.numpy().astype("int8"))}
    for index, feature in enumerate(schema.dense):
        columns[feature.name] = pa.array(data.dense[:, index].numpy())
    for feature in schema.sparse:
        bags = data.sparse[feature.name]
        offsets, values = bags.offsets().int().numpy(), bags.values().int().numpy()
        columns[feature.name] = pa.ListArray.from_arrays(offsets, values) if feature.multi_hot else pa.array(values)
        if feature.weights_column:
            columns[feature.weights_column] = pa.ListArray.from_arrays(offsets, bags.weights().numpy())
    return pa.table(columns)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Removed at the end of a process that needs it; a forked one leaves nothing behind only if it makes none."""
    return tempfile.TemporaryDirectory(prefix="click-files-")


def make_click_files(schema: Schema, count: int, seed: int = 0, row_group: int = 64) -> ClickFiles:
    """The rows of :func:`make_click_data` in a Parquet file with small row groups."""
    file = Path(tempfile.mkdtemp(dir=_folder().name)) / "part-000000.parquet"
    pq.write_table(click_table(make_click_data(schema, count, seed), schema), file, row_group_size=row_group)
    return ClickFiles.open(file.parent, schema)


def in_step(trainer: Any, step: int, act: Callable[[torch.Tensor], object]) -> None:
    """Calls ``act`` once, with the dense features, in the middle of a step, counted from 0."""

    def hook(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # A pipeline traces the model before it runs it.
        if model.training and isinstance(inputs[0], torch.Tensor) and trainer.progress.step == step:
            handle.remove()
            act(inputs[0])

    handle = trainer.model.register_forward_pre_hook(hook)


def forked() -> BaseContext:
    """Starts processes at once: forked from one without threads that has made the slow imports, see conftest.py."""
    return mp.get_context("forkserver")


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs ``function(*arguments)`` on gloo ranks, each a process, and returns their results."""
    method = forked().get_start_method()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world_size, folder, function, arguments), nprocs=world_size, start_method=method)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def on_threads(function: Callable[[Tensor], Tensor], leaf: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a function returns, and the gradient of its squares, on one thread of PyTorch's and on three."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = function(leaf)
            results.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    return results


def make_candidate(architecture: Architecture, loss: float | None = None, **values: Any) -> Candidate:
    """As if evaluated; unless a loss is given, one that prefers wide blocks, a landscape with a known optimum."""
    if loss is None:
        loss = 1 / 3 - sum(block.dense_width + block.sparse_width for block in architecture.blocks) / 7000
    known = math.isfinite(loss)
    counts = {"multiply_adds": int(1e5 * (1 - loss)) if known else 7, "parameters": 10, "activation_bytes": 40}
    counts["table_bytes"] = 400
    cost = Cost(**counts | {name: values.pop(name) for name in counts if name in values})
    if "latency_us" in values:
        values["latency"] = Latency(values.pop("latency_us"), values.pop("latency_iqr_us", 1.0))
    metrics = ClickMetrics(0.7, loss, loss / 0.6, 1000) if known else ClickMetrics(None, loss, None, 1000)
    return Candidate(architecture, metrics, loss, cost, **{"seconds": 0.25} | values)


def fails_after(evaluated: list[Architecture], count: int) -> Callable[[Architecture], Candidate]:
    """An evaluation that notes what it evaluated, and fails once that is so many architectures."""

    def evaluate(architecture: Architecture) -> Candidate:
        if len(evaluated) == count:
            raise OSError("no machine left")
        evaluated.append(architecture.canonical())
        return make_candidate(architecture)

    return evaluate


def make_movielens(folder: Path, ratings: int = 300) -> Path:
    """Made-up files in the layout of MovieLens-100K."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{u}\t{20 + u}\t{'MF'[u % 2]}\tjob{u % 3}\t{10000 + 1000 * u}" for u in range(1, 21)]
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [f'{i}\t"Film" {i}\t{1960 + i if i != 7 else ""}\tDrama{" War" if i % 2 else ""}' for i in range(1, 31)]
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for number in range(ratings):
        u, i, rating = rng.integers(1, 21), rng.integers(1, 31), rng.integers(1, 6)
        lines.append(f"{u}\t{i}\t{rating}\t{880_000_000 + 3600 * ((number * 7) % ratings)}")
    for name, rows in (("user", users), ("item", items), ("inter", lines)):
        (folder / f"ml-100k.{name}").write_text("\n".join(rows) + "\n")
    return folder


def dictionary_words(folder: Path, table: str) -> list[str]:
    """The words of a prepared data set's dictionary, in the order of their ids."""
    return pq.read_table(folder / "dictionaries" / f"{table}.parquet")["word"].to_pylist()


def prepare_clicks(folder: Path) -> Path:
    """A prepared data set of random rows."""
    schema, raw = make_schema(), folder.with_name("raw")
    raw.mkdir()
    files = []
    for seed, (name, rows) in enumerate({"train": 400, "validation": 100, "test": 101}.items()):
        files.append(str(raw / f"{name}.parquet"))
        pq.write_table(click_table(make_click_data(schema, rows, seed), schema), files[-1])
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), folder)
    return folder


def prepare_pairs(folder: Path, rows: int = 1200) -> Path:
    """A prepared data set whose clicks depend on the pair of user and item, and on neither alone."""
    rng = np.random.default_rng(0)
    likes = rng.random((12, 10)) < 0.5
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    files = []
    for name, count in (("train", rows), ("validation", rows // 3), ("test", rows // 3)):
        user, item, shop = (rng.integers(0, size, count) for size in (12, 10, 4))
        clicked = rng.random(count) < np.where(likes[user, item], 0.9, 0.1)
        table = {"clicked": clicked.astype(int), "user": user, "item": item, "shop": shop}
        files.append(str(raw / f"{name}.parquet"))
        pq.write_table(pa.table(table), files[-1])
    sparse = tuple(SparseFeature(name, ids="dictionary") for name in ("user", "item")) + (SparseFeature("shop", 4),)
    prepare(RawData(tuple(files), Schema("clicked", (), sparse, 8), split=SplitConfig("given")), folder)
    return folder


@dataclass(frozen=True)
class Done:
    """What a program printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@contextmanager
def _terminal(printed: io.StringIO) -> Iterator[io.TextIOBase]:
    """A pseudo-terminal, which is read at the end: what is written must fit into its buffer."""
    reader, writer = pty.openpty()
    try:
        with os.fdopen(writer, "w") as out:
            yield out
        with suppress(OSError):  # the end, once no process has it open
            while piece := os.read(reader, 4096):
                printed.write(piece.decode().replace("\r\n", "\n"))
    finally:
        os.close(reader)


def run_program(*words: object, terminal: bool = False) -> Done:
    """Runs ``nasrec ...``, ``python -m MODULE ...`` or ``python FILE ...`` in this process.

    Args:
        words: ``nasrec``, ``-m`` and a module, or a file; then the program's command line.
        terminal: whether standard output is a terminal.
    """
    program, *rest = map(str, words)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    ensure_running()  # with the imports of conftest.py, before the program asks for fewer
    where = _terminal(out) if terminal else nullcontext(out)
    with pytest.MonkeyPatch.context() as patch, where as stdout, redirect_stdout(stdout), redirect_stderr(err):
        try:
            if program == "nasrec":
                main(rest)
            elif program == "-m":
                patch.setattr(sys, "argv", rest)
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                patch.setattr(sys, "argv", [program, *rest])
                patch.syspath_prepend(str(Path(program).resolve().parent))
                runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


def run_process(*words: object, folder: Path, environment: dict[str, str]) -> Done:
    """The same in a process of its own, in a folder and with more variables."""
    with ProcessPoolExecutor(1, mp_context=forked()) as pool:
        return pool.submit(_run_process, words, folder, environment).result(300)


def _run_process(words: tuple[object, ...], folder: Path, environment: dict[str, str]) -> Done:
    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return run_program(*words)


def run_script(script: str, *words: object) -> str:
    """What a script of this repository printed that runs in a process of its own."""
    done = run_process(script, *words, folder=_ROOT, environment={})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launch(script: str, ranks: int, *words: object) -> str:
    """What a script of this repository, or a module after ``-m``, printed on forked ranks with torchrun's variables."""
    with tempfile.TemporaryDirectory() as folder:
        return end_ranks(start_ranks(Path(folder), ranks, script, *words), Path(folder))


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_ranks(
    folder: Path, ranks: int, *words: object, environment: dict[str, str] | None = None
) -> list[BaseProcess]:
    """Starts the ranks of :func:`launch` and returns their processes; the folder receives what they print."""
    arguments = ranks, free_port(), folder, words, environment or {}
    processes = [forked().Process(target=_script_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def end_ranks(processes: list[BaseProcess], folder: Path) -> str:
    """Waits for the ranks, and returns what they printed; where one fails, the others would wait for it."""
    while running := [process for process in processes if process.is_alive()]:
        connection.wait([process.sentinel for process in running])
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()
    printed = "".join(file.read_text() for file in sorted(folder.iterdir()))
    assert not any(process.exitcode for process in processes), printed[-3000:]
    return printed


def _script_rank(
    rank: int, ranks: int, port: int, folder: Path, words: tuple[object, ...], environment: dict[str, str]
) -> None:
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    done = _run_process(words, _ROOT, environment)
    (folder / str(rank)).write_text(done.stdout + (done.stderr if done.returncode else ""))
    sys.exit(done.returncode)


def component_program(name: str, words: Sequence[str]) -> list[str]:
    """What a torchx component with these arguments starts on every rank: ``-m MODULE`` and its flags."""
    # Where only tests that need a GPU run, there is no torchx.
    from torchx.specs.builders import materialize_appdef
    from torchx.specs.finder import get_component

    (role,) = materialize_appdef(get_component(f"nasrec.{name}").fn, list(words)).roles
    # On several ranks torchrun is started by a shell.
    program = shlex.split(role.args[-1]) if role.entrypoint == "bash" else role.args
    return program[program.index("-m") :]
