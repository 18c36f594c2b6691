import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support import SMALL_SPACE, make_candidate, run_program

from nasrec_torchrec import Architecture
from nasrec_torchrec.search.config import Limits, Objective
from nasrec_torchrec.search.finalists import Finalist, agreement, read_finalists
from nasrec_torchrec.search.report import write_report
from nasrec_torchrec.search.results import SearchResults, read_results, write_results


def _candidates(count: int, **values):
    drawn = dict.fromkeys(SMALL_SPACE.sample(torch.Generator().manual_seed(seed)) for seed in range(2 * count))
    return [make_candidate(architecture, **values) for architecture in list(drawn)[:count]]


def _write(candidates, folder: Path, top_k: int, objective=Objective(), limits=Limits()) -> SearchResults:  # noqa: B008
    results = SearchResults(tuple(candidates), objective, limits, top_k, ("'a' < 1",))
    write_results(results, folder)
    write_report(folder)
    return results


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_written_results_can_be_read_back(tmp_path: Path):
    candidates = _candidates(9)
    _write(candidates, tmp_path, 9)
    written = _write(candidates, tmp_path, 4)
    results = json.loads((tmp_path / "results.json").read_text())
    losses = [entry["log_loss"] for entry in results["best"]]
    assert losses == sorted(c.metrics.log_loss for c in candidates)[:4] and results["evaluated"] == 9
    files = sorted(path.name for path in (tmp_path / "architectures").iterdir())
    assert files == [f"rank-0{rank}.{kind}" for rank in range(1, 5) for kind in ("json", "svg")]
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert read_results(tmp_path) == written
    assert pq.read_table(tmp_path / "candidates.parquet").column("loss").to_pylist() == [c.loss for c in candidates]
    assert not list(tmp_path.glob(".*"))


def test_the_widths_that_were_chosen_are_shown(tmp_path: Path):
    space = replace(SMALL_SPACE, embedding_widths=(4, 8), width_tables=("t_shop", "t_user"))
    generator = torch.Generator().manual_seed(0)
    candidates = [make_candidate(space.sample(generator)) for _ in range(9)]
    rows = {"t_shop": 2**18, "t_user": 10}
    written = SearchResults(tuple(candidates), Objective(), Limits(), 3, table_rows=rows)
    write_results(written, tmp_path)
    write_report(tmp_path)
    assert read_results(tmp_path) == written
    page = (tmp_path / "report.html").read_text()
    table = page[page.index("Widths of the embedding tables") : page.index("<h2>Architectures")]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]]
    chosen = [dict(candidate.architecture.embedding_widths) for candidate in written.best]
    sizes = ("262,144", f"{chosen[0]['t_shop']:.3f}"), ("10", "0.000")
    assert cells == [[*size, *(str(widths[name]) for widths in chosen)] for name, size in zip(rows, sizes, strict=True)]
    _write(_candidates(9), tmp_path / "none", 3)
    assert "Widths of the embedding tables" not in (tmp_path / "none" / "report.html").read_text()


def test_a_network_is_written_once(tmp_path: Path):
    candidates = _candidates(5, loss=0.5, multiply_adds=7)
    _write([*candidates[:4], *_candidates(5, loss=0.4)[4:]], tmp_path, 3)
    files = sorted(path.name for path in (tmp_path / "architectures").glob("*.json"))
    assert files == ["rank-01.json", "rank-02.json"]


def test_the_page_needs_no_other_file(tmp_path: Path):
    objective = Objective(trade_off=("multiply_adds", "latency_us"))
    candidates = [
        make_candidate(c.architecture, c.loss, multiply_adds=1000 + 7 * i % 50, latency_us=90.0 + i, latency_iqr_us=4.0)
        for i, c in enumerate(_candidates(30))
    ]
    _write(candidates, tmp_path, 3, objective)
    done = run_program("nasrec", "report", "--search", tmp_path, "--json")
    text = Path(json.loads(done.stdout)["report"]).read_text()
    assert "<h2>Warnings</h2>" in text and "<li>&#39;a&#39; &lt; 1</li>" in text
    page = _Page(text)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.tags.count("svg") == 3 and "script" not in page.tags and "link" not in page.tags
    fronts = sorted((tmp_path / "architectures").glob("front-*.json"))
    results = json.loads((tmp_path / "results.json").read_text())
    listed = [Architecture.from_json(json.dumps(entry["architecture"])) for entry in results["front"]]
    best = [Architecture.from_json(json.dumps(entry["architecture"])) for entry in results["best"]]
    assert {Architecture.from_json(file.read_text()) for file in fronts} == set(listed) - set(best)
    assert min(listed, key=lambda a: listed.index(a)) == best[0]


def test_the_stopped_and_the_too_expensive_are_no_finalists(tmp_path: Path):
    first, second, third, *_ = architectures = [candidate.architecture for candidate in _candidates(5)]
    candidates = [
        make_candidate(first, 0.1, stopped=True),
        make_candidate(second, 0.2, latency_us=50.0),
        make_candidate(third, 0.3, latency_us=10.0),
        *[make_candidate(architecture, 0.4, latency_us=10.0) for architecture in architectures[3:]],
    ]
    _write(candidates, tmp_path, 1, limits=Limits(max_latency_us=40))
    best = Architecture.from_json((tmp_path / "architectures" / "rank-01.json").read_text())
    assert best == third and json.loads((tmp_path / "results.json").read_text())["stopped"] == 1


def test_a_candidate_without_a_loss_is_shown_nowhere(tmp_path: Path):
    architectures = [candidate.architecture for candidate in _candidates(4)]
    objective = Objective(trade_off=("multiply_adds",))
    failed = make_candidate(architectures[0], math.inf, multiply_adds=1)
    candidates = [failed, *(make_candidate(architecture, 0.4, multiply_adds=9) for architecture in architectures[1:])]
    written = _write(candidates, tmp_path, 9, objective)
    assert failed not in written.best and failed not in written.front
    assert read_results(tmp_path) == written and read_results(tmp_path).candidates[0].loss == math.inf
    results = (tmp_path / "results.json").read_text()
    assert json.loads(results)["failed"] == 1 and "NaN" not in results and "Infinity" not in results
    assert "1 failed because their loss is not a number" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="holds no candidate with a finite loss"):
        _write([failed], tmp_path / "none", 3)


def _trained(architecture: Architecture, losses: list[float], test: float) -> dict:
    runs = [{"validation": {"log_loss": loss}, "test": {"log_loss": test, "auc": 0.8}} for loss in losses]
    return {"model": json.loads(architecture.to_json()), "learning_rate": 0.1, "dense_parameters": 7, "runs": runs}


def test_finalists_stand_beside_what_the_supernet_predicted(tmp_path: Path):
    candidates = _candidates(12)
    _write(candidates, tmp_path / "search", 4)
    order = sorted(candidates, key=lambda candidate: candidate.loss)[:4]
    truth = [0.43, 0.41, 0.44, 0.47]
    for name, part in (("all", slice(0, 3)), ("alone", slice(3, 4))):
        trials = [
            _trained(c.architecture, [loss, loss + 0.02], 0.5) for c, loss in zip(order[part], truth[part], strict=True)
        ]
        # The same one with another learning rate did worse.
        trials.append(_trained(order[0].architecture, [0.6, 0.6], 0.6))
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"best": trials[0], "trials": trials}))
    finalists = read_finalists([tmp_path / "all", tmp_path / "alone"], candidates)
    assert [finalist.mean for finalist in finalists] == pytest.approx([0.42, 0.44, 0.45, 0.48])
    assert [finalist.predicted for finalist in finalists] == [order[i].loss for i in (1, 0, 2, 3)]
    # Of six pairs one is the other way round.
    assert agreement(finalists) == pytest.approx(4 / 6)
    write_report(tmp_path / "search", finalists)
    text = (tmp_path / "search" / "report.html").read_text()
    assert "tau 0.67" in text and text.count("<svg") == 4
    assert text.count("0.50000") == 1, "the test split is for the winner alone"


def test_unreadable_results(tmp_path: Path):
    with pytest.raises(ValueError, match="does not hold the results of a search"):
        read_results(tmp_path)
    _write(_candidates(3), tmp_path, 2)
    (tmp_path / "candidates.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="does not hold the results of a search"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text('{"trials": [{"model": {"dense_layers": [1]}}]}')
    with pytest.raises(ValueError, match="not the metrics of finished trainings of architectures"):
        read_finalists([tmp_path], [])


def test_two_finalists_do_not_make_a_rank():
    architecture = _candidates(1)[0].architecture
    pair = [Finalist(architecture, (0.4,), 0.4, 0.7, 10, predicted) for predicted in (0.3, None)]
    assert agreement(pair) is None and pair[0].deviation == 0
