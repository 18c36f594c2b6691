"""Only ``pytest -m chaos`` runs what is here: it takes about as long as CHAOS_SECONDS says, and draws at random."""

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos.budget import Tally, seconds_left
from chaos.jobs import JOBS, run
from support import click_table, make_click_data, make_schema

HERE = Path(__file__).parent
_shown: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "chaos" in (config.getoption("markexpr") or ""):
        return
    ours = [item for item in items if HERE in item.path.parents]
    if ours:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[_PASSED] = report.passed


_PASSED = pytest.StashKey[bool]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts what a test does, and prints it when the test has passed."""
    found = Tally("")
    yield found
    if request.node.stash.get(_PASSED, False):
        found.show(first=not _shown)
        _shown.append(found.what)


@pytest.fixture
def until(request: pytest.FixtureRequest) -> float:
    """When a test is to end: what is left of the time is shared with the tests that come after it."""
    items = request.session.items
    left = seconds_left()
    if left < 0:
        pytest.skip("CHAOS_SECONDS are over")
    return time.monotonic() + left / (len(items) - items.index(request.node))


@pytest.fixture(scope="session")
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
    # Times of the first program count the start of the process that all others are forked from.
    run(["apps.prepare_data", "--help"], folder / "log")
    for name in ("prepare", "supernet", "search", "train", "export", "score"):
        code, seconds = run(JOBS[name].words(folder, folder / name), folder / "log")
        assert code == 0, f"{name}: {(folder / 'log').read_text()[-3000:]}"
        (folder / "seconds" / name).write_text(str(seconds))
        for link, target in (("data", "prepare"), ("package", "export")):
            if name == target:
                (folder / link).symlink_to(folder / name)
    return folder
