import os
import subprocess
import sys
from pathlib import Path

from nasrec_torchrec import environment


def _python(*arguments: str, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(environment.__file__).parents[1])
    path = os.pathsep.join([str(first_on_path), root] if first_on_path else [root])
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def _break_fbgemm(folder: Path) -> Path:
    (folder / "fbgemm_gpu").mkdir()
    (folder / "fbgemm_gpu" / "__init__.py").write_text(
        "raise OSError('Could not load this library: fbgemm_gpu_config.so: undefined symbol _ZN3c105ErrorE')"
    )
    return folder


def test_command_reports_a_good_environment():
    result = _python("-m", "nasrec_torchrec.environment")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "belong together" in result.stdout
    for name in ("torch ", "torchrec ", "fbgemm-gpu-cpu ", "device "):
        assert name in result.stdout


def test_command_explains_a_broken_fbgemm(tmp_path):
    result = _python("-m", "nasrec_torchrec.environment", first_on_path=_break_fbgemm(tmp_path))
    assert result.returncode == 1
    assert "To fix this, run" in result.stdout and "pip install torch==" in result.stdout
    assert "fbgemm-gpu" in result.stdout and "--no-deps torchrec==" in result.stdout


def test_import_with_a_broken_fbgemm_ends_in_the_same_explanation(tmp_path):
    result = _python("-c", "import nasrec_torchrec; nasrec_torchrec.NASRecNet", first_on_path=_break_fbgemm(tmp_path))
    assert result.returncode == 1
    assert "ImportError" in result.stderr and "To fix this, run" in result.stderr
    assert "pip install torch==" in result.stderr


def test_a_wrong_pair_is_named(monkeypatch):
    installed = {"torch": "2.13.0+cpu", "torchrec": "1.6.0", "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": None}
    monkeypatch.setattr(environment, "_installed", installed.get)
    found = environment.inspect()
    assert any("torchrec 1.6.0 does not belong to torch 2.13.0" in problem for problem in found.problems)
    assert "torchrec==1.8.0" in found.remedy


def test_both_builds_of_fbgemm_are_named(monkeypatch):
    installed = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": "1.9.0"}
    monkeypatch.setattr(environment, "_installed", installed.get)
    assert any("overwrite each other" in problem for problem in environment.inspect().problems)
