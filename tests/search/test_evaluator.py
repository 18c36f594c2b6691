import json
import math
from collections.abc import Hashable
from dataclasses import replace

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema, run_ranks
from torch.nn import functional as F
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from nasrec_torchrec import SuperNet
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.metrics.click_metrics import evaluate
from nasrec_torchrec.modules.choice_block import BlockOutputs
from nasrec_torchrec.search import finetuning
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvaluationConfig, Limits
from nasrec_torchrec.search.cost import measure_latency
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.limits import require_reachable, smallest
from nasrec_torchrec.search.sharing import SharedFeatures, block_keys
from nasrec_torchrec.training.schedules import cosine_with_warmup

CONFIG = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, chunk_size=64)


def _supernet() -> SuperNet:
    torch.manual_seed(0)
    return SuperNet(EmbeddingBagCollection(tables=make_schema().tables()), 3, SMALL_SPACE)


def _architectures(count: int):
    return [SMALL_SPACE.sample(torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def files():
    return make_click_files(make_schema(), 200), make_click_files(make_schema(), 150, seed=1)


def test_evaluation_is_finetuning_of_the_extracted_models_last_layer(files):
    train, held_out = files
    supernet, data = _supernet(), train.load()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    evaluator = Evaluator(supernet, train, held_out, CONFIG)
    for architecture in _architectures(5):
        candidate = evaluator(architecture)
        model = supernet.extract(architecture)
        last = model.interaction_arch.over_arch
        optimizer = torch.optim.Adagrad(last.parameters(), lr=0.04, eps=1e-2)
        generator = torch.Generator().manual_seed(0)
        rows = torch.cat([torch.randperm(200, generator=generator) for _ in range(2)])[: 12 * 32]
        for step, chosen in enumerate(rows.split(32)):
            optimizer.param_groups[0]["lr"] = cosine_with_warmup(step, 12, 0.04)
            batch = data.select(chosen)
            logits = model(batch.dense_features, batch.sparse_features).flatten()
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, batch.labels).backward()
            optimizer.step()
        expected = evaluate(model, held_out)
        assert candidate.loss == candidate.metrics.log_loss == pytest.approx(expected.log_loss, rel=1e-4)
        assert candidate.metrics.auc == pytest.approx(expected.auc, abs=1e-4)
        assert candidate.cost.parameters == sum(p.numel() for p in model.interaction_arch.parameters())
        assert not candidate.stopped and candidate.latency is None
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), f"the evaluation changed {name}"


def test_blocks_that_agree_are_computed_once_and_change_nothing(files):
    supernet = _supernet()
    evaluator = Evaluator(supernet, *files, CONFIG)
    generator = torch.Generator().manual_seed(0)
    parent = SMALL_SPACE.sample(generator)
    family = [parent, parent, *(SMALL_SPACE.mutate(parent, generator) for _ in range(10))]
    shared = SharedFeatures([supernet.interaction_arch.subnet(architecture) for architecture in family])
    assert shared.computed_share < 0.75
    dense, embedded = torch.rand(7, 3), torch.rand(7, 4, 16)
    for architecture, features in zip(family, shared(dense, embedded), strict=True):
        alone = supernet.interaction_arch.subnet(architecture).features(dense, embedded)
        assert torch.equal(features, torch.cat(alone, 1))
    for architecture, together in zip(family, evaluator.several(family), strict=True):
        alone = evaluator(architecture)
        assert (together.architecture, together.loss, together.metrics) == (architecture, alone.loss, alone.metrics)


def test_only_blocks_with_equal_outputs_have_equal_numbers():
    numbers: dict[Hashable, int] = {}
    outputs: dict[int, torch.Tensor] = {}
    arch = _supernet().interaction_arch
    dense, embedded = torch.rand(3, 3), torch.rand(3, 4, 16)
    count = 0
    for architecture in _architectures(200):
        known: dict[int, BlockOutputs] = {}
        arch.subnet(architecture).features(dense, embedded, known)
        for key, block in zip(block_keys(architecture, numbers), known.values(), strict=True):
            both = torch.cat([part.flatten() for part in block if part is not None] or [torch.zeros(0)])
            assert torch.equal(outputs.setdefault(key, both), both)
            count += 1
    assert len(outputs) < count


def _losses(config: EvaluationConfig, files) -> list[float]:
    evaluator = Evaluator(_supernet(), *files, config)
    return [evaluator(architecture).loss for architecture in _architectures(4)]


def test_where_rows_are_kept_changes_nothing(files, monkeypatch):
    expected = _losses(CONFIG, files)
    mapped = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, chunk_size=64, cache_memory=0)
    assert _losses(mapped, files) == expected
    halved = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, chunk_size=64, cache_precision="bf16")
    evaluator = Evaluator(_supernet(), *files, halved)
    whole = Evaluator(_supernet(), *files, CONFIG)
    assert evaluator.validation_rows.embedded.nbytes * 2 == whole.validation_rows.embedded.nbytes
    assert _losses(halved, files) == pytest.approx(expected, rel=2e-3)
    # Features that would not fit are computed in every step.
    monkeypatch.setattr(finetuning, "FEATURES_KEPT", 0)
    assert _losses(CONFIG, files) == pytest.approx(expected, rel=1e-5)


def _on_ranks(files, race: float | None) -> list[list[tuple[float, float, int]]]:
    import torch.distributed as dist
    from torchrec.models.dlrm import DLRMTrain

    from nasrec_torchrec.distributed.sharding import parallelize

    supernet = _supernet()
    config = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, chunk_size=64, race_confidence=race)
    if dist.get_world_size() > 1:
        parallelize(DLRMTrain(supernet), torch.device("cpu"), "row_wise")
    evaluator = Evaluator(supernet, *files, config)
    assert len(evaluator.validation_rows) in (len(files[1]) // dist.get_world_size() + i for i in (0, 1))
    if dist.get_rank() != 0:
        evaluator.follow()
        return []
    with evaluator:
        found = [evaluator(architecture) for architecture in _architectures(3)]
        if race is not None:
            best = min(found, key=lambda candidate: candidate.loss)
            found = [evaluator(architecture, best) for architecture in _architectures(30)]
    return [(c.loss, c.metrics.auc, c.metrics.rows) for c in found]


@pytest.mark.slow
@pytest.mark.parametrize("race", (None, 0.9))
def test_two_ranks_with_sharded_tables_find_what_one_finds(race):
    files = make_click_files(make_schema(), 200), make_click_files(make_schema(), 2001, seed=1)
    (alone,) = run_ranks(1, _on_ranks, files, race)
    together, _ = run_ranks(2, _on_ranks, files, race)
    # Shares of an odd number of rows differ by one, and so may a race that is nearly a draw.
    whole = [(one, other) for one, other in zip(alone, together, strict=True) if one[2] == other[2] == 2001]
    assert len(whole) == 3 if race is None else 2 < len(whole) < 28
    for one, other in whole:
        assert one == pytest.approx(other, abs=1e-5)
    stopped = [abs(one[2] - other[2]) <= 1 for one, other in zip(alone, together, strict=True) if one[2] < 2001]
    assert race is None or sum(stopped) >= 0.8 * len(stopped)


def test_races_stop_the_worse_and_estimate_their_loss():
    files = make_click_files(make_schema(), 400), make_click_files(make_schema(), 8000, seed=1)
    racing = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, race_confidence=0.999)
    evaluator, whole = (Evaluator(_supernet(), *files, config) for config in (racing, CONFIG))
    truth = {architecture: whole(architecture).loss for architecture in _architectures(25)}
    incumbent = evaluator(min(truth, key=lambda architecture: truth[architecture]))
    assert not incumbent.stopped
    raced = [evaluator(architecture, incumbent) for architecture in truth if architecture != incumbent.architecture]
    stopped = [candidate for candidate in raced if candidate.stopped]
    assert stopped and len(stopped) < len(raced)
    for candidate in raced:
        assert (candidate.metrics.rows < 8000) == candidate.stopped
        assert candidate.loss == pytest.approx(truth[candidate.architecture], abs=0.1 if candidate.stopped else 1e-6)
        assert not candidate.stopped or candidate.loss > incumbent.loss
    # The worst of all cannot stop the best, and who was not there before is computed again.
    worst = whole(max(truth, key=lambda architecture: truth[architecture]))
    assert evaluator(incumbent.architecture, worst).loss == pytest.approx(incumbent.loss)


def test_a_loss_that_is_known_well_enough_needs_no_more_rows():
    files = make_click_files(make_schema(), 400), make_click_files(make_schema(), 8000, seed=1)
    steps = {"finetune_steps": 12, "finetune_batch_size": 32}
    whole = Evaluator(_supernet(), *files, EvaluationConfig(**steps, race_tolerance=0))
    truth = {architecture: whole(architecture) for architecture in _architectures(25)}
    best = min(truth.values(), key=lambda candidate: candidate.loss)
    assert {whole(architecture, best).metrics.rows for architecture in _architectures(5)} == {8000}
    rows = {}
    for tolerance in (0.004, 0.012):
        evaluator = Evaluator(_supernet(), *files, EvaluationConfig(**steps, race_tolerance=tolerance))
        found = evaluator.several(list(truth), best)
        for candidate in found:
            expected = truth[candidate.architecture].loss
            # Four standard errors, and none that is better than the rival misses a row.
            assert not candidate.stopped and abs(candidate.loss - expected) < 4 * tolerance
            assert candidate.metrics.rows == 8000 or candidate.loss > best.loss
        rows[tolerance] = sum(candidate.metrics.rows for candidate in found)
    assert rows[0.012] < rows[0.004] < 25 * 8000


def test_steps_take_turns_on_few_distinct_rows(files):
    few = Evaluator(_supernet(), *files, replace(CONFIG, finetune_rows=50)).finetuning_rows
    own = Evaluator(_supernet(), *files, replace(CONFIG, finetune_rows=None)).finetuning_rows
    assert few is not None and own is not None and len(few.cached) == 50 and len(own.cached) == 200
    assert [len(step) for step in few.steps] == [len(step) for step in own.steps] == [32] * 12
    counts = torch.cat(few.steps).bincount()
    assert len(counts) == 50 and counts.min() >= 384 // 50 and counts.max() <= 384 // 50 + 1


def test_a_candidate_without_a_loss_is_the_worst(files):
    supernet = _supernet()
    with torch.no_grad():
        for parameter in supernet.interaction_arch.storage.over_arch.parameters():
            parameter.fill_(torch.nan)
    candidate = Evaluator(supernet, *files, CONFIG)(_architectures(1)[0])
    assert candidate.loss == torch.inf and candidate.failed
    assert Candidate.from_record(json.loads(json_text(candidate.to_record()))) == candidate


def test_limits_are_on_costs(files):
    evaluator = Evaluator(_supernet(), *files, EvaluationConfig(finetune_steps=0, latency_batch_size=16))
    architecture = _architectures(1)[0]
    candidate = evaluator(architecture, with_latency=True)
    cost, latency = candidate.cost, candidate.latency
    reached = (2 * cost.multiply_adds, cost.parameters, cost.activation_bytes, latency.median_us, cost.table_bytes)
    assert Limits(*reached).allow(cost, latency)
    for name, value in zip(Limits.__dataclass_fields__, reached, strict=True):
        assert Limits(**{name: value - 1}).excess(cost, latency) == {name: value}
        assert not Limits(**{name: value - 1}).allow(cost, latency)
    # The same candidate is not measured again, and without a measurement there is nothing to object to.
    assert evaluator.latency(architecture) == latency and latency.iqr_us >= 0
    assert Limits(max_latency_us=1e-9).allow(cost, None)
    with pytest.raises(ValueError, match="max_latency_us: expected a positive number, found nan"):
        Limits(max_latency_us=math.nan)


def test_limits_that_nothing_meets_are_refused_at_once(files):
    evaluator = Evaluator(_supernet(), *files, EvaluationConfig(finetune_steps=0, latency_batch_size=16))
    space, ask = SMALL_SPACE, (evaluator.cost, evaluator.latency)
    least = min(evaluator.cost(architecture).multiply_adds for architecture in smallest(space))
    with pytest.raises(ValueError, match=rf"max_flops 10 \(the smallest architecture needs {2 * least:,}\); raise it"):
        require_reachable(space, Limits(max_flops=10), *ask)
    with pytest.raises(ValueError, match=r"max_parameters 1 \(.* max_latency_us 0.001 \("):
        require_reachable(space, Limits(max_parameters=1, max_latency_us=0.001), *ask)
    require_reachable(space, Limits(max_flops=2 * least), *ask)


def test_splits_without_rows_are_named(files):
    empty = make_click_files(make_schema(), 0)
    with pytest.raises(ValueError, match="validation: the split has no rows"):
        Evaluator(_supernet(), files[0], empty, CONFIG)
    with pytest.raises(ValueError, match="train: the split has no rows"):
        Evaluator(_supernet(), empty, files[1], CONFIG)
    assert len(Evaluator(_supernet(), empty, files[1], EvaluationConfig(finetune_steps=0)).validation_rows)


def test_activations_are_counted_by_hand():
    supernet = _supernet()
    architecture = _architectures(1)[0]
    subnet = supernet.interaction_arch.subnet(architecture)
    outputs = 0

    def add(_module, _inputs, output) -> None:
        nonlocal outputs
        outputs += output.numel() * 4

    for module in subnet.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(add)
    subnet(torch.rand(1, 3), torch.rand(1, 4, 16))
    counted = Evaluator(supernet, *[make_click_files(make_schema(), 40)] * 2, EvaluationConfig(1, 4)).cost(architecture)
    assert outputs < counted.activation_bytes < 50 * outputs


def test_the_fused_form_computes_the_same_faster_or_not():
    supernet = _supernet()
    for architecture in _architectures(10):
        subnet = supernet.interaction_arch.subnet(architecture)
        dense, tokens = torch.rand(9, 3), torch.rand(9, 4, 16)
        fused = fuse(subnet)
        torch.testing.assert_close(fused(dense, tokens), subnet(dense, tokens), atol=1e-5, rtol=1e-5)
        assert not any(parameter.requires_grad for parameter in fused.parameters())
    latency = measure_latency(subnet, 8, torch.device("cpu"), min_run_time=0.01)
    assert 10 < latency.median_us < 1e6 and latency.iqr_us >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetune_steps": -1}, "finetune_steps: expected 0 or more, found -1"),
        ({"race_confidence": 1.0}, "race_confidence: expected a number between 0.5 and 1, found 1.0"),
        ({"race_tolerance": -1}, "race_tolerance: expected 0 or a positive number, found -1"),
        ({"finetune_rows": 0}, "finetune_rows: expected 1 or more, found 0"),
        ({"cache_memory": -1}, "cache_memory: expected 0 or more"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**values)


def test_candidates_are_values(files):
    first, second = (Evaluator(_supernet(), *files, CONFIG)(_architectures(1)[0]) for _ in range(2))
    assert isinstance(first, Candidate) and first.metrics == second.metrics and first.loss == second.loss
