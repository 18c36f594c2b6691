"""What is in the wheel and the sdist, and whether the wheel alone gives working programs and components."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from buck_files import ROOT, resources, sources

# Folders of the sources, and where a wheel has them: a wheel owns one name at the top level.
PACKAGES = {"nasrec_torchrec": "nasrec_torchrec", "components": "nasrec_torchrec/components"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of the tree, and the wheel that is built of that."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return out


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_packages_and_nothing_else(built: Path):
    files = [file for file in (*sources(), *resources()) if file.parts[0] in PACKAGES]
    code = {file.as_posix() for file in files}
    installed = {f"{PACKAGES[file.parts[0]]}/{file.relative_to(file.parts[0]).as_posix()}" for file in files}
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert inside == installed
    assert "nasrec = nasrec_torchrec.components.nasrec" in entry_points
    assert "nasrec = nasrec_torchrec.cli.main:main" in entry_points
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    generated = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - generated == code | {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}


@pytest.mark.slow
def test_the_installed_wheel_works_away_from_the_sources(built: Path, tmp_path: Path):
    """Beside the packages of this environment; that they can be installed from nothing is what `make setup` shows."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    python = environment / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    # The other packages, without the editable installation of the sources that this environment may hold.
    others = tmp_path / "others"
    others.mkdir()
    for folder in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in folder.iterdir():
            if "nasrec" not in entry.name.lower() and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    (packages / "others.pth").write_text(f"{others}\n")
    variables = {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    # A user's own folders of the names that the sources use.
    for decoy in ("apps", "components"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / "__init__.py").write_text("raise SystemExit('a user's own folder was imported')\n")

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    assert str(packages) in run(str(python), "-c", "import nasrec_torchrec; print(nasrec_torchrec.__file__)")
    nasrec = str(environment / "bin" / "nasrec")
    assert "nasrec 0." in run(nasrec, "--version")
    for job in ("train", "search", "export", "status"):
        assert f"usage: nasrec {job}" in run(nasrec, job, "--help")
    torchx = "from torchx.cli.main import main; import sys; main(sys.argv[1:])"
    flags = ["run", "--scheduler", "local_cwd", "--dryrun", "nasrec.train", "--data", "d", "--out", "o", "-j", "1x2"]
    described = run(str(python), "-c", torchx, *flags)
    assert "nasrec_torchrec train" in described and "--nproc_per_node" in described
    listed = run(str(python), "-c", torchx, "builtins")
    assert "nasrec.export" in listed and "dist.ddp" in listed
