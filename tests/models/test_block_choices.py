"""What a block chooses beyond the paper: its activation, the norm after its linear layers, a residual."""

import json
import random
from dataclasses import replace

import pytest
import torch
from support import SMALL_SPACE, make_ebc, make_kjt
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nasrec_torchrec import NASREC_2026, REFERENCE, Architecture, NASRecNet, SearchSpace, SuperNet
from nasrec_torchrec.architecture import recorded
from nasrec_torchrec.drawing import to_dot, to_svg
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.modules.batch_norm import BatchNorm
from nasrec_torchrec.modules.choice_block import ChoiceBlock
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape
from nasrec_torchrec.modules.plain import fused
from nasrec_torchrec.modules.registry import OPERATORS
from nasrec_torchrec.modules.residual import Residual
from nasrec_torchrec.operator_kinds import KINDS
from nasrec_torchrec.search.cost import cost
from nasrec_torchrec.search.evolution import from_fronts
from nasrec_torchrec.search.limits import smallest
from nasrec_torchrec.search.race.surrogate import features, operators_of
from nasrec_torchrec.search.sharing import SharedFeatures
from nasrec_torchrec.search.study import parameters_of
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad
from nasrec_torchrec.training.path_statistics import PathStatistics

CHOICES = {"activations": ("relu", "prelu", "gelu"), "normalizations": ("none", "layer"), "residuals": True}
SPACE = replace(NASREC_2026, num_blocks=3, dense_widths=(16, 24, 36), sparse_widths=(4, 6, 9), **CHOICES)
SHAPE = BlockShape({"0": 5, "1": 11}, {"0": 5}, {"1": 11}, {"0": 6, "1": 3, "1_merged": 8}, 16)


def _sampled(count: int, space: SearchSpace = SPACE) -> list[Architecture]:
    generator = torch.Generator().manual_seed(0)
    return [space.sample(generator) for _ in range(count)]


def _inputs(rows: int) -> BlockInputs:
    sides = [[torch.randn(rows, width) for width in side.values()] for side in (SHAPE.dense, SHAPE.left, SHAPE.right)]
    return BlockInputs(*sides, [torch.randn(rows, width, 16) for width in SHAPE.tokens.values()])


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_applies_the_activation_of_its_block_if_it_ends_in_one(name):
    """What canonical forms rely on: the others do not depend on it."""
    inputs = _inputs(4)
    found = {}
    for activation in ("relu", "prelu", "gelu"):
        torch.manual_seed(0)
        operator = OPERATORS[name](replace(SHAPE, activation=activation), 7, False, shared=False, device=None)
        found[activation] = operator(inputs)
    same = [torch.equal(found["relu"], found[activation]) for activation in ("prelu", "gelu")]
    assert same == [not KINDS[name].activated] * 2
    if KINDS[name].activated:
        torch.testing.assert_close(torch.relu(found["prelu"]), found["relu"])
        assert (found["relu"] == 0).any() and (found["prelu"] != 0).all()


@pytest.mark.parametrize("width", (4, 11, 20))
def test_a_residual_adds_the_newest_inputs_cut_or_padded(width):
    plain = _sampled(1, replace(SPACE, activations=(), normalizations=(), residuals=False))[0].blocks[1]
    plain = replace(plain, dense_inputs=(0, 1), sparse_inputs=(0, 1), dense_to_sparse=True, sparse_to_dense=False)
    plain = replace(plain, dense_width=width, sparse_width=width)
    inputs = _inputs(4)
    blocks = []
    for block in (plain, replace(plain, residual=True)):
        torch.manual_seed(0)
        blocks.append(ChoiceBlock(block, SHAPE))
    (dense, tokens, _), (more_dense, more_tokens, merged) = (block(inputs) for block in blocks)

    def resized(values: Tensor) -> Tensor:
        return F.pad(values[:, :width].transpose(1, -1), (0, max(0, width - values.shape[1]))).transpose(1, -1)

    torch.testing.assert_close(more_dense, dense + resized(inputs.dense[1]))
    torch.testing.assert_close(more_tokens, tokens + resized(inputs.tokens[1]))  # not those of the merger
    torch.testing.assert_close(merged, blocks[1].dense_to_sparse(more_dense))
    assert not list(Residual(3, 4).parameters())


def test_a_norm_that_a_block_chooses_prevails_over_the_models():
    architecture = REFERENCE["finalnet"](3, 5, 16)
    block = replace(architecture.blocks[3], dense_operators=("fully_connected",))
    for chosen, use_layernorm in (("none", True), ("layer", False)):
        operator = ChoiceBlock(replace(block, normalization=chosen), replace(SHAPE, dense={"2": 5}), use_layernorm)
        layer = operator.dense_operators["fully_connected"]
        assert isinstance(layer.norm, nn.LayerNorm) == (chosen == "layer") == (layer.linear.bias is None)


def test_architectures_build_trace_cost_and_train_a_step():
    kjt, dense, seen = make_kjt(5, 4, max_length=3), torch.randn(4, 3), set()
    for number, architecture in enumerate(_sampled(30)):
        seen |= {(b.activation, b.normalization, b.residual) for b in architecture.blocks}
        SPACE.check(architecture)
        assert Architecture.from_json(architecture.to_json()) == architecture
        model = NASRecNet(make_ebc(5), 3, architecture, use_layernorm=number % 2 == 1)
        logits = model(dense, kjt)
        traced = fx.symbolic_trace(model.interaction_arch)
        torch.testing.assert_close(traced(dense, model.sparse_arch(kjt)), logits, rtol=1e-4, atol=1e-4)
        same = NASRecNet(make_ebc(5), 3, architecture.canonical())
        assert cost(architecture.canonical(), 3, 5, 16).parameters == sum(
            parameter.numel() for parameter in same.interaction_arch.parameters()
        )
        weight = model.interaction_arch.over_arch.bias.detach().clone()
        logits.sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert not torch.equal(weight, model.interaction_arch.over_arch.bias)
    assert len(seen) == 3 * 2 * 2, seen


def test_canonical_forms_compute_the_same():
    space = replace(SPACE, num_blocks=4)
    dense, tokens = torch.randn(3, 2), torch.randn(3, 4, 16)
    changed = 0
    for architecture in _sampled(12, space):
        models = []
        for form in (architecture, architecture.canonical()):
            models.append(NASRecNet(make_ebc(4), 2, form, use_layernorm=True).interaction_arch.eval())
        theirs = models[0].state_dict()
        models[1].load_state_dict(
            {
                name: theirs[name] if name in theirs and theirs[name].shape == value.shape else value
                for name, value in models[1].state_dict().items()
            }
        )
        torch.testing.assert_close(models[1](dense, tokens), models[0](dense, tokens))
        pairs = zip(architecture.blocks, architecture.canonical().blocks, strict=True)
        changed += any(one.activation != other.activation for one, other in pairs)
    assert changed > 2


def test_export_equals_eager():
    architecture = _sampled(1, replace(SPACE, num_blocks=2, activations=("prelu", "gelu")))[0]
    architecture = replace(architecture, blocks=tuple(replace(b, residual=True) for b in architecture.blocks))
    arch = NASRecNet(make_ebc(5), 3, architecture).interaction_arch.eval()
    batch = torch.export.Dim("batch", min=2)
    example = torch.randn(4, 3), torch.randn(4, 5, 16)
    program = torch.export.export(arch, example, dynamic_shapes=({0: batch}, {0: batch}))
    rows = torch.randn(9, 3), torch.randn(9, 5, 16)
    torch.testing.assert_close(program.module()(*rows), arch(*rows), rtol=1e-5, atol=1e-5)


def test_subnets_equal_extracted_models_and_a_step_touches_only_their_slices():
    supernet = SuperNet(make_ebc(5), 3, SPACE)
    interaction = supernet.interaction_arch
    # Without any LayerNorm, products of products grow too fast for a larger rate.
    optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters, lr=1e-3)
    dense, kjt = torch.randn(8, 3), make_kjt(5, 8)
    generator = torch.Generator().manual_seed(0)
    untouched = {name: parameter.detach().clone() for name, parameter in interaction.named_parameters()}
    strategies = ("single_operator_any_connection", "any_operator_any_connection", "full")
    for number in range(18):
        architecture = SPACE.sample(generator, strategies[0 if number < 12 else 1 + number % 2])
        supernet.set_architecture(architecture)
        with torch.no_grad():
            extracted = supernet.extract(architecture)(dense, kjt)
            assert extracted.isfinite().all()
            torch.testing.assert_close(supernet(dense, kjt), extracted, rtol=1e-6, atol=1e-6)
        optimizer.zero_grad()
        F.softplus(supernet(dense, kjt)).mean().backward()
        optimizer.step()
        active = {id(stored): view for stored, view in interaction.active_parameters()}
        for name, parameter in interaction.named_parameters():
            view = active.get(id(parameter))
            if view is not None and view.grad is not None:
                prefix = tuple(slice(0, size) for size in view.shape)
                untouched[name][prefix] = parameter.detach()[prefix]
            assert torch.equal(untouched[name], parameter), f"{name} changed outside of the active slice"
    names = dict(interaction.named_parameters())
    first = "storage.blocks.0.dense_operators.fully_connected"
    assert {f"{first}.{name}" for name in ("linear.bias", "norm.weight", "activation.weight")} <= set(names)


def test_candidates_share_the_blocks_that_agree_in_these_choices():
    supernet = SuperNet(make_ebc(5), 3, SPACE).eval()
    generator = torch.Generator().manual_seed(3)
    family = [SPACE.sample(generator)]
    while len(family) < 12:
        family.append(SPACE.mutate(family[-1], generator))
    subnets = [supernet.interaction_arch.subnet(architecture) for architecture in family]
    dense, embedded = torch.randn(5, 3), supernet.sparse_arch(make_kjt(5, 5))
    shared = SharedFeatures(subnets)
    assert shared.computed_share < 0.9
    with torch.no_grad():
        for subnet, found in zip(subnets, shared(dense, embedded), strict=True):
            assert torch.equal(found, torch.cat(subnet.features(dense, embedded), dim=1))


def test_the_choices_are_sampled_mutated_counted_and_told():
    plain = SearchSpace(1, ("fully_connected",), ("attention",), (16,), (4,))
    space = replace(plain, **CHOICES)
    assert space.cardinality == plain.cardinality * 3 * 2 * 2
    generator = torch.Generator().manual_seed(0)
    drawn = {space.sample(generator) for _ in range(1000)}
    assert len(drawn) == space.cardinality
    parent, changed = SPACE.sample(generator), set()
    for _ in range(200):
        child = SPACE.mutate(parent, generator)
        SPACE.check(child)
        pairs = list(zip(parent.blocks, child.blocks, strict=True))
        changed |= {name for one, other in pairs for name in vars(one) if getattr(one, name) != getattr(other, name)}
    assert {"activation", "normalization", "residual"} <= changed
    for architecture in smallest(space):
        space.check(architecture)
    values, distributions = parameters_of(parent, SPACE)
    assert values["block0.activation"] == parent.blocks[0].activation
    assert distributions["block0.normalization"].choices == ("none", "layer")
    fitted = SPACE.fitted(replace(SPACE, num_blocks=2).sample(generator))
    assert SPACE.fitted(fitted) == fitted
    known = replace(SPACE, num_blocks=9, sparse_widths=(1, 16), dense_widths=(64, 512))
    assert {block.normalization for block in known.fitted(REFERENCE["dcn-v2"](3, 5, 16)).blocks[:7]} == {"none"}


def test_spaces_without_the_choices_draw_what_they_drew():
    off = replace(SPACE, activations=(), normalizations=(), residuals=False)
    fixed = replace(off, activations=("gelu",), normalizations=("layer",))
    for seed in range(20):
        one, other = (space.sample(torch.Generator().manual_seed(seed)) for space in (off, fixed))
        assert {(b.activation, b.normalization) for b in other.blocks} == {("gelu", "layer")}
        same = tuple(replace(b, activation="relu", normalization=None) for b in other.blocks)
        assert replace(other, blocks=same) == one
        assert "activation" not in one.to_json() and "architecture/4" not in one.to_json()
        assert '"nasrec-torchrec/architecture/4"' in other.to_json()
        assert "residual" not in repr(recorded(one)) and "gelu" in repr(recorded(other))
    assert "activations" not in recorded(off) and recorded(fixed)["activations"] == ("gelu",)


def test_drawings_features_and_statistics_name_the_choices():
    plain = _sampled(1, replace(SPACE, activations=(), normalizations=(), residuals=False))[0]
    special = replace(
        plain,
        blocks=(replace(plain.blocks[0], activation="gelu", normalization="layer", residual=True), *plain.blocks[1:]),
    )
    for draw in (to_svg, to_dot):
        assert "GELU, LayerNorm, residual" in draw(special) and "residual" not in draw(plain)
    assert operators_of([plain]) == operators_of([plain, plain])
    names = operators_of([plain, special])
    assert set(names) - set(operators_of([plain])) == {"GELU", "LayerNorm", "residual"}
    assert len(features(plain, names)) == len(features(special, names))
    statistics = PathStatistics()
    for architecture in (plain, special):
        statistics.add(architecture)
    blocks = PathStatistics.from_json(json.loads(json.dumps(statistics.to_json()))).to_json()["blocks"]
    assert blocks[0]["special"] == {"GELU": 1, "LayerNorm": 1, "residual": 1} and "special" not in blocks[1]


def test_a_block_may_take_one_of_its_parents_choices():
    one, other = _sampled(2)

    class Member:
        def __init__(self, architecture: Architecture) -> None:
            self.architecture = architecture

    class Objective:
        @staticmethod
        def values(_: Member) -> tuple[float, float]:
            return 0.0, 0.0

    cross = from_fronts([Member(one), Member(other)], Objective, None, random.Random(0))
    children = [cross() for _ in range(30)]
    for child in children:
        SPACE.check(child)
        pairs = zip(one.blocks, other.blocks, strict=True)
        assert all(block in pair for block, pair in zip(child.blocks, pairs, strict=True))
    assert any(set(child.blocks) - set(one.blocks) and set(child.blocks) - set(other.blocks) for child in children)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, r"block 0: activation: expected one of \['relu', 'prelu', 'gelu'\], found 'tanh'"),
        ({"normalization": "group"}, r"block 0: normalization: expected one of .* found 'group'"),
        ({"residual": "yes"}, r"block 0: residual: expected true or false, found 'yes'"),
        ({"gate": 1}, r"block 0: unknown keys \['gate'\]; allowed are"),
    ],
)
def test_choices_that_do_not_exist_are_refused(change, message):
    document = json.loads(_sampled(1)[0].to_json())
    document["blocks"][0] |= change
    with pytest.raises(ValueError, match=message):
        Architecture.from_json(json.dumps(document))


def test_what_does_not_belong_together_is_refused():
    architecture = _sampled(1, replace(SMALL_SPACE, activations=("gelu",)))[0]
    with pytest.raises(ValueError, match=r"block 0: activation: gelu not in this space, it has \('relu',\)"):
        SMALL_SPACE.check(architecture)
    with pytest.raises(ValueError, match="block 0: the research code has no GELU"):
        architecture.to_published_json()
    document = json.loads(architecture.to_json()) | {"format": "nasrec-torchrec/architecture/3"}
    with pytest.raises(ValueError, match=r"block 0: activation: only architectures of the format '.*/4' have it"):
        Architecture.from_json(json.dumps(document))
    for arguments, message in (
        ({"activations": ("relu", "relu")}, "activations: expected distinct values"),
        ({"activations": ("tanh",)}, "activation: expected one of .* found 'tanh'"),
        ({"normalizations": ("instance",)}, "normalization: expected one of .* found 'instance'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMALL_SPACE, **arguments)


BATCH = replace(SPACE, normalizations=("none", "layer", "batch"))


def test_batch_norm_is_pytorchs_and_has_no_rows_of_its_own_to_fail_on():
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        rows = torch.randn(7, 5)
        torch.testing.assert_close(ours(rows), theirs(rows))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    tokens = torch.randn(4, 3, 5)
    torch.testing.assert_close(ours(tokens), theirs(tokens.flatten(0, 1)).view(4, 3, 5))
    before, one = ours.running_mean.clone(), torch.randn(1, 5)
    evaluated = ours(one)
    assert torch.equal(ours.train()(one), evaluated)  # one row has no variance
    ours.requires_grad_(False)
    assert torch.equal(ours(rows), ours.eval()(rows)) and torch.equal(ours.running_mean, before)


def test_architectures_with_batch_norm_build_trace_export_and_train_a_step():
    dense, kjt = torch.randn(6, 3), make_kjt(5, 6, max_length=3)
    for number, architecture in enumerate(_sampled(12, replace(BATCH, normalizations=("batch",)))):
        assert Architecture.from_json(architecture.to_json()) == architecture
        meta = torch.device("meta")
        assert NASRecNet(make_ebc(5, device="meta"), 3, architecture, dense_device=meta) is not None
        assert cost(architecture, 3, 5, 16).parameters > 0
        model = NASRecNet(make_ebc(5), 3, architecture)
        logits = model(dense, kjt)
        embedded = model.sparse_arch(kjt)
        torch.testing.assert_close(fx.symbolic_trace(model.interaction_arch)(dense, embedded), logits)
        logits.sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        arch = model.eval().interaction_arch
        with torch.no_grad():
            expected = arch(dense, embedded)
            for form in (fuse, fused):
                torch.testing.assert_close(form(arch)(dense, embedded), expected, rtol=1e-4, atol=1e-4)
        if number == 0:
            batch = torch.export.Dim("batch", min=2)
            program = torch.export.export(arch, (dense, embedded), dynamic_shapes=({0: batch}, {0: batch}))
            torch.testing.assert_close(program.module()(dense, embedded), expected, rtol=1e-5, atol=1e-5)


def test_a_supernet_refuses_batch_norm_and_says_why():
    with pytest.raises(
        ValueError, match=r"normalizations: expected none or layer in a supernet, found batch: the paths"
    ):
        SuperNet(make_ebc(5), 3, BATCH)
    assert "BatchNorm" in to_svg(_sampled(1, replace(BATCH, normalizations=("batch",)))[0])
