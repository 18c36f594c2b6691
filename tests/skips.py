"""Which tests may be skipped, and why; any other skip is a failure.

A test that silently skips shows nothing. So every reason that a test may give for being skipped stands here.
"""

import re
from collections.abc import Generator

import pytest

# Pattern of the reason that a test gives -> why that is acceptable.
ALLOWED_SKIPS = {
    "the real rows are not on this machine": "Criteo, Avazu and Frappe may not be redistributed; generated rows of the "
    "same form are tested everywhere",
    "needs CMake and a C++ compiler": "serving from C++ is optional",
    "PostgreSQL is not installed": "an optional store of studies; SQLite and the journal file are tested everywhere",
    r"not installed; .ci/run installs Debian's": "Slurm needs system packages and daemons",
    "Slurm's daemons are started as root": "Slurm needs system packages and daemons",
    "no environment with tritonclient": "the client needs a newer urllib3 than torchx allows; .ci/run makes one for it",
    "nginx is not installed": "a system package that is optional; .ci/run installs Debian's",
    "Chromium, playwright or axe-core is not installed": "a browser of 200 MB that only the check of the pages needs; "
    ".ci/run installs all three",
    "could not import 'ray'": "a package of 70 MB that one optional scheduler needs; .ci/run installs it",
    "could not import '(duckdb|adbc_driver_sqlite|nbclient|nbformat|pandas)'": "for optional sources of rows and "
    "the notebook; the test extra has them",
    "Triton is not installed": "a package of 190 MB that only a GPU needs; .ci/run installs it",
    "no GPU on this machine": "what needs a GPU is run by benchmarks/gpu.sh where one is lent",
    "CHAOS_SECONDS are over|CHAOS_SECONDS leave too little": "on a busy machine chaos tries less in its three minutes, "
    "and its table says what",
    "finds the ranks in /proc": "how the test finds the processes that it kills exists on Linux alone",
}


def _unexpected(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that is not in the list."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return None
    reason = str(report.longrepr[2])
    return None if any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS) else reason


def _check(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = _unexpected(report)
    if reason is not None:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped with a reason that tests/skips.py does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a test's unexpected skip into a failure."""
    report = yield
    _check(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turns an unexpected skip of a whole module into an error."""
    report = yield
    _check(report)
    return report
