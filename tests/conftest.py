import gc
import multiprocessing
import os

import pytest
import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

# On a busy machine the first example alone can take longer than the health check allows.
settings.register_profile(
    "default", deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


# What a forked process need not import again. It counts until the fork server starts, see support.run_program.
multiprocessing.set_forkserver_preload(
    [f"nasrec_torchrec.{name}" for name in ("cli.main", "training.trainer", "search.workers", "inference.exporting")]
)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: two workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
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
