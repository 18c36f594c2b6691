"""Calibration that is fitted on validation rows and exported with the model."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from inference.conftest import build
from sklearn.isotonic import IsotonicRegression
from support import click_table, make_click_data, make_click_files, make_schema

from nasrec_torchrec.cli.main import main
from nasrec_torchrec.inference.config import ExportConfig, ScoringConfig
from nasrec_torchrec.inference.exporting import compare, export
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.inference.recalibration import recalibrate
from nasrec_torchrec.inference.scoring import requests, score
from nasrec_torchrec.inference.scoring_model import scoring_model
from nasrec_torchrec.metrics.calibration import calibration
from nasrec_torchrec.metrics.click_metrics import click_metrics


def _overconfident(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are twice too large and shifted, and labels."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(rows, generator=generator) - 1
    return 2 * true + 1.5, torch.bernoulli(true.sigmoid(), generator=generator)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_of_other_rows_become_what_is_observed(method):
    fitted = recalibrate(method, *_overconfident(20_000, 0))
    logits, labels = _overconfident(20_000, 1)
    calibrated = fitted.module()(logits)
    before, after = (calibration(found, labels).expected_error for found in (logits, calibrated))
    assert before > 0.13 and after < 0.012
    assert fitted.error_before == pytest.approx(before, abs=0.01) and fitted.error_after < 0.005
    assert click_metrics(calibrated, labels).log_loss < click_metrics(logits, labels).log_loss - 0.05
    # Its points are data, and enough to make the same map again.
    again = json.loads(json.dumps(fitted.parameters))
    module = type(fitted.module())(**{name: torch.tensor(numbers) for name, numbers in again.items()})
    assert torch.equal(module(logits), calibrated)


def test_platt_finds_the_line_back():
    fitted = recalibrate("platt", *_overconfident(100_000, 2)).parameters
    assert fitted["slope"][0] == pytest.approx(0.5, abs=0.02) and fitted["intercept"][0] == pytest.approx(
        -0.75, abs=0.03
    )


def test_isotonic_is_that_of_scikit_learn_at_its_points():
    logits, labels = _overconfident(500, 3)
    logits = logits.round(decimals=1)  # rows that share a logit
    fitted = recalibrate("isotonic", logits, labels)
    model = IsotonicRegression().fit(logits.double().numpy(), labels.double().numpy())
    points = np.array(fitted.parameters["logits"])
    probabilities = torch.tensor(fitted.parameters["calibrated"]).sigmoid().numpy()
    inner = (probabilities > probabilities[0]) & (probabilities < probabilities[-1])
    np.testing.assert_allclose(probabilities[inner], model.predict(points[inner]), atol=1e-6)
    # The ends are no certainties, though there all labels are equal.
    assert 0 < probabilities[0] < 0.2 and 0.8 < probabilities[-1] < 1
    map_of = fitted.module()
    far = map_of(torch.tensor([-1e9, 1e9]))
    assert far.tolist() == pytest.approx([fitted.parameters["calibrated"][0], fitted.parameters["calibrated"][-1]])
    assert bool((map_of(logits.sort().values).diff() >= 0).all())


def test_few_clicks_are_said_and_none_are_refused():
    logits, labels = _overconfident(1000, 4)
    assert "few for it; platt needs fewer" in str(recalibrate("isotonic", logits, labels))
    assert "few" not in str(recalibrate("platt", logits, labels))
    with pytest.raises(ValueError, match=r"calibrate: expected rows with and without a click, found 0 clicks in 1,000"):
        recalibrate("platt", logits, torch.zeros(1000))
    with pytest.raises(ValueError, match=r"calibrate: higher logits have fewer clicks on these rows \(slope -0\."):
        recalibrate("platt", -logits, labels)
    constant = recalibrate("isotonic", torch.zeros(1000), labels).module()
    assert constant(torch.randn(3)).sigmoid().tolist() == pytest.approx([float(labels.mean())] * 3, abs=1e-6)


def test_it_needs_the_validation_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--model", "absent", "--out", str(tmp_path / "package"), "--calibrate", "platt"])
    assert "calibrate: needs --data, to whose validation split" in capsys.readouterr().err
    schema = make_schema()
    with pytest.raises(ValueError, match="calibrate: expected the recalibration that compare"):
        export(build(schema), schema, tmp_path / "package", ExportConfig(calibrate="platt"))
    with pytest.raises(ValueError, match="calibrate: expected one of"):
        ExportConfig(calibrate="beta")  # type: ignore[arg-type]


def test_the_drift_is_that_of_the_calibrated_form():
    schema = make_schema()
    model, files = build(schema), make_click_files(schema, 600, seed=1)
    plain, fitted = (compare(model, ExportConfig(calibrate=method), files) for method in (None, "platt"))
    assert fitted.trained == plain.trained and fitted.exported.log_loss < plain.exported.log_loss
    assert fitted.exported.auc == pytest.approx(plain.exported.auc, abs=1e-9)
    assert "calibrated by platt on 600 validation rows" in str(fitted) and "recalibration" not in fitted.metrics


@pytest.mark.slow
def test_offline_and_online_probabilities_are_those_of_the_calibrated_model(plain: Path, tmp_path: Path):
    schema = make_schema()
    model = build(schema, 5, num_blocks=1)
    config = ExportConfig(calibrate="isotonic")
    fitted = compare(model, config, make_click_files(schema, 600)).recalibration
    assert fitted is not None
    predictor = Predictor(plain)
    assert predictor.manifest["calibration"] == json.loads(json.dumps(fitted.__dict__))
    data = make_click_data(schema, 1000, seed=5)
    (request,) = requests(data, predictor, 1000)
    with torch.no_grad():
        inputs = (request.dense, request.ids, request.lengths)
        expected = scoring_model(model, config, schema.feature_names, fitted)(*inputs)
        bare = scoring_model(model, ExportConfig(), schema.feature_names)(*inputs)
    found = predictor.logits(request)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((found - bare).abs().max()) > 0.1
    pq.write_table(click_table(data, schema), tmp_path / "rows.parquet")
    score(plain, [str(tmp_path / "rows.parquet")], tmp_path / "scores", ScoringConfig(batch_size=1000))
    scored = pq.read_table(tmp_path / "scores").column("probability").to_numpy()
    assert scored.tolist() == predictor.predict(request).tolist()
