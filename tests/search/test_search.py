import json
from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_click_data, make_click_files, make_ebc, make_schema
from torch.nn import functional as F

from nasrec_torchrec import SearchSpace, SuperNet
from nasrec_torchrec.search.cost import Limits
from nasrec_torchrec.search.evaluator import Candidate, EvaluationConfig, Evaluator
from nasrec_torchrec.search.evolution import EvolutionConfig, evolve, num_mutations
from nasrec_torchrec.search.report import write_results
from nasrec_torchrec.training.metrics import ClickMetrics, evaluate
from nasrec_torchrec.training.schedules import cosine_with_warmup

_QUICK = EvaluationConfig(finetune_steps=0)


def _supernet() -> SuperNet:
    torch.manual_seed(0)
    schema = make_schema()
    ebc = make_ebc(4)
    ebc.embedding_bag_configs()[3].pooling = schema.tables()[3].pooling
    return SuperNet(ebc, 3, SMALL_SPACE)


def _score(architecture) -> Candidate:
    """Prefers wide blocks: a landscape with a known optimum."""
    loss = 1 - sum(block.dense_width + block.sparse_width for block in architecture.blocks) / 1000
    return Candidate(architecture, ClickMetrics(0.5, loss, 1.0, 10), 100 + int(loss * 10), 10, 0.0)


def test_evaluation_is_finetuning_of_the_extracted_models_last_layer():
    supernet = _supernet()
    data, held_out = make_click_data(make_schema(), 200), make_click_files(make_schema(), 150, seed=1)
    config = EvaluationConfig(finetune_steps=12, finetune_batch_size=32, chunk_size=64)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    evaluator = Evaluator(supernet, data, held_out.load(), config)
    for seed in range(5):
        architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(seed))
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
        assert candidate.metrics.log_loss == pytest.approx(expected.log_loss, rel=1e-4)
        assert candidate.metrics.auc == pytest.approx(expected.auc, abs=1e-4)
        assert candidate.parameters == sum(p.numel() for p in model.interaction_arch.parameters())
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), f"the evaluation changed {name}"


def test_evolution_evaluates_each_network_once_and_climbs():
    config = EvolutionConfig(population=20, generations=30, children=5, tournament=10)
    found = list(evolve(SMALL_SPACE, _score, config))
    assert len(found) == config.evaluations == 170
    assert len({candidate.architecture.canonical() for candidate in found}) == 170
    losses = [candidate.metrics.log_loss for candidate in found]
    random_losses = [
        _score(SMALL_SPACE.sample(torch.Generator().manual_seed(seed))).metrics.log_loss for seed in range(170)
    ]
    assert sum(losses[-20:]) / 20 < sum(random_losses) / 170 - 0.02


def test_the_same_seed_searches_the_same_way():
    config = EvolutionConfig(population=8, generations=4, children=3, tournament=4, seed=5)
    first, second = (list(evolve(SMALL_SPACE, _score, config)) for _ in range(2))
    assert [c.architecture for c in first] == [c.architecture for c in second]


def test_the_oldest_die():
    ages: list[float] = []

    def only_the_first_is_good(architecture) -> Candidate:
        ages.append(0.0 if not ages else 1.0 - 1e-4 * len(ages))
        return Candidate(architecture, ClickMetrics(0.5, ages[-1], 1.0, 10), 1, 1, 0.0)

    config = EvolutionConfig(population=4, generations=3, children=4, tournament=4)
    found = list(evolve(SMALL_SPACE, only_the_first_is_good, config))
    first = found[0].architecture
    assert any(a == b for child in found[4:8] for a, b in zip(child.architecture.blocks, first.blocks, strict=True))
    assert len(found) == 16


def test_limits_hold_for_every_candidate():
    evaluator = Evaluator(_supernet(), make_click_data(make_schema(), 50), make_click_data(make_schema(), 50), _QUICK)
    config = EvolutionConfig(population=10, generations=5, children=4, tournament=5)
    free = [evaluator.cost(SMALL_SPACE.sample(torch.Generator().manual_seed(seed))) for seed in range(30)]
    limits = Limits(2 * sorted(cost.multiply_adds for cost in free)[10], sorted(cost.parameters for cost in free)[12])

    def allowed(architecture) -> bool:
        cost = evaluator.cost(architecture)
        return limits.allow(cost.multiply_adds, cost.parameters)

    assert 0 < sum(limits.allow(cost.multiply_adds, cost.parameters) for cost in free) < 20
    found = list(evolve(SMALL_SPACE, evaluator, config, allowed))
    assert len(found) == 30 and limits.max_flops is not None and limits.max_parameters is not None
    assert max(2 * candidate.multiply_adds for candidate in found) <= limits.max_flops
    assert max(candidate.parameters for candidate in found) <= limits.max_parameters
    with pytest.raises(ValueError, match="2000 draws found no further architecture that is new and within the limits"):
        list(evolve(SMALL_SPACE, _score, config, lambda _: False))


def test_mutations_become_fewer():
    assert [num_mutations(generation, 240) for generation in (0, 120, 239)] == [6, 3, 1]
    assert num_mutations(0, 8) == 1


def test_impossible_searches_are_refused():
    tiny = SearchSpace(1, ("fully_connected",), ("attention",), (16,), (4,))
    with pytest.raises(ValueError, match="holds 4 architectures, the search wants"):
        list(evolve(tiny, _score, EvolutionConfig(population=4, generations=1, children=1, tournament=2)))
    with pytest.raises(ValueError, match="finetune_steps: expected 0 or more, found -1"):
        EvaluationConfig(finetune_steps=-1)
    with pytest.raises(ValueError, match="tournament: expected at most the population of 4, found 8"):
        EvolutionConfig(population=4, tournament=8)


def test_written_results_can_be_read_back(tmp_path: Path):
    candidates = [_score(SMALL_SPACE.sample(torch.Generator().manual_seed(seed))) for seed in range(9)]
    write_results(candidates, tmp_path, 9)
    write_results(candidates, tmp_path, 4)
    results = json.loads((tmp_path / "results.json").read_text())
    losses = [entry["log_loss"] for entry in results["best"]]
    assert losses == sorted(c.metrics.log_loss for c in candidates)[:4] and results["evaluated"] == 9
    files = sorted(path.name for path in (tmp_path / "architectures").iterdir())
    assert files == [f"rank-0{rank}.{kind}" for rank in range(1, 5) for kind in ("json", "svg")]
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))
