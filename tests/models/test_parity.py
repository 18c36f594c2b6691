"""Equal to the research code: outputs, every gradient and three training steps, in every clone.

The vectors in ``tests/golden`` were written by running the research code; ``tests/golden/generate.py`` says how.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.generate import inputs, weight
from support import make_ebc
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import (
    NASREC_FULL,
    NASREC_SMALL,
    PUBLISHED,
    Architecture,
    NASRecNet,
    SearchSpace,
    SuperNet,
    load_research_state_dict,
)
from nasrec_torchrec.modules.interaction_arch import InteractionArch

FOLDER = Path(__file__).resolve().parents[1] / "golden"
networks = pytest.mark.parametrize("name", PUBLISHED)
layernorm = pytest.mark.parametrize("use_layernorm", [False, True], ids=["layernorm_off", "layernorm_on"])
SPACES = {
    "full": SearchSpace(3, NASREC_FULL.dense_operators, NASREC_FULL.sparse_operators),
    "small": SearchSpace(3, NASREC_SMALL.dense_operators, NASREC_SMALL.sparse_operators),
}


@cache
def _vectors(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def _case(vectors: dict[str, Any], use_layernorm: bool) -> dict[str, Any]:
    return vectors["cases"]["layernorm_on" if use_layernorm else "layernorm_off"]


def _model(vectors: dict[str, Any], architecture: Architecture, use_layernorm: bool) -> NASRecNet:
    model = NASRecNet(make_ebc(vectors["sparse_features"]), vectors["dense_features"], architecture, use_layernorm)
    parameters = _case(vectors, use_layernorm)["parameters"]
    load_research_state_dict(model, {name: weight(name, tuple(shape)) for name, (shape, *_) in parameters.items()})
    return model


def _batch(vectors: dict[str, Any]) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    rows, sparse = vectors["rows"], vectors["sparse_features"]
    dense, ids, labels = inputs(rows, vectors["dense_features"], sparse)
    kjt = KeyedJaggedTensor(
        [f"f{i}" for i in range(sparse)], ids.t().flatten(), lengths=torch.ones(rows * sparse, dtype=torch.int64)
    )
    return dense.double(), kjt, labels.double()


def _summary(tensor: Tensor) -> list[float]:
    return [tensor.sum().item(), tensor.norm().item()]


def _research_names(model: NASRecNet, parameters: dict[str, list[Any]]) -> dict[int, str]:
    """The research code's name of each parameter, by the parameter's address: every tensor is filled with a number."""
    marked = NASRecNet(
        make_ebc(len(model.sparse_arch.feature_names)),
        model.interaction_arch.dense_in_features,
        model.interaction_arch.architecture,
        _uses_layernorm(parameters),
    )
    names = list(parameters)
    numbers = {name: torch.full(tuple(parameters[name][0]), float(index)) for index, name in enumerate(names)}
    load_research_state_dict(marked, numbers)
    ours = dict(model.named_parameters())
    return {
        id(ours[path]): names[int(parameter.flatten()[0])]
        for path, parameter in marked.named_parameters()
        if parameter.numel()
    }


def _uses_layernorm(parameters: dict[str, list[Any]]) -> bool:
    return any("layernorm" in name for name in parameters)


def _check_gradients(found: dict[str, list[Tensor]], expected: dict[str, list[float | None]]) -> None:
    """Sum and norm of each of the original's tensors, which may be kept in several pieces here."""
    for name, (total, norm) in expected.items():
        pieces = found.get(name, [])
        if total is None:
            assert not pieces, f"{name}: a gradient arrives here, none in the research code"
            continue
        assert pieces, f"{name}: no gradient arrives"
        ours = torch.cat([piece.flatten() for piece in pieces])
        tolerance = 1e-6 if name.startswith("_embedding.") else 1e-9  # TorchRec's collection hands on float32
        assert ours.norm().item() == pytest.approx(norm, rel=tolerance, abs=tolerance), name
        assert ours.sum().item() == pytest.approx(total, rel=tolerance, abs=tolerance * (1 + 10 * norm)), name


def _gradients(model: NASRecNet, names: dict[int, str]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            found.setdefault(names[id(parameter)], []).append(parameter.grad)
    return found


def test_there_are_vectors_of_every_published_network():
    assert sorted(file.stem for file in FOLDER.glob("*-*.json") if "num_blocks" in file.read_text()) == sorted(
        PUBLISHED
    )


@networks
def test_architectures_equal_the_published_files(name: str):
    assert Architecture.from_json(json.dumps(_vectors(name)["architecture"])) == PUBLISHED[name]


@networks
@layernorm
def test_outputs_equal_the_original(name: str, use_layernorm: bool):
    vectors = _vectors(name)
    case = _case(vectors, use_layernorm)
    model = _model(vectors, PUBLISHED[name], use_layernorm)
    dense, kjt, _ = _batch(vectors)
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    torch.testing.assert_close(model(dense.float(), kjt).flatten().double(), expected, rtol=0, atol=2e-5)
    outputs = []
    for block in model.interaction_arch.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    model.interaction_arch.double()
    torch.testing.assert_close(model(dense, kjt).flatten(), expected, rtol=0, atol=1e-9)
    for (dense_is_read, sparse_is_read), ours, theirs in zip(
        PUBLISHED[name].outputs_read()[1:], outputs, case["blocks"], strict=True
    ):
        if dense_is_read:  # what nobody reads is not computed here
            assert _summary(ours.dense) == pytest.approx(theirs[0], rel=1e-9, abs=1e-8)
        if sparse_is_read:
            tokens = torch.cat([part for part in ours[1:] if part is not None], dim=1)
            assert _summary(tokens) == pytest.approx(theirs[1], rel=1e-9, abs=1e-8)


@networks
@layernorm
def test_gradients_and_training_steps_equal_the_original(name: str, use_layernorm: bool):
    vectors = _vectors(name)
    case = _case(vectors, use_layernorm)
    model = _model(vectors, PUBLISHED[name], use_layernorm)
    names = _research_names(model, case["parameters"])
    model.interaction_arch.double()
    dense, kjt, labels = _batch(vectors)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.001, eps=1e-2)
    expected = case["training"]
    for step in range(3):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(dense, kjt), labels)
        loss.backward()
        assert loss.item() == pytest.approx(expected["losses"][step], rel=1e-5)
        if step == 0:
            _check_gradients(_gradients(model, names), {key: value[1:] for key, value in case["parameters"].items()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        assert norm.item() == pytest.approx(expected["gradient_norms"][step], rel=1e-5)
        optimizer.step()
    after = torch.tensor(expected["logits"], dtype=torch.float64)
    torch.testing.assert_close(model(dense, kjt).flatten(), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", SPACES)
@layernorm
def test_a_supernets_full_path_equals_the_original(space: str, use_layernorm: bool):
    vectors = _vectors(f"supernet-{space}")
    case = _case(vectors, use_layernorm)
    model = _model(vectors, SPACES[space].union(), use_layernorm)
    names = _research_names(model, case["parameters"])
    model.interaction_arch.double()
    dense, kjt, labels = _batch(vectors)
    logits = model(dense, kjt)
    torch.testing.assert_close(
        logits.flatten(), torch.tensor(case["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    _check_gradients(_gradients(model, names), {key: value[1:] for key, value in case["parameters"].items()})


def _copy_into_storage(storage: InteractionArch, whole: InteractionArch, architecture: Architecture) -> None:
    """Gives a supernet's storage the weights of the network that uses everything.

    Both have the same weights but for the binary operators: the research code combines the concatenations of all
    earlier outputs, so that every pair of operands has weights of its own; here all pairs of a block share them. What
    is copied is the part that belongs to the operands of one architecture.
    """
    theirs = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in storage.named_parameters():
            value = theirs[name]
            if ".sigmoid_gating." in name or ".sum." in name:
                index = int(name.split(".")[1])
                (operand,) = architecture.blocks[index].right_inputs
                assert architecture.blocks[index].left_inputs == (operand,)
                widths = [whole.dense_in_features] + [block.dense_width for block in whole.architecture.blocks]
                columns = slice(sum(widths[:operand]), sum(widths[: operand + 1]))
                if ".gate." in name:
                    parameter[: widths[operand]] = value[columns]
                    continue
                if name.endswith("project.weight"):
                    parameter[:, : widths[operand]] = value[:, columns]
                    continue
            parameter.copy_(value)


@pytest.mark.parametrize(
    ("space", "name"),
    [(space, name) for space in SPACES for name in _vectors(f"supernet-{space}")["subnets"]],
)
def test_subnets_of_a_supernet_equal_the_original(space: str, name: str):
    vectors = _vectors(f"supernet-{space}")
    expected = vectors["subnets"][name]
    document = expected["architecture"] | {"num_blocks": 3, "config": vectors["config"]}
    architecture = Architecture.from_json(json.dumps(document))
    whole = _model(vectors, SPACES[space].union(), False)
    supernet = SuperNet(make_ebc(vectors["sparse_features"]), vectors["dense_features"], SPACES[space], False)
    supernet.sparse_arch.load_state_dict(whole.sparse_arch.state_dict())
    _copy_into_storage(supernet.interaction_arch.storage, whole.interaction_arch, architecture)
    supernet.interaction_arch.double()
    supernet.set_architecture(architecture)
    dense, kjt, labels = _batch(vectors)
    logits = supernet(dense, kjt)
    torch.testing.assert_close(
        logits.flatten(), torch.tensor(expected["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    loss.backward()
    bags = supernet.sparse_arch.embedding_bag_collection.embedding_bags
    tables = {f"_embedding.{index}.weight": [bag.weight.grad] for index, bag in enumerate(bags.values())}
    _check_gradients(tables, {key: value for key, value in expected["gradients"].items() if key in tables})
    # A subnet's gradients have the subnet's size, the original's are zero elsewhere: their norms are equal in total.
    ours = torch.stack([view.grad.norm() for _, view in supernet.active_parameters() if view.grad is not None])
    theirs = [norm for key, (_, norm) in expected["gradients"].items() if key not in tables]
    assert ours.norm().item() == pytest.approx(torch.tensor(theirs, dtype=torch.float64).norm().item(), rel=1e-6)
