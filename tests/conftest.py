import gc
import multiprocessing
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from postgresql import postgresql  # noqa: F401
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

# On a busy machine the first example alone can take longer than the health check allows.
settings.register_profile(
    "default", deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


# What a forked process need not import again. It counts until the fork server starts, see support.run_program.
_OURS = "cli.main", "training.trainer", "search.workers", "search.race.run", "inference.exporting"
_SLOW = (
    "torch.export._trace",
    "torch._inductor.compile_fx",
    "matplotlib.backends.backend_agg",
    "scipy.stats",
    "lightgbm",
)
multiprocessing.set_forkserver_preload([*(f"nasrec_torchrec.{name}" for name in _OURS), *_SLOW])

# Where Triton is installed, Inductor would start a pool of compilers in every process; nothing on a CPU uses it.
if not torch.cuda.is_available():
    inductor.compile_threads = 1
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # for other processes

# The code around a package's kernels is compiled without optimisation and line numbers, in half of the compiler's time;
# the kernels themselves are compiled as for a service.
for _option, _value in {"compile_wrapper_opt_level": "O0", "enable_line_tables": 0, "enable_frame_pointer": 0}.items():
    if hasattr(inductor.aot_inductor, _option):  # not in every version of torch
        setattr(inductor.aot_inductor, _option, _value)
        os.environ.setdefault(f"AOT_INDUCTOR_{_option.upper()}", str(_value))  # for other processes

# TorchRec formats the arguments of what it shards and wraps, whole models, for a log that is not written here. That
# is a third of the time in which a small training begins.
with suppress(ImportError):
    import torchrec.distributed.logger as _logger

    if hasattr(_logger, "_get_input_from_func"):  # not in every version
        _logger._get_input_from_func = lambda *_, **__: ""

# Objects that packages are linked of are kept from run to run, until a week after their last use, see tests/g++.
_OBJECTS = Path(__file__).parents[1] / ".pytest_cache" / "objects"
if "TESTS_CXX" in os.environ or shutil.which(os.environ.get("CXX", "g++")):
    os.environ.setdefault("TESTS_CXX", os.environ.get("CXX", "g++"))  # the workers of pytest-xdist have it
    os.environ |= {"CXX": str(Path(__file__).with_name("g++")), "TESTS_CXX_OBJECTS": str(_OBJECTS)}
    os.environ["TESTS_CXX_HEADERS"] = torch.__version__
    inductor.cpp.cxx = (os.environ["CXX"],)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        for kept in _OBJECTS.glob("*"):
            if kept.stat().st_mtime < time.time() - 7 * 24 * 3600:
                kept.unlink()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: the workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("extended")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exempts what is imported, a million objects, from collections of garbage: those take a tenth of a compilation."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_rank():
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
