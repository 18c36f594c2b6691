"""Programs that are killed at any moment and started again end with what an undisturbed run gives."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chaos.jobs import JOBS, run, start
from support import click_table, make_click_data, make_schema

pytestmark = pytest.mark.chaos
SECONDS = float(os.environ.get("CHAOS_SECONDS", "180"))
KILLED = ("prepare", "supernet", "search", "train", "score", "export")
FILLED = ("prepare", "supernet", "train", "score")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw rows, and what the programs make of them undisturbed, each in a folder named like the program."""
    folder = tmp_path_factory.mktemp("inputs")
    schema = make_schema()
    (folder / "raw").mkdir()
    (folder / "schema.json").write_text(schema.to_json())
    for number in (1, 2):
        pq.write_table(
            click_table(make_click_data(schema, 400, seed=number), schema), folder / "raw" / f"{number}.parquet"
        )
    (folder / "seconds").mkdir()
    for name in ("prepare", "supernet", "search", "train", "export", "score"):
        code, seconds = run(JOBS[name].words(folder, folder / name), folder / "log")
        assert code == 0, f"{name}: {(folder / 'log').read_text()[-3000:]}"
        (folder / "seconds" / name).write_text(str(seconds))
        for link, target in (("data", "prepare"), ("package", "export")):
            if name == target:
                (folder / link).symlink_to(folder / name)
    return folder


def _undisturbed(inputs: Path, name: str) -> tuple[Any, float]:
    return JOBS[name].result(inputs / name), float((inputs / "seconds" / name).read_text())


@pytest.mark.parametrize("name", KILLED)
def test_what_is_killed_and_started_again_loses_nothing(inputs: Path, tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(f"{seed} {name}")
    job = JOBS[name]
    expected, seconds = _undisturbed(inputs, name)
    end = time.monotonic() + SECONDS / (len(KILLED) + 1)
    tries = kills = 0
    while not tries or time.monotonic() < end:
        out = tmp_path / str(tries)
        words = job.words(inputs, out)
        for _ in range(rng.randint(1, 3)):
            process = start(words, tmp_path / "log")
            process.join(rng.uniform(0.05, seconds))
            kills += process.is_alive()
            process.kill()
            process.join()
        code, _ = run(words, tmp_path / "log")
        assert code == 0, f"try {tries}: {(tmp_path / 'log').read_text()[-3000:]}"
        assert job.result(out) == expected, f"try {tries}: another result than undisturbed"
        tries += 1
    print(f"\n{name}: {tries} tries, {kills} kills, 0 wrong results")


@pytest.mark.parametrize("name", FILLED)
def test_a_full_disk_ends_in_one_line_and_work_is_kept(inputs: Path, tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(f"{seed} {name}")
    job = JOBS[name]
    expected, _ = _undisturbed(inputs, name)
    words = job.words(inputs, tmp_path / "out")
    for most_bytes in (rng.randrange(200, 20_000), rng.randrange(20_000, 200_000)):
        code, _ = run(words, tmp_path / "log", most_bytes)
        text = (tmp_path / "log").read_text()
        assert code in (0, 2) and "Traceback" not in text, f"{most_bytes} bytes, exit code {code}: {text[-3000:]}"
    code, _ = run(words, tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    assert job.result(tmp_path / "out") == expected
