import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_click_data

from nasrec_torchrec.inference.predictor import Batcher, Predictor, QueueFull, Request, merge, split
from nasrec_torchrec.inference.scoring import requests

pytestmark = pytest.mark.slow  # for the package is compiled first


@pytest.fixture(scope="module")
def predictor(package) -> Predictor:
    return Predictor(package[0], runners=2)


def _requests(predictor: Predictor, schema, sizes: list[int]) -> list[Request]:
    return [next(iter(requests(make_click_data(schema, size, size), predictor, size))) for size in sizes]


def test_it_computes_the_model(package, predictor):
    _, model, schema = package
    data = make_click_data(schema, 300)
    (request,) = requests(data, predictor, 300)
    with torch.no_grad():
        expected = torch.sigmoid(model(data.dense, data.sparse).flatten())
    torch.testing.assert_close(predictor.predict(request), expected, rtol=0, atol=0.01)


def test_rows_by_name(package, predictor):
    rows = [{"f0": 3, "f3": [1, 2], "d1": 0.5}, {"f1": [4], "f2": 999}, {}]
    request = predictor.request(rows)
    assert request.ids.tolist() == [3, 4, 999, 1, 2]
    assert request.lengths.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert request.dense is not None and request.dense.tolist() == [[0, 0.5, 0], [0, 0, 0], [0, 0, 0]]
    one_by_one = [float(predictor.predict(predictor.request([row]))) for row in rows]
    assert predictor.predict(request).tolist() == pytest.approx(one_by_one, abs=1e-6)
    assert predictor.predict(predictor.request([])).tolist() == []
    for bad, message in (
        ([{"f9": 1}], r"row 0: unknown features \['f9'\]; the model has \['d0'"),
        ([{"f0": "three"}], "rows: expected numbers"),
        ([{"f0": 2**70}], "rows: expected numbers"),
        ([{"d0": [1, 2]}], "rows: expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.request(bad)


def test_what_does_not_fit_is_refused(predictor):
    good = predictor.request([{"f0": 1, "f1": 2}, {"f3": [3, 4]}])
    ids, lengths, dense = good.ids, good.lengths, good.dense
    assert dense is not None
    for bad, message in (
        (Request(ids.int(), lengths, dense), r"ids: expected torch.int64 of shape \(any\), found torch.int32"),
        (Request(ids, lengths[:2], dense), r"lengths: expected torch.int64 of shape \(4, any\)"),
        (Request(ids, -lengths, dense), "lengths: expected numbers of ids, found -2"),
        (Request(ids[1:], lengths, dense), "ids: the lengths ask for 4, found 3"),
        (Request(ids, lengths * 2**60, dense), "ids: the lengths ask for"),
        (Request(ids, lengths, None), r"dense: missing; expected a column for each of \['d0'"),
        (Request(ids, lengths, dense[:, :2]), r"dense: expected torch.float32 of shape \(2, 3\)"),
        (Request(ids, lengths, dense / 0), "dense: expected finite numbers"),
        (Request(ids, lengths, dense, torch.ones(4)), "weights: the ids of this model are not weighted"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(bad)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_merged_requests_are_scored_as_they_are_alone(package, predictor, sizes):
    parts = _requests(predictor, package[2], sizes)
    alone = torch.cat([predictor.predict(request) for request in parts])
    merged = merge(parts)
    torch.testing.assert_close(predictor.predict(merged), alone, rtol=0, atol=1e-6)
    again = merge(split(merged, 4))
    assert torch.equal(again.ids, merged.ids) and torch.equal(again.lengths, merged.lengths)
    assert torch.equal(again.dense, merged.dense) and max(map(len, split(merged, 4))) <= 4


def test_many_threads_get_their_own_answers(package, predictor):
    parts = _requests(predictor, package[2], list(range(1, 25)))
    expected = [predictor.predict(request) for request in parts]
    batches: list[int] = []
    batcher = Batcher(predictor, max_batch_size=40, observe=lambda rows, seconds: batches.append(rows))
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(20):
            which = (number * 7 + turn) % len(parts)
            direct = predictor.predict(parts[which])
            batched = batcher.submit(parts[which]).result(timeout=30)
            for scores in (direct, batched):
                if not torch.allclose(scores, expected[which], atol=1e-6):
                    wrong.append(which)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert not wrong and max(batches) <= 40 and len(batches) < 120, "some were scored together"
    assert batcher.waiting == 0


def test_a_full_queue_refuses_and_a_closed_one_finishes(package, predictor):
    class Slow:
        def check(self, request):
            predictor.check(request)

        def predict(self, request):
            time.sleep(0.05)
            return predictor.predict(request)

    batcher = Batcher(Slow(), max_batch_size=8, max_waiting=20)  # type: ignore[arg-type]
    (request,) = _requests(predictor, package[2], [8])
    accepted = [batcher.submit(request), batcher.submit(request)]
    with pytest.raises(QueueFull, match="16 rows wait already, 20 may"):
        batcher.submit(request)
    with pytest.raises(ValueError, match="ids: the lengths ask for"):
        batcher.submit(Request(request.ids[1:], request.lengths, request.dense))
    batcher.close()
    assert all(future.done() and len(future.result()) == 8 for future in accepted)


def test_damaged_packages_are_refused(package, tmp_path: Path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(package[0], tmp_path / name))

    with pytest.raises(ValueError, match=r"model.json: cannot be read"):
        Predictor(tmp_path / "absent")
    (copy("a") / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.json: expected a manifest of format"):
        Predictor(tmp_path / "a")
    (copy("b") / "model.pt2").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model.pt2: its checksum is not that of the manifest"):
        Predictor(tmp_path / "b")
    with pytest.raises(ValueError, match=r"model.pt2: cannot be loaded"):
        Predictor(tmp_path / "b", verify=False)
    golden = copy("c") / "golden.json"
    document = json.loads(golden.read_text())
    document["logits"][0] += 0.01
    golden.write_text(json.dumps(document))
    manifest = json.loads((tmp_path / "c" / "model.json").read_text())
    del manifest["sha256"]["golden.json"]
    (tmp_path / "c" / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"the model's logits differ by 0\.01 from those where it was exported"):
        Predictor(tmp_path / "c")
