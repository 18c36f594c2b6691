"""An operator of a user: the cross layer of DCN-V2 (arXiv 2008.13535, equation 1), read by a module of its own."""

import json
import sys
from pathlib import Path

import pytest
import torch
from support import make_ebc, make_kjt, prepare_clicks, run_process

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "docs" / "cross_layer.py").read_text()
sys.path.insert(0, str(ROOT / "docs"))
import cross_layer  # noqa: E402  registers the operator

from nasrec_torchrec import Architecture, NASRecNet, SearchSpace, SuperNet  # noqa: E402
from nasrec_torchrec.drawing import to_svg  # noqa: E402
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Operator  # noqa: E402
from nasrec_torchrec.modules.registry import register_operator  # noqa: E402
from nasrec_torchrec.search.cost import cost  # noqa: E402

SPACE = SearchSpace(
    num_blocks=3,
    dense_operators=("fully_connected", "cross"),
    dense_widths=(16, 24, 32),
    sparse_widths=(4, 9),
    max_inputs=2,
)


def test_it_computes_the_cross_layer():
    layer = cross_layer.Cross(BlockShape({}, {"0": 5}, {"1": 5}, {}, 16), width=5)
    left, right = torch.rand(7, 5), torch.rand(7, 5)
    weight, bias = layer.weigh.weight("1"), layer.weigh.bias
    expected = left * (right @ weight.T + bias) + right
    torch.testing.assert_close(layer(BlockInputs([], [left], [right], [])), expected)


def test_subnets_with_it_are_the_models_that_are_extracted():
    supernet = SuperNet(make_ebc(4), 3, SPACE).eval()
    dense, sparse = torch.rand(6, 3), make_kjt(4, 6)
    crossed = 0
    for seed in range(20):
        architecture = SPACE.sample(torch.Generator().manual_seed(seed))
        supernet.set_architecture(architecture)
        with torch.no_grad():
            expected = supernet(dense, sparse)
            torch.testing.assert_close(supernet.extract(architecture).eval()(dense, sparse), expected)
        crossed += any("cross" in block.dense_operators for block in architecture.blocks)
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert ("CN · " in to_svg(architecture)) == any("cross" in b.dense_operators for b in architecture.blocks)
        model = NASRecNet(make_ebc(4), 3, architecture)
        torch.nn.functional.softplus(model(dense, sparse)).sum().backward()
        assert cost(architecture, 3, 4, 16).parameters == sum(p.numel() for p in model.interaction_arch.parameters())
    assert crossed > 5


def test_what_it_does_not_read_does_not_tell_architectures_apart():
    architecture = SPACE.sample(torch.Generator().manual_seed(0))
    blocks = [json.loads(architecture.to_json())["blocks"][0] | {"dense_operators": ["cross"]}] * 2
    blocks[1] = blocks[1] | {"dense_inputs": [1]}
    other = [blocks[0], blocks[1] | {"dense_inputs": [0]}]
    one, two = (Architecture.from_json(json.dumps({"blocks": b})) for b in (blocks, other))
    assert one != two and one.canonical() == two.canonical()
    with pytest.raises(ValueError, match="the research code has no operator \\['cross'\\]"):
        one.to_published_json()


@pytest.mark.parametrize(
    ("name", "side", "reads", "message"),
    [
        ("sum", "dense", ["operands"], "operator 'sum': the name is taken by nasrec_torchrec.modules.dense_sum"),
        ("a b", "dense", ["dense"], "operator 'a b': expected a Python identifier"),
        ("values", "dense", ["dense"], "operator 'values': expected a Python identifier that is no method"),
        ("mine", "wide", ["dense"], "operator 'mine': expected a side of .* found 'wide'"),
        ("mine", "dense", ["labels"], "that reads \\['labels'\\]"),
        ("mine", "sparse", ["dense"], "operator 'mine': a sparse operator reads tokens"),
    ],
)
def test_registrations_that_make_no_sense(name, side, reads, message):
    with pytest.raises(ValueError, match=message):

        @register_operator(name, side, reads)
        class Mine(Operator):
            pass


@pytest.mark.slow
def test_the_programs_take_a_space_with_it_from_a_file(tmp_path: Path):
    prepare_clicks(tmp_path / "data")
    (tmp_path / "cross_layer.py").write_text(SOURCE)
    (tmp_path / "space.yaml").write_text((ROOT / "docs" / "space.yaml").read_text())

    def app(name: str, *arguments: object, expected: int = 0) -> str:
        # A process of its own, where nothing has registered the operator.
        done = run_process("-m", f"apps.{name}", *arguments, folder=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == expected, done.stderr[-3000:]
        return done.stderr

    fast = ["--batch_size", 40, "--full_path_steps", 0, "--data", "data"]
    app("train_supernet", "--config", "space.yaml", *fast, "--out", "supernet")
    found = json.loads(next((tmp_path / "supernet" / "checkpoints").glob("*/model.json")).read_text())
    assert found["schema"]["embedding_dim"] == 8 and "cross" in found["interaction"]["dense_operators"]
    search = ["--supernet", "supernet", "--data", "data", "--out", "search", "--finetune_steps", 2]
    search += ["--population", 4, "--generations", 1, "--children", 2, "--tournament", 2, "--top_k", 1]
    error = app("search", *search, expected=2)
    assert "unknown operator ['cross']" in error and "--plugins" in error
    app("search", "--plugins", '["cross_layer"]', *search)
    assert (tmp_path / "search" / "architectures" / "rank-01.json").exists()
    error = app("search", "--plugins", '["absent_module"]', *search, expected=2)
    assert "plugins: the module 'absent_module' cannot be imported" in error
