import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasrec_torchrec import NASREC_FULL, NASREC_SMALL, PUBLISHED, Architecture
from nasrec_torchrec.search_space import SearchSpace

STRATEGIES = (
    "single_operator_any_connection",
    "single_operator_single_connection",
    "any_operator_any_connection",
    "full",
)


@given(st.integers(0, 2**40), st.sampled_from([NASREC_FULL, NASREC_SMALL]), st.sampled_from(STRATEGIES))
def test_json_round_trips_in_both_formats(seed: int, space: SearchSpace, strategy):
    architecture = space.sample(torch.Generator().manual_seed(seed), strategy)
    for text in (architecture.to_json(), architecture.to_published_json()):
        again = Architecture.from_json(text)
        assert again == architecture and hash(again) == hash(architecture)


def test_published_format_needs_no_config_key():
    for architecture in PUBLISHED.values():
        document = json.loads(architecture.to_published_json())
        del document["config"], document["num_blocks"]
        assert Architecture.from_json(json.dumps(document)) == architecture


def test_order_and_repetition_of_inputs_carry_no_meaning():
    document = json.loads(PUBLISHED["criteo-small"].to_json())
    document["blocks"][3]["sparse_inputs"] = [2, 0, 2]
    assert Architecture.from_json(json.dumps(document)) == PUBLISHED["criteo-small"]


def test_outputs_that_the_logit_reads_are_part_of_an_architecture():
    blocks = PUBLISHED["criteo-small"].blocks
    same = Architecture(blocks, [7], (7, 7))
    assert same == PUBLISHED["criteo-small"] and "outputs" not in same.to_json()
    other = Architecture(blocks, (7, 2), ())
    again = Architecture.from_json(other.to_json())
    assert again == other != same and again.outputs == ((2, 7), ()) and hash(again) == hash(other)
    assert other.outputs_read()[2][0] and not other.outputs_read()[7][1]
    with pytest.raises(ValueError, match=r"reads the last block, found dense_outputs \(2, 7\), sparse_outputs \(\)"):
        other.to_published_json()
    # A program that knows nothing of outputs has to refuse the file, and outputs in a file of its format are a mistake.
    document = json.loads(other.to_json())
    assert document["format"].endswith("/2")
    for change, message in (
        ({"format": "nasrec-torchrec/architecture/1"}, "dense_outputs: only architectures of the format"),
        ({"dense_outputs": [8]}, r"dense_outputs: expected integers in 0..7, found \[8\]"),
        ({"sparse_outputs": "7"}, "sparse_outputs: expected a list of output indices, found '7'"),
        ({"dense_outputs": []}, "expected something to read for the final layer"),
    ):
        with pytest.raises(ValueError, match=message):
            Architecture.from_json(json.dumps(document | change))


def _ours(change):
    document = json.loads(PUBLISHED["criteo-full"].to_json())
    change(document["blocks"])
    return json.dumps(document)


def _theirs(change):
    document = json.loads(PUBLISHED["criteo-full"].to_published_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_ours(lambda b: b[2].update(dense_operators=["conv"])), r"block 2: .*unknown operator \['conv'\]; allowed"),
        (_ours(lambda b: b[3].update(dense_inputs=[5])), r"block 3: .*5 does not exist yet; block 3 may read 0..3"),
        (_ours(lambda b: b[1].pop("dense_width")), r"block 1: missing key 'dense_width'"),
        (_ours(lambda b: b[1].update(width=3)), r"block 1: unknown keys \['width'\]"),
        (_ours(lambda b: b[0].update(dense_width=0)), r"block 0: dense_width: expected a positive integer, found 0"),
        (_ours(lambda b: b[0].update(sparse_width=1.5)), r"block 0: sparse_width: .*found 1.5"),
        (_ours(lambda b: b[0].update(left_inputs=[])), r"block 0: left_inputs: .*found \[\]"),
        (_ours(lambda b: b[0].update(dense_inputs="0")), r"block 0: dense_inputs: .*found '0'"),
        (_ours(lambda b: b[0].update(dense_to_sparse="no")), r"block 0: dense_to_sparse: .*found 'no'"),
        (_ours(lambda b: b.clear()), r"at least one choice block"),
        (_theirs(lambda d: d["micro"][2].update(active_nodes=[0, 9])), r"block 2: .*unknown operator \[9\]"),
        (_theirs(lambda d: d["micro"][2].update(active_nodes=[0, 1])), r"block 2: sparse_operators: .*one or more"),
        (_theirs(lambda d: d["macro"][1].update(dense_idx=[2])), r"block 1: .*2 does not exist yet"),
        (_theirs(lambda d: d["macro"][1].pop("sparse_idx")), r"block 1: missing key 'sparse_idx'"),
        (_theirs(lambda d: d["micro"][0].update(dense_in_dims=0)), r"block 0: dense_width: .*found 0"),
        (_theirs(lambda d: d.pop("macro")), r"missing key 'macro'"),
        (_theirs(lambda d: d["macro"].pop()), r"found 7 micro blocks, 6 macro blocks"),
        (_theirs(lambda d: d.update(config="huge")), r"config: expected one of .*found 'huge'"),
        ("[]", "expected a JSON object, found list"),
        ("{", "not a JSON document"),
        ("{}", r"expected the key 'blocks'"),
    ],
)
def test_bad_json_is_one_clear_error(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Architecture.from_json(text)


def test_a_published_file_may_be_a_plain_choice_block_document():
    assert Architecture.from_json(json.dumps({"micro": [_MICRO], "macro": [_MACRO]})).blocks[0].dense_width == 16


_MICRO = {"active_nodes": [0, 2], "dense_in_dims": 16, "sparse_in_dims": 16, "dense_sparse_interact": 0, "deep_fm": 0}
_MACRO = {"dense_idx": [0], "sparse_idx": [0], "dense_left_idx": [0], "dense_right_idx": [0]}
