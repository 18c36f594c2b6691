import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
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
        ([{}, {"f0": "three"}], "row 1: f0: expected whole numbers of 64 bits as ids, found 'three'"),
        ([{"f0": 3.7}], "row 0: f0: expected whole numbers of 64 bits as ids, found 3.7"),
        ([{"f3": [3, -0.5]}], "row 0: f3: .*found -0.5"),
        ([{"f0": True}], "row 0: f0: .*found True"),
        ([{"f3": np.array([True])}], "row 0: f3: .*found True"),
        ([{"f0": float("nan")}], "row 0: f0: .*found nan"),
        ([{"f3": [None]}], "row 0: f3: .*found None"),
        ([{"f0": 2**63}], "row 0: f0: .*found 9223372036854775808"),
        ([{"d0": [1, 2]}], r"row 0: d0: expected a finite number of 32 bits, found \[1, 2\]"),
        ([{"d0": 1e39}], "row 0: d0: .*found 1e[+]39"),
        ([{"d0": float("nan")}], "row 0: d0: .*found nan"),
        ([{"d0": False}], "row 0: d0: .*found False"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.request(bad)


def test_whole_numbers_of_any_kind_are_ids(predictor):
    rows = [{"f0": 3, "f3": [1, 2], "d1": 0.5}, {"f0": 2**60, "f3": None, "d1": None}]
    same = [
        {"f0": 3.0, "f3": np.array([1.0, 2.0]), "d1": np.float32(0.5)},
        {"f0": np.float64(2**60), "f3": torch.tensor([], dtype=torch.int64)},
    ]
    one, other = predictor.request(rows), predictor.request(same)
    assert torch.equal(one.ids, other.ids) and torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.dense, other.dense)  # type: ignore[arg-type]


@given(st.integers(0, 10_000))
def test_ids_that_no_table_has_count_as_missing_and_are_counted(predictor, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-20, 70, (8,), generator=generator)
    known = torch.where((ids >= 0) & (ids < 50), ids, 0)
    lengths, dense = torch.tensor([[1, 1], [1, 1], [0, 1], [0, 3]]), torch.zeros(2, 3)
    before = dict(predictor.unknown_ids)
    assert torch.equal(
        predictor.predict(Request(ids, lengths, dense)), predictor.predict(Request(known, lengths, dense))
    )
    counts = [int(part.sum()) for part in (ids != known).split([2, 2, 1, 3])]
    assert predictor.unknown(Request(ids, lengths, dense)) == dict(zip(predictor.features, counts, strict=True))
    assert [predictor.unknown_ids[name] - before[name] for name in predictor.features] == counts


def test_tensors_of_any_stride(package, predictor):
    """Compiled code looks at strides also where they mean nothing: of no element, or of a dimension of one."""
    dense = torch.randn(3, 2).t()
    lengths = torch.zeros(4, 2, dtype=torch.int64)
    nothing = Request(torch.from_numpy(np.array([], np.int64)), lengths, dense)
    assert predictor.predict(nothing).tolist() == pytest.approx(
        predictor.predict(Request(torch.empty(0, dtype=torch.int64), lengths, dense.contiguous())).tolist(), abs=1e-6
    )
    one = predictor.request([{"f0": 1, "d0": 1.0}])
    for request in (
        Request(one.ids, torch.stack([one.lengths] * 2, 2)[..., 0], one.dense),
        Request(one.ids, one.lengths.t().contiguous().t(), torch.as_strided(one.dense, (1, 3), (7, 1))),
        Request(torch.stack([one.ids] * 2, 1)[:, 0], one.lengths, one.dense.t().contiguous().t()),
    ):
        assert torch.equal(predictor.predict(request), predictor.predict(one))


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


class _Counting:
    """A predictor that fails where a request has an id of 13, and says how often it was called."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self.calls, self.check = predictor, 0, predictor.check

    def predict(self, request: Request) -> torch.Tensor:
        self.calls += 1
        time.sleep(0.05)
        if 13 in request.ids.tolist():
            raise RuntimeError("thirteen")
        return self._predictor.predict(request)


def test_one_request_of_a_batch_concerns_no_other(predictor):
    counting = _Counting(predictor)

    def broken_observer(rows: int, seconds: float) -> None:
        raise OSError

    batcher = Batcher(counting, max_delay=0.2, observe=broken_observer)  # type: ignore[arg-type]
    requests = [predictor.request([{"f0": value}]) for value in (1, 2, 13, 4)]
    futures = [batcher.submit(request) for request in requests]
    assert futures[1].cancel()
    futures[3].add_done_callback(lambda future: 1 / 0)
    assert torch.equal(futures[0].result(30), predictor.predict(requests[0]))
    assert torch.equal(futures[3].result(30), predictor.predict(requests[3]))
    with pytest.raises(RuntimeError, match="thirteen"):
        futures[2].result(30)
    assert counting.calls == 1 + 3
    # All of a batch are cancelled, and the next request is scored.
    cancelled = [batcher.submit(requests[0]) for _ in range(3)]
    assert all(future.cancel() for future in cancelled)
    assert torch.equal(batcher.submit(requests[0]).result(30), predictor.predict(requests[0]))
    batcher.close()
    assert batcher.waiting == 0
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(requests[0])


def test_a_folder_that_its_process_removes_meanwhile_stops_nobody(package, monkeypatch: pytest.MonkeyPatch):
    gone = Path(tempfile.gettempdir()) / "nasrec-aotinductor-gone"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([gone]))
    Predictor(package[0])


def test_damaged_packages_are_refused(package, tmp_path: Path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(package[0], tmp_path / name))

    def change(name: str, value: object) -> Path:
        document = json.loads((package[0] / "model.json").read_text())
        (copy(name) / "model.json").write_text(json.dumps(document | {name: value}))
        return tmp_path / name

    with pytest.raises(ValueError, match=r"model.json: cannot be read"):
        Predictor(tmp_path / "absent")
    (copy("a") / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.json: expected a manifest of format"):
        Predictor(tmp_path / "a")
    (copy("b") / "model.pt2").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model.pt2: its checksum is not that of model.json"):
        Predictor(tmp_path / "b")
    with pytest.raises(ValueError, match=r"model.pt2: cannot be loaded"):
        Predictor(tmp_path / "b", verify=False)
    sums = json.loads((package[0] / "model.json").read_text())["sha256"]
    for name, value, message in (
        ("inputs", ["ids"], "not the manifest of a package: inputs"),
        ("inputs", 3, "not the manifest of a package"),
        ("device", "abacus", "not the manifest of a package: device"),
        ("requires", ["os"], "not the manifest of a package: requires"),
        ("schema", {"dense": [], "sparse": [{"name": "x"}]}, "not the manifest of a package: KeyError"),
        ("schema", {"dense": [], "sparse": []}, "not the manifest of a package: inputs, schema.sparse"),
        ("sha256", {name: value for name, value in sums.items() if name != "golden.json"}, "package: sha256"),
        ("sha256", sums | {"../../etc/passwd": ""}, "not the manifest of a package: sha256"),
        ("sha256", [], "not the manifest of a package"),
        ("metrics", {"auc": 0.9}, "model.json: its checksum is not that of its content"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(change(name, value))
        shutil.rmtree(tmp_path / name)


def test_a_response_that_differs_is_refused(package, tmp_path: Path):
    for change, message in (
        (lambda golden: golden["logits"].__setitem__(0, golden["logits"][0] + 0.01), r"logits differ by 0\.01"),
        (lambda golden: golden["logits"].pop(), r"not a request and its response: .*expected logits of shape \(8,\)"),
        (lambda golden: golden["request"].pop("ids"), "not a request and its response"),
        (lambda golden: golden["request"].update(ids=[2**70]), "not a request and its response"),
        (lambda golden: golden.pop("tolerance"), "not a request and its response: KeyError"),
        (lambda golden: golden.update(tolerance=float("nan")), "logits differ by"),
    ):
        shutil.copytree(package[0], tmp_path / "p")
        golden = json.loads((tmp_path / "p" / "golden.json").read_text())
        change(golden)
        (tmp_path / "p" / "golden.json").write_text(json.dumps(golden))
        manifest = json.loads((tmp_path / "p" / "model.json").read_text())
        manifest["sha256"]["golden.json"] = hashlib.sha256((tmp_path / "p" / "golden.json").read_bytes()).hexdigest()
        (tmp_path / "p" / "model.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=message):
            Predictor(tmp_path / "p")
        shutil.rmtree(tmp_path / "p")


@given(st.data())
@settings(max_examples=60)
def test_every_flipped_bit_of_a_package_is_found(package, data):
    """Covers all files except the names in the list of checksums, where a changed name is a missing file."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(package[0], Path(folder) / "p"))
        file = copy / data.draw(st.sampled_from(("model.json", "model.pt2", "golden.json")))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(bytes(content))
        try:
            known = json.loads((package[0] / "model.json").read_text())
            if file.name == "model.json" and json.loads(content) == known:
                return  # white space
        except ValueError:
            pass
        with pytest.raises(ValueError, match=re.escape(str(copy))):
            Predictor(copy)
