"""What commit d4b7ddb wrote, the last before runs had an owner: loaded, or refused with its version and the remedy."""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from support import run_program

from nasrec_torchrec import datasets, training
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.training.config import TrainConfig

FILES = Path(__file__).parent / "golden" / "d4b7ddb.zip"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A prepared data set, the finished training of a DLRM on it, and the manifest of a package."""
    with zipfile.ZipFile(FILES) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_its_runs_are_measured_as_they_were(earlier: Path):
    (run,) = json.loads((earlier / "run" / "metrics.json").read_text())["best"]["runs"]
    for split in ("validation", "test"):
        found = asdict(training.evaluate(earlier / "run", earlier / "data", split))
        assert {name: found[name] for name in run[split]} == pytest.approx(run[split], abs=1e-6)


def test_its_data_is_described_and_trained_on(earlier: Path):
    text = str(datasets.describe(earlier / "data")[0])
    assert "train                  240   50.00%" in text and "shop 1 15.4%" in text
    config = TrainConfig(epochs=1, batch_size=40, learning_rate=0.01)
    best = training.run(earlier / "data", earlier / "new", config=config, architecture="mlp")
    assert best is not None and best["runs"][0]["test"]["rows"] == 30


def test_what_it_wrote_is_not_overwritten(earlier: Path):
    refused = run_program("-m", "apps.train", "--data", earlier / "data", "--out", earlier / "run", "--kind", "mlp")
    assert refused.returncode == 2
    assert "run: holds config.yaml, which an earlier version or another program wrote; choose another" in refused.stderr
    (earlier / "log.csv").write_text("clicked,price,shop,tags\n1,2,a,b\n")
    (earlier / "schema.json").write_text((earlier / "data" / "schema.json").read_text())
    words = "--source", earlier / "log.csv", "--schema", earlier / "schema.json", "--out", earlier / "data"
    refused = run_program("nasrec", "prepare", "table", *words)
    assert refused.returncode == 2 and "was prepared by an earlier version, and can be used as it is" in refused.stderr


def test_its_packages_are_refused_with_the_remedy(earlier: Path):
    message = "expected a manifest of format 'nasrec-torchrec/package/3', found 'nasrec-torchrec/package/2': export the"
    with pytest.raises(ValueError, match=message):
        Predictor(earlier / "package")
