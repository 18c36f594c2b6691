"""The supernet is storage, the subnet is the model."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL_SPACE, make_ebc, make_kjt
from torch import fx
from torch.nn import functional as F

from nasrec_torchrec import NASREC_2026, NASREC_FULL, NASREC_SMALL, PUBLISHED, NASRecNet, SearchSpace, SuperNet
from nasrec_torchrec.search.sharing import SharedFeatures
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad


def _step(supernet: SuperNet, optimizer: ActiveSliceAdagrad, dense: torch.Tensor, kjt) -> None:
    optimizer.zero_grad()
    logits = supernet(dense, kjt)
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    optimizer.step()


# The published spaces with narrower outputs: comparing a whole supernet after every step costs what its size costs.
NARROW = {"dense_widths": (16, 32, 64, 128), "sparse_widths": (16, 32, 48)}


@pytest.mark.parametrize(
    "space",
    [
        replace(NASREC_FULL, **NARROW),
        replace(NASREC_SMALL, **NARROW),
        replace(NASREC_2026, num_blocks=4, dense_widths=(16, 36, 64), sparse_widths=(4, 8, 17)),
    ],
    ids=["full", "small", "2026"],
)
def test_subnets_equal_extracted_models_and_a_step_touches_only_their_slices(space: SearchSpace):
    supernet = SuperNet(make_ebc(26), 13, space)
    interaction = supernet.interaction_arch
    optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters, lr=0.1)
    dense, kjt = torch.randn(8, 13), make_kjt(26, 8)
    generator = torch.Generator().manual_seed(0)
    untouched = {name: parameter.detach().clone() for name, parameter in interaction.named_parameters()}
    for _ in range(100):
        architecture = space.sample(generator)
        supernet.set_architecture(architecture)
        with torch.no_grad():
            torch.testing.assert_close(
                supernet(dense, kjt), supernet.extract(architecture)(dense, kjt), rtol=0, atol=1e-6
            )
        _step(supernet, optimizer, dense, kjt)
        active = {id(stored): view for stored, view in interaction.active_parameters()}
        for name, parameter in interaction.named_parameters():
            before = untouched[name]
            view = active.get(id(parameter))
            if view is not None and view.grad is not None:
                prefix = tuple(slice(0, size) for size in view.shape)
                before[prefix] = parameter.detach()[prefix]
            assert torch.equal(before, parameter), f"{name} changed outside of the active slice"


@given(st.integers(0, 2**40), st.integers(0, 2), st.sampled_from(["any_operator_any_connection", "full"]))
def test_every_strategy_equals_its_extracted_model(seed, dense, strategy):
    space = SearchSpace(3, dense_widths=(16, 36, 128), sparse_widths=(4, 6, 9))  # 36 and 128 skip projections
    supernet = SuperNet(make_ebc(6), dense, space)
    architecture = space.sample(torch.Generator().manual_seed(seed), strategy)
    supernet.set_architecture(architecture)
    dense_x, kjt = torch.randn(3, dense), make_kjt(6, 3, max_length=2)
    torch.testing.assert_close(supernet(dense_x, kjt), supernet.extract(architecture)(dense_x, kjt), rtol=0, atol=1e-6)


@given(st.integers(0, 2**40), st.integers(0, 2), st.sampled_from(["single_operator_any_connection", "full"]))
def test_gradients_are_those_of_the_extracted_model(seed, dense, strategy):
    space = SearchSpace(3, dense_widths=(16, 36, 128), sparse_widths=(4, 6, 9))
    supernet = SuperNet(make_ebc(6), dense, space)
    architecture = space.sample(torch.Generator().manual_seed(seed), strategy)
    supernet.set_architecture(architecture)
    model = supernet.extract(architecture)
    dense_x, kjt = torch.randn(5, dense), make_kjt(6, 5, max_length=2)
    for network in (supernet, model):
        F.binary_cross_entropy_with_logits(network(dense_x, kjt), torch.ones(5, 1)).backward()
    found = [view.grad for _, view in supernet.interaction_arch.active_parameters()]
    expected = [parameter.grad for parameter in model.interaction_arch.parameters()]
    assert any(gradient is not None for gradient in found) and len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_active_slice_adagrad_is_adagrad_on_the_whole_supernet():
    torch.manual_seed(0)
    ours = SuperNet(make_ebc(4), 3, SMALL_SPACE)
    interaction = ours.interaction_arch
    reference = {name: p.detach().clone().requires_grad_() for name, p in interaction.named_parameters()}
    optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters, lr=0.1)
    whole = torch.optim.Adagrad(reference.values(), lr=0.1, eps=1e-2)
    dense, kjt = torch.randn(16, 3), make_kjt(4, 16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        ours.set_architecture(SMALL_SPACE.sample(generator))
        _step(ours, optimizer, dense, kjt)
        names = {id(parameter): name for name, parameter in interaction.named_parameters()}
        for parameter in reference.values():
            parameter.grad = torch.zeros_like(parameter)
        for stored, view in interaction.active_parameters():
            if view.grad is not None:
                reference[names[id(stored)]].grad[tuple(slice(0, s) for s in view.shape)] = view.grad
        whole.step()
    for name, parameter in interaction.named_parameters():
        torch.testing.assert_close(parameter, reference[name])


def test_gradients_have_the_size_of_the_subnet():
    supernet = SuperNet(make_ebc(26), 13, NASREC_FULL)
    supernet.set_architecture(PUBLISHED["criteo-full"])
    views = [view for _, view in supernet.interaction_arch.active_parameters()]
    stored = sum(parameter.numel() for parameter in supernet.interaction_arch.parameters())
    assert sum(view.numel() for view in views) < 0.05 * stored
    pointers = {p.untyped_storage().data_ptr() for p in supernet.interaction_arch.parameters()}
    assert all(view.untyped_storage().data_ptr() in pointers for view in views)


def test_views_follow_the_storage():
    supernet = SuperNet(make_ebc(4), 3, SMALL_SPACE)
    dense, kjt = torch.randn(2, 3), make_kjt(4, 2)
    before = supernet(dense, kjt)
    supernet.interaction_arch.double()
    torch.testing.assert_close(supernet(dense.double(), kjt).float(), before)
    state = {name: torch.zeros_like(value) for name, value in supernet.state_dict().items()}
    supernet.load_state_dict(state)
    assert not supernet(dense.double(), kjt).any()


def test_meta_storage_can_be_materialised():
    supernet = SuperNet(make_ebc(4, device="meta"), 3, SMALL_SPACE, dense_device=torch.device("meta"))
    assert all(parameter.is_meta for parameter in supernet.parameters())
    supernet.to_empty(device="cpu")
    for module in supernet.modules():
        if list(module.parameters(recurse=False)) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert supernet(torch.randn(2, 3), make_kjt(4, 2)).shape == (2, 1)


def test_architectures_of_another_space_are_refused():
    supernet = SuperNet(make_ebc(4), 3, SMALL_SPACE)
    with pytest.raises(ValueError, match="expected 3 choice blocks, found 7"):
        supernet.set_architecture(PUBLISHED["criteo-full"])
    wide = SearchSpace(3, dense_widths=(64,)).sample(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="block 0: dense_width: 64 not in this space"):
        supernet.extract(wide)


WIDTHS = replace(SMALL_SPACE, embedding_widths=(4, 8, 16, 32))


@pytest.mark.parametrize("interaction_dim", [8, 16, 32])
def test_a_path_reads_the_first_columns_of_each_table_as_the_extracted_model_does(interaction_dim):
    supernet = SuperNet(make_ebc(4, embedding_dim=32), 3, WIDTHS, interaction_dim=interaction_dim)
    optimizer = ActiveSliceAdagrad(
        supernet.interaction_arch.parameters(), supernet.interaction_arch.active_parameters, lr=0.1
    )
    dense, kjt = torch.randn(8, 3), make_kjt(4, 8, max_length=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        architecture = supernet.search_space.sample(generator)
        supernet.set_architecture(architecture)
        model = supernet.extract(architecture)
        widths = {c.name: c.embedding_dim for c in model.sparse_arch.embedding_bag_collection.embedding_bag_configs()}
        assert tuple(sorted(widths.items())) == architecture.embedding_widths
        torch.testing.assert_close(supernet(dense, kjt), model(dense, kjt), rtol=0, atol=1e-6)
        before = supernet.interaction_arch.storage.projection.project["t0"].weight.detach().clone()
        _step(supernet, optimizer, dense, kjt)
        after = supernet.interaction_arch.storage.projection.project["t0"].weight
        read = 0 if widths["t0"] == interaction_dim else widths["t0"]
        assert torch.equal(before[:, read:], after[:, read:])


def test_candidates_that_read_tables_at_other_widths_share_no_block_that_reads_them():
    supernet = SuperNet(make_ebc(4, embedding_dim=32), 3, WIDTHS, interaction_dim=16).eval()
    one = supernet.search_space.sample(torch.Generator().manual_seed(1))
    narrow = replace(one, embedding_widths=tuple((name, 4) for name, _ in one.embedding_widths))
    wide = replace(one, embedding_widths=tuple((name, 32) for name, _ in one.embedding_widths))
    subnets = [supernet.interaction_arch.subnet(architecture) for architecture in (wide, narrow)]
    dense, embedded = torch.randn(5, 3), supernet.sparse_arch(make_kjt(4, 5))
    with torch.no_grad():
        for subnet, features in zip(subnets, SharedFeatures(subnets)(dense, embedded), strict=True):
            torch.testing.assert_close(features, torch.cat(subnet.features(dense, embedded), dim=1))


def test_tables_that_lack_the_chosen_columns_are_refused():
    with pytest.raises(ValueError, match="table 't0': expected 16, the embedding dimension of the table, found 32"):
        SuperNet(make_ebc(4), 3, WIDTHS)
    architecture = WIDTHS.for_tables(["t0"]).sample(torch.Generator().manual_seed(0))
    for widths, message in (({"t0": 8}, "table 't0': expected 16"), ({"x": 16}, r"there is no table \['x'\]")):
        with pytest.raises(ValueError, match=message):
            NASRecNet(make_ebc(4), 3, replace(architecture, embedding_widths=widths))


def test_any_combination_of_widths_is_a_model_that_traces_and_learns():
    """All 64 combinations for three tables, with drawn blocks, in one supernet whose weights every step changes."""
    space = replace(WIDTHS, num_blocks=2, width_tables=("t0", "t1", "t2"))
    supernet = SuperNet(make_ebc(4, embedding_dim=32), 3, space, interaction_dim=16)
    optimizer = ActiveSliceAdagrad(supernet.interaction_arch.parameters(), supernet.active_parameters, lr=1e-3)
    dense, kjt = torch.randn(6, 3), make_kjt(4, 6, max_length=2)
    generator = torch.Generator().manual_seed(0)
    for widths in product(WIDTHS.embedding_widths, repeat=3):
        chosen = dict(zip(space.width_tables, widths, strict=True))
        architecture = replace(space.sample(generator), embedding_widths=chosen)
        supernet.set_architecture(architecture)
        model = supernet.extract(architecture)
        expected = supernet(dense, kjt)
        torch.testing.assert_close(model(dense, kjt), expected, rtol=0, atol=1e-5)
        traced = fx.symbolic_trace(model.interaction_arch)
        torch.testing.assert_close(traced(dense, model.sparse_arch(kjt)), expected, rtol=0, atol=1e-5)
        _step(supernet, optimizer, dense, kjt)
        logits = supernet(dense, kjt)
        assert torch.isfinite(logits).all() and not torch.equal(logits, expected)
        loss = F.binary_cross_entropy_with_logits(traced(dense, model.sparse_arch(kjt)), torch.ones_like(expected))
        loss.backward()
        tables = model.sparse_arch.embedding_bag_collection.embedding_bags
        assert all(tables[name].weight.grad.shape[1] == width for name, width in chosen.items())
