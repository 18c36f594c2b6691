"""The Dockerfiles: no container engine runs in CI, so they are linted, and their install steps run elsewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "containers").glob("Dockerfile.*"))


def _instructions(file: Path) -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    return text.replace("\\\n", " ").splitlines()


def _copied(file: Path) -> list[str]:
    lines = [line for line in _instructions(file) if line.startswith("COPY")]
    return [name for line in lines for name in line.split()[1:-1]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path):
    result = subprocess.run([Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_everything_that_is_copied_exists_and_reaches_the_build(file: Path):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert _copied(file) or file.name == "Dockerfile.triton"  # has nothing of ours
    for name in _copied(file):
        assert (ROOT / name).exists() and name in sent, name


@pytest.mark.extended
def test_the_install_steps_of_the_cpu_image_work_in_a_clean_environment(tmp_path: Path):
    """With what is copied alone; the packages themselves come from this environment, so that nothing is fetched."""
    file = ROOT / "containers" / "Dockerfile.cpu"
    for name in _copied(file):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (step,) = (line for line in _instructions(file) if line.startswith("RUN python -m pip"))
    step = step.removeprefix("RUN ").replace("pip install", "pip install --quiet")
    path = f"{environment / 'bin'}:/usr/bin:/bin"
    variables = {"PATH": path, "HOME": str(tmp_path), "TORCH_INDEX": ""}
    result = subprocess.run(["bash", "-ec", step], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "torch, torchrec and fbgemm belong together." in result.stdout
    (command,) = (line for line in _instructions(file) if line.startswith("CMD"))
    command = shlex.split(command.removeprefix("CMD").strip("[] ").replace(",", " "))
    helped = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert helped.returncode == 0 and "Open Inference Protocol" in helped.stdout, helped.stderr
