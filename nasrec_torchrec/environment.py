"""A check that the installed torch, TorchRec and FBGEMM match.

``python -m nasrec_torchrec.environment`` prints the installed versions, the device, and, if the three do not match, the
exact command that fixes it. Importing :mod:`nasrec_torchrec` runs the same check, so that a broken FBGEMM leads to that
explanation instead of an undefined symbol.

None of the three wheels pins the others, and a wrong combination fails while FBGEMM's shared library is loaded. Only
the standard library is imported here until the check itself runs.
"""

import importlib
import platform
import sys
from dataclasses import dataclass
from importlib import metadata

# torch minor version -> (fbgemm-gpu, torchrec). Each combination was tested on the CPU; one row per torch release.
PAIRINGS: dict[str, tuple[str, str]] = {
    "2.11": ("1.6.0", "1.6.1"),
    "2.12": ("1.7.0", "1.7.0"),
    "2.13": ("1.8.0", "1.8.0"),
    "2.14": ("1.9.0", "1.9.2"),
}
DEFAULT_TORCH = "2.13"
_DISTRIBUTIONS = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")


@dataclass(frozen=True)
class Environment:
    """The result of the check: installed versions, the device, and what is wrong (empty if nothing is)."""

    versions: dict[str, str | None]
    device: str
    problems: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        lines = [f"python           {platform.python_version()} ({sys.executable})"]
        lines += [f"{name:<16} {version or 'not installed'}" for name, version in self.versions.items()]
        lines.append(f"{'device':<16} {self.device}")
        if self.problems:
            lines += ["", "This environment cannot run nasrec_torchrec:"]
            lines += [f"  - {problem}" for problem in self.problems]
            lines += ["To fix this, run:", f"  {self.remedy}"]
        else:
            lines.append("torch, torchrec and fbgemm belong together.")
        return "\n".join(lines)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str | None]:
    """Returns the versions of torch, TorchRec and FBGEMM; None for one without distribution metadata."""
    return {name: _installed(name) for name in _DISTRIBUTIONS}


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _remedy(torch_minor: str, cuda: bool) -> str:
    fbgemm, torchrec = PAIRINGS.get(torch_minor, PAIRINGS[DEFAULT_TORCH])
    torch = f"{torch_minor if torch_minor in PAIRINGS else DEFAULT_TORCH}.0"
    build = "fbgemm-gpu" if cuda else "fbgemm-gpu-cpu"
    # The CPU and the CUDA build share files, so both must be removed before one is installed.
    return (
        f"{sys.executable} -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && "
        f"{sys.executable} -m pip install torch=={torch} {build}=={fbgemm} && "
        f"{sys.executable} -m pip install --no-deps torchrec=={torchrec}"
    )


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"`import {name}` fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _fbgemm_operator_problem() -> str | None:
    import torch

    try:
        torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
    except (AttributeError, RuntimeError, OSError) as error:
        return f"FBGEMM's operators are not registered: {str(error).splitlines()[0]}"
    return None


def inspect() -> Environment:
    """Imports torch, FBGEMM and TorchRec and reports their state; never raises for a broken installation."""
    versions = installed_versions()
    problems: list[str] = []
    cuda = False
    device = "unknown (torch cannot be imported)"
    torch_problem = _import_problem("torch")
    if torch_problem:
        problems.append(torch_problem)
    else:
        import torch

        cuda = torch.version.cuda is not None
        if torch.cuda.is_available():
            device = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"
        else:
            device = "CPU" if not cuda else f"CPU (torch is built for CUDA {torch.version.cuda}, no usable GPU found)"
    torch_minor = _minor(versions["torch"] or DEFAULT_TORCH)
    if versions["fbgemm-gpu"] and versions["fbgemm-gpu-cpu"]:
        problems.append("both fbgemm-gpu and fbgemm-gpu-cpu are installed and overwrite each other's files")
    # A source build may have any version name, so a mismatch is reported only together with what it broke.
    broken = [p for p in (_import_problem("fbgemm_gpu"), _import_problem("torchrec")) if p] if not torch_problem else []
    if not torch_problem and not broken:
        operator_problem = _fbgemm_operator_problem()
        broken = [operator_problem] if operator_problem else []
    if torch_minor in PAIRINGS:
        fbgemm_wanted, torchrec_wanted = PAIRINGS[torch_minor]
        fbgemm_found = versions["fbgemm-gpu-cpu"] or versions["fbgemm-gpu"]
        for name, found, wanted in (
            ("fbgemm", fbgemm_found, fbgemm_wanted),
            ("torchrec", versions["torchrec"], torchrec_wanted),
        ):
            if found is not None and _minor(found) != _minor(wanted):
                problems.append(f"{name} {found} does not belong to torch {versions['torch']}, {wanted} does")
    elif broken:
        problems.append(f"torch {versions['torch']} is not in the table of tried versions ({', '.join(PAIRINGS)})")
    problems += broken
    return Environment(versions, device, tuple(problems), _remedy(torch_minor, cuda))


def require() -> None:
    """Raises ImportError with the whole explanation if the installation cannot work."""
    if "torchrec" in sys.modules and "fbgemm_gpu" in sys.modules:
        return
    found = inspect()
    if found.problems:
        raise ImportError(f"\n{found}")


def main() -> int:
    found = inspect()
    print(found)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
