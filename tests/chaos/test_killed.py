"""Programs that are killed, that find the disk full or the clock changed, end with what an undisturbed run gives."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from chaos.budget import KILLS, SEED, Tally, seconds_left
from chaos.jobs import JOBS, run, start

pytestmark = pytest.mark.chaos
KILLED = ("prepare", "supernet", "search", "train", "score", "export")
FILLED = ("prepare", "supernet", "search", "train", "score", "export")
JUMPED = ("prepare", "supernet", "search", "train", "score")
# Runs that a try takes at most, in the time of undisturbed ones.
_RUNS = 3


def _undisturbed(inputs: Path, name: str) -> tuple[Any, float]:
    """What a program gives and the seconds that it takes; skips the test if too few are left."""
    seconds = float((inputs / "seconds" / name).read_text())
    if not KILLS and seconds_left() < _RUNS * seconds:
        pytest.skip(f"CHAOS_SECONDS leave too little for {_RUNS} runs of {seconds:.0f} s")
    return JOBS[name].result(inputs / name), seconds


def _kill(words: list[str], log: Path, seconds: float, rng: random.Random, jumps: int | None = None) -> bool:
    """Starts a program and kills it at any moment; returns whether it was still running."""
    process = start(words, log, jumps=jumps)
    process.join(rng.uniform(0.05, seconds))
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


@pytest.mark.parametrize("name", KILLED)
def test_what_is_killed_and_started_again_loses_nothing(
    inputs: Path, tmp_path: Path, name: str, until: float, tally: Tally
) -> None:
    rng, job = random.Random(f"{SEED} {name}"), JOBS[name]
    expected, seconds = _undisturbed(inputs, name)
    tally.what = f"`{name}` is killed and started again"
    tally.count("SIGKILLs", 0)
    while not tally.tries or (tally.happened["SIGKILLs"] < KILLS if KILLS else time.monotonic() < until):
        out = tmp_path / str(tally.tries)
        words = job.words(inputs, out)
        for _ in range(rng.randint(1, 3)):
            tally.count("SIGKILLs", _kill(words, tmp_path / "log", seconds, rng))
        code, _ = run(words, tmp_path / "log")
        assert code == 0, f"try {tally.tries}: {(tmp_path / 'log').read_text()[-3000:]}"
        assert job.result(out) == expected, f"try {tally.tries}: another result than undisturbed"
        tally.tries += 1


@pytest.mark.parametrize("name", FILLED)
def test_a_full_disk_ends_in_one_line_and_work_is_kept(inputs: Path, tmp_path: Path, name: str, tally: Tally) -> None:
    rng, job = random.Random(f"{SEED} {name}"), JOBS[name]
    expected, _ = _undisturbed(inputs, name)
    tally.what = f"the disk is full for `{name}`"
    words = job.words(inputs, tmp_path / "out")
    for most_bytes in (rng.randrange(200, 20_000), rng.randrange(20_000, 200_000)):
        code, _ = run(words, tmp_path / "log", most_bytes)
        text = (tmp_path / "log").read_text()
        assert code in (0, 2) and "Traceback" not in text, f"{most_bytes} bytes, exit code {code}: {text[-3000:]}"
        tally.tries += 1
        tally.count("ended in one line" if code else "files were small enough")
    code, _ = run(words, tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    assert job.result(tmp_path / "out") == expected


@pytest.mark.parametrize("name", JUMPED)
def test_a_clock_that_jumps_changes_nothing(inputs: Path, tmp_path: Path, name: str, tally: Tally) -> None:
    rng, job = random.Random(f"{SEED} {name}"), JOBS[name]
    expected, seconds = _undisturbed(inputs, name)
    tally.what = f"the clock jumps by years while `{name}` is killed and started again"
    words = job.words(inputs, tmp_path / "out")
    for _ in range(2):
        tally.count("SIGKILLs", _kill(words, tmp_path / "log", seconds, rng, jumps=rng.randrange(1 << 30)))
        for file in tmp_path.rglob("*"):
            moment = rng.uniform(0, 4e9)
            os.utime(file, (moment, moment))
    code, _ = run(words, tmp_path / "log", jumps=rng.randrange(1 << 30))
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    assert job.result(tmp_path / "out") == expected
    tally.tries += 1
