"""The programs that chaos disturbs: how each is started, and what of its output must not depend on a disturbance."""

import hashlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from support import forked, run_program

from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.files import walk
from nasrec_torchrec.runs.names import LOG, METRICS
from nasrec_torchrec.search.results import read_results

ROOT = Path(__file__).resolve().parents[2]
SPACE = ["--num_blocks", "2", "--dense_widths", "[16,32]", "--sparse_widths", "[4,8]"]
# What differs between two undisturbed runs.
_TIMES = (
    "seconds",
    "training_seconds",
    "latency",
    "latency_us",
    "latency_iqr_us",
    "samples_per_second",
    "waits_for_data",
)


@dataclass(frozen=True)
class Job:
    """A program.

    Args:
        words: of its command line, given the folder of inputs and its output folder.
        result: what is compared, given the output folder.
    """

    words: Callable[[Path, Path], list[str]]
    result: Callable[[Path], Any]


def _files(out: Path) -> dict[str, str]:
    """Checksums of a data set's files."""
    names = [name for name in walk(out) if not name.startswith(".") and name != "config.yaml"]
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def _losses(out: Path) -> dict[int, float]:
    """Training losses by step, which depend on all that was done before."""
    events = map(json.loads, (out / LOG).read_text().splitlines())
    return {event["step"]: event["loss"] for event in events if event["event"] == "train"}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in _TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _weights(out: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_model(out)[1].state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _trained(out: Path) -> Any:
    return [_timeless(json.loads((out / METRICS).read_text())), _weights(out)]


def _candidates(out: Path) -> Any:
    """What every candidate reached, and which are the best."""
    found = read_results(out)
    return [[_timeless(one.to_record()) for one in some] for some in (found.candidates, found.best)]


def _scores(out: Path) -> Any:
    return [pq.read_table(file).drop_columns(["file"]).to_pydict() for file in sorted(out.glob("part-*.parquet"))]


JOBS = {
    "prepare": Job(
        lambda inputs, out: [
            *("apps.prepare_data", "table", "--source", f"{inputs}/raw/*.parquet", "--schema", f"{inputs}/schema.json"),
            *("--split", "time", "--out", str(out)),
        ],
        _files,
    ),
    "supernet": Job(
        lambda inputs, out: [
            *("apps.train_supernet", "--data", f"{inputs}/data", "--out", str(out), *SPACE, "--batch_size", "50"),
            *("--epochs", "3", "--log_every", "1", "--checkpoint_every", "5"),
        ],
        _losses,
    ),
    "search": Job(
        lambda inputs, out: [
            *("apps.search", "--supernet", f"{inputs}/supernet", "--data", f"{inputs}/data", "--out", str(out)),
            *("--population", "4", "--generations", "2", "--children", "2", "--tournament", "2"),
            *("--finetune_steps", "2"),
        ],
        _candidates,
    ),
    "train": Job(
        lambda inputs, out: [
            *("apps.train", "--data", f"{inputs}/data", "--out", str(out), "--architecture", "dlrm"),
            *("--batch_size", "50", "--epochs", "3", "--checkpoint_every", "5", "--log_every", "1", "--seeds", "[0,1]"),
        ],
        _trained,
    ),
    "score": Job(
        lambda inputs, out: [
            *("apps.score", "--package", f"{inputs}/package", "--data", f"{inputs}/data/test", "--out", str(out)),
        ],
        _scores,
    ),
    "export": Job(
        lambda inputs, out: [
            *("apps.export", "--model", f"{inputs}/train", "--out", str(out), "--data", f"{inputs}/data"),
        ],
        lambda out: json.loads((out / "golden.json").read_text()),
    ),
}


def start(words: list[str], log: Path, most_bytes: int | None = None, jumps: int | None = None) -> Any:
    """Starts a program in a process; its exit code is the program's, and ``log`` receives its standard error.

    Args:
        words: module and flags.
        log: file.
        most_bytes: larger files cannot be written, as on a full disk.
        jumps: seed of a clock that jumps by years, back and forth.
    """
    process = forked().Process(target=_run, args=(words, str(log), most_bytes, jumps))
    process.start()
    return process


def run(words: list[str], log: Path, most_bytes: int | None = None, jumps: int | None = None) -> tuple[int, float]:
    """Runs a program to its end; returns its exit code and seconds."""
    started = time.monotonic()
    process = start(words, log, most_bytes, jumps)
    process.join(300)
    assert process.exitcode is not None, f"{words}: does not end"
    return process.exitcode, time.monotonic() - started


def _run(words: list[str], log: str, most_bytes: int | None, jumps: int | None) -> None:
    torch.set_num_threads(1)
    os.chdir(ROOT)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if jumps is not None:
        _let_the_clock_jump(random.Random(jumps))
    try:
        done = run_program("-m", *words)
        code, text = done.returncode, done.stderr
    except BaseException:
        import traceback

        code, text = 1, traceback.format_exc()
    resource_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    Path(log).write_text(text if most_bytes is None else text[-resource_limit:])
    sys.exit(code)


def _let_the_clock_jump(rng: random.Random) -> None:
    clock, by = time.time, [0.0]

    def jumping() -> float:
        if rng.random() < 0.1:
            by[0] = rng.uniform(-1e8, 1e8)
        return clock() + by[0]

    time.time = jumping
    time.time_ns = lambda: int(1e9 * jumping())
