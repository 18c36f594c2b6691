"""The tests on other stacks than the pinned one, each in an environment of its own: `nox -s "tests-3.12(2.11)"`.

For 2.11, 2.12 and from version 2.14 on, torch has CUDA builds alone on PyPI: an environment takes 5 GB.
"""

import nox

# Of torch, FBGEMM and TorchRec; no wheel pins its partners.
STACKS = {
    "2.11": ("torch==2.11.0", "fbgemm-gpu-cpu==1.6.0", "torchrec==1.6.1"),
    "2.12": ("torch==2.12.1", "fbgemm-gpu-cpu==1.7.0", "torchrec==1.7.0"),
    "2.13": ("torch==2.13.0", "fbgemm-gpu-cpu==1.8.0", "torchrec==1.8.0"),
    "2.14": ("torch==2.14.1", "fbgemm-gpu-cpu==1.9.0", "torchrec==1.9.2"),
    # Whatever the registry has; these may not belong together.
    "newest": ("torch", "fbgemm-gpu-cpu", "torchrec"),
}
nox.options.default_venv_backend = "venv"


@nox.session(python=["3.10", "3.11", "3.12"])
@nox.parametrize("stack", list(STACKS), ids=list(STACKS))
def tests(session: nox.Session, stack: str) -> None:
    """What `make test-fast` runs, or the tests that are named after `--`."""
    torch, fbgemm, torchrec = STACKS[stack]
    session.install("--no-deps", torchrec)
    session.install(torch, fbgemm, "-e", ".[demo,test]")
    chosen = session.posargs or ["-n", "3", "--dist", "loadfile", "-m", "not slow and not extended"]
    session.run("python", "-m", "pytest", *chosen, env={"OMP_NUM_THREADS": "1"})
