"""A delta: what changed since the last package, instead of the whole of the next one."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from inference.conftest import build_mlp, exported
from support import make_schema, run_program

from nasrec_torchrec import inference
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import GOLDEN, MANIFEST, PACKAGE, Predictor

pytestmark = pytest.mark.extended  # for two packages are compiled first

ROWS = 20_000


@pytest.fixture(scope="module")
def made(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package old, the package new of a model with some other rows and weights, and new.delta."""
    schema = make_schema(rows=ROWS)
    model = build_mlp(schema)
    folder = tmp_path_factory.mktemp("deltas")
    for name in ("old", "new"):
        shutil.copytree(exported(packages, "large", model, schema), folder / name)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "embedding_bags" in name:
                weights[5:25] += 1  # the rows that a day has trained
            else:
                weights += 0.01
    export(model, schema, folder / "new", delta=folder / "new.delta")
    return folder


def test_a_delta_is_small_and_leads_to_the_very_package(made: Path, tmp_path: Path):
    whole = (made / "new" / PACKAGE).stat().st_size
    assert (made / "new.delta").stat().st_size < 0.1 * whole
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "notes.txt").write_text("mine")
    shutil.copytree(made / "old", tmp_path / "served", dirs_exist_ok=True)
    done = run_program("nasrec", "patch", "--package", tmp_path / "served", "--delta", made / "new.delta", "--json")
    version = Predictor(made / "new").version
    assert (done.returncode, json.loads(done.stdout)) == (0, {"version": version})
    for name in (PACKAGE, MANIFEST, GOLDEN):
        assert (tmp_path / "served" / name).read_bytes() == (made / "new" / name).read_bytes()
    assert (tmp_path / "served" / "notes.txt").read_text() == "mine"
    # It cannot be applied twice, and says which version it is for.
    parent = Predictor(made / "old").version
    with pytest.raises(
        ValueError, match=rf"new\.delta: it changes version {parent} of a package, found version {version}"
    ):
        inference.patch(tmp_path / "served", made / "new.delta")


def test_a_damaged_delta_changes_nothing(made: Path, tmp_path: Path):
    shutil.copytree(made / "old", tmp_path / "served")
    version, delta = Predictor(tmp_path / "served").version, tmp_path / "damaged.delta"
    content = bytearray((made / "new.delta").read_bytes())
    for damaged in (content[: len(content) // 2], b"", b"PK", bytes(content[:100]) + b"\0" + bytes(content[101:])):
        delta.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.delta: "):
            inference.patch(tmp_path / "served", delta)
    with zipfile.ZipFile(made / "new.delta") as archive:
        document, data = json.loads(archive.read("delta.json")), archive.read("data")
    wrong = [
        {"files": document["files"] | {"../outside": [["data", 1]]}},
        {"files": document["files"] | {GOLDEN: [["base", "/etc/hostname", 0, 1]]}},
        {"files": document["files"] | {GOLDEN: [["data", 10**9]]}},
        {"files": {MANIFEST: document["files"][MANIFEST]}},
        {"files": 3},
        {"format": "nasrec-torchrec/delta/9"},
    ]
    for change in wrong:
        with zipfile.ZipFile(delta, "w") as archive:
            archive.writestr("data", data)
            archive.writestr("delta.json", json.dumps(document | change))
        with pytest.raises(ValueError, match=r"damaged\.delta: "):
            inference.patch(tmp_path / "served", delta)
    assert Predictor(tmp_path / "served").version == version and not (tmp_path / "outside").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_delta_needs_an_earlier_package(tmp_path: Path):
    schema = make_schema()
    with pytest.raises(ValueError, match=r"delta: expected an earlier package in .*, from which the new one differs"):
        export(build_mlp(schema), schema, tmp_path / "package", delta=tmp_path / "x.delta")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_package_of_another_format_is_refused_before_anything_is_compiled(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(made / "old", tmp_path / "package")
    manifest = json.loads((tmp_path / "package" / MANIFEST).read_text()) | {"format": "nasrec-torchrec/package/2"}
    (tmp_path / "package" / MANIFEST).write_text(json.dumps(manifest))
    schema = make_schema(rows=ROWS)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", None)
    with pytest.raises(ValueError, match=r"expected a manifest of format .*found 'nasrec-torchrec/package/2'"):
        export(build_mlp(schema), schema, tmp_path / "package", delta=tmp_path / "x.delta")
