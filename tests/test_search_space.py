from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL_SPACE

from nasrec_torchrec import NASREC_2026, NASREC_FULL, NASREC_SMALL, PUBLISHED, Architecture, SearchSpace


def test_published_architectures_lie_in_their_space():
    for name, architecture in PUBLISHED.items():
        (NASREC_FULL if name.endswith("full") else NASREC_SMALL).check(architecture)


@given(st.integers(0, 2**40))
def test_sampling_keeps_to_its_strategy(seed: int):
    def draw(strategy):
        return NASREC_FULL.sample(torch.Generator().manual_seed(seed), strategy)

    for block in draw("single_operator_any_connection").blocks:
        assert len(block.dense_operators) == len(block.sparse_operators) == 1
        assert 1 <= len(block.dense_inputs) <= 4 and 1 <= len(block.sparse_inputs) <= 4
    for block in draw("single_operator_single_connection").blocks:
        assert len(block.dense_inputs) == len(block.sparse_inputs) == 1
    for index, block in enumerate(draw("full").blocks):
        assert block.dense_operators == tuple(sorted(NASREC_FULL.dense_operators))
        assert block.dense_inputs == block.sparse_inputs == tuple(range(index + 1))
        assert block.dense_width == 1024 and block.sparse_width == 64
        assert block.dense_to_sparse and block.sparse_to_dense
    assert draw("single_operator_any_connection") == draw("single_operator_any_connection")
    NASREC_FULL.check(draw("any_operator_any_connection"))


def test_any_operator_draws_several_operators_and_connections_are_binomial():
    generator = torch.Generator().manual_seed(0)
    drawn = [NASREC_FULL.sample(generator, "any_operator_any_connection") for _ in range(300)]
    counts = [len(architecture.blocks[0].dense_operators) for architecture in drawn]
    assert sum(counts) / 300 == pytest.approx(1 + 3 / 2, abs=0.2)
    inputs = [len(architecture.blocks[6].dense_inputs) for architecture in drawn]
    assert sum(inputs) / 300 == pytest.approx(1 + 3 / 2, abs=0.2)


@given(st.integers(0, 2**40))
def test_a_mutation_changes_one_field_of_one_block_and_stays_in_the_space(seed: int):
    generator = torch.Generator().manual_seed(seed)
    parent = SMALL_SPACE.sample(generator)
    child = SMALL_SPACE.mutate(parent, generator)
    SMALL_SPACE.check(child)
    changed = [
        (index, name)
        for index, (old, new) in enumerate(zip(parent.blocks, child.blocks, strict=True))
        for name in vars(old)
        if getattr(old, name) != getattr(new, name)
    ]
    assert len(changed) == 1


def test_cardinality_counts_what_sampling_reaches():
    space = SearchSpace(2, ("fully_connected",), ("attention",), (16,), (4,), max_inputs=2)
    reached = {space.sample(torch.Generator().manual_seed(seed)) for seed in range(20_000)}
    # per block 2 x 2 mergers; block 1 reads one of 3 subsets on each side, one of 2 operands on each
    assert space.cardinality == 4 * 4 * 3 * 3 * 2 * 2 == len(reached)


def test_cardinality_counts_the_outputs_that_sampling_reaches():
    space = SearchSpace(2, ("fully_connected",), ("attention",), (16,), (4,), max_inputs=1, outputs="any")
    reached = {space.sample(torch.Generator().manual_seed(seed)) for seed in range(20_000)}
    # As above with one of 2 inputs on each side. The logit reads 1 of 2 dense outputs and at most 1 of 2 sparse ones.
    assert space.cardinality == 4 * 4 * 2 * 2 * 2 * 2 * 2 * 3 == len(reached)


@given(st.integers(0, 2**40))
def test_outputs_are_drawn_and_mutated_where_the_space_has_a_choice(seed: int):
    generator = torch.Generator().manual_seed(seed)
    parent = NASREC_2026.sample(generator)
    NASREC_2026.check(parent)
    changed = set()
    for _ in range(60):
        child = NASREC_2026.mutate(parent, generator)
        NASREC_2026.check(child)
        names = {name for name in vars(parent) if getattr(parent, name) != getattr(child, name)}
        assert len(names) == 1
        changed |= names
    assert "blocks" in changed and changed & {"dense_outputs", "sparse_outputs"}
    assert parent.canonical().outputs == parent.outputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks: expected a positive integer, found 0"),
        ({"dense_widths": ()}, "dense_widths: expected one or more"),
        ({"dense_widths": (0,)}, "dense_width: expected a positive integer, found 0"),
        ({"sparse_operators": ("conv",)}, r"unknown operator \['conv'\]"),
        ({"outputs": "all"}, r"outputs: expected one of \['last', 'any'\], found 'all'"),
    ],
)
def test_bad_spaces_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**arguments)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="strategy: expected one of"):
        NASREC_FULL.sample(strategy="fastest")
    with pytest.raises(ValueError, match="expected 3 choice blocks, found 7"):
        SMALL_SPACE.check(PUBLISHED["criteo-full"])
    one = SearchSpace(1, ("fully_connected",), ("attention",), (16,), (4,))
    assert one.cardinality == 4


@given(st.integers(0, 2**40))
def test_canonical_forms_drop_only_what_cannot_matter(seed: int):
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(seed))
    canonical = architecture.canonical()
    assert canonical.canonical() == canonical
    assert canonical.outputs_read()[-1] == (True, True)
    last = architecture.blocks[-1]
    assert canonical.blocks[-1].dense_width == last.dense_width
    if not {"sigmoid_gating", "sum"} & set(last.dense_operators):
        assert canonical.blocks[-1].left_inputs == (0,)


def test_widths_of_tables_are_a_choice_that_changes_nothing_where_it_is_off():
    space = replace(NASREC_SMALL, embedding_widths=(4, 8))
    with pytest.raises(ValueError, match="does not know the tables yet"):
        space.sample(torch.Generator().manual_seed(0))
    known = space.for_tables(["a", "b"])
    assert known.cardinality == NASREC_SMALL.cardinality * 4
    parent = known.sample(torch.Generator().manual_seed(0))
    plain = NASREC_SMALL.sample(torch.Generator().manual_seed(0))
    assert replace(parent, embedding_widths=()) == plain
    assert (
        Architecture.from_json(parent.to_json()) == parent == replace(parent, embedding_widths=parent.embedding_widths)
    )
    assert '"nasrec-torchrec/architecture/3"' in parent.to_json() and "widths" not in plain.to_json()
    generator = torch.Generator().manual_seed(1)
    children = [known.mutate(parent, generator) for _ in range(60)]
    assert any(child.embedding_widths != parent.embedding_widths for child in children)
    for child in children:
        known.check(child)
    assert dict(known.fitted(plain).embedding_widths) == {"a": 8, "b": 8}


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), r"chooses the width of the tables \['a', 'b'\], found those of \[\]"),
        ((("a", 4), ("b", 32)), "table 'b': 32 not in this space"),
        ((("a", 4), ("b", 0)), "table 'b': expected a positive integer, found 0"),
        ("wide", "expected the width of each table by its name, found 'wide'"),
    ],
)
def test_widths_of_another_space_are_refused(widths, message):
    space = replace(NASREC_SMALL, embedding_widths=(4, 8)).for_tables(["a", "b"])
    parent = space.sample(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        space.check(replace(parent, embedding_widths=widths))


def test_widths_that_tables_cannot_have_are_refused():
    with pytest.raises(ValueError, match="embedding_widths: expected a positive multiple of 4"):
        replace(NASREC_SMALL, embedding_widths=(4, 6))
    with pytest.raises(ValueError, match="width_tables: expected none without embedding_widths"):
        replace(NASREC_SMALL, width_tables=("a",))
