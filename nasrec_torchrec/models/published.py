"""The six architectures that the NASRec authors published, and a loader for weights from the research code.

The architectures come from the result files in https://github.com/facebookresearch/NasRec (Apache-2.0).
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nasrec_torchrec.architecture import Architecture, BlockArchitecture
from nasrec_torchrec.modules.linear import MultiSourceLinear

if TYPE_CHECKING:
    from nasrec_torchrec.models.nasrecnet import NASRecNet  # which looks names up here

FC, DP, SG, SUM = "fully_connected", "dot_product", "sigmoid_gating", "sum"
EFC, AT = "embedded_fully_connected", "attention"

# dense operator, dense width, sparse operator, sparse width, dense inputs, sparse inputs, left input, right input,
# dense-to-sparse merger, sparse-to-dense merger
_Row = tuple[str, int, str, int, tuple[int, ...], tuple[int, ...], int, int, int, int]


def _architecture(*rows: _Row) -> Architecture:
    return Architecture(
        tuple(
            BlockArchitecture((dense,), (sparse,), width, tokens, reads, looks, (left,), (right,), bool(ds), bool(sd))
            for dense, width, sparse, tokens, reads, looks, left, right, ds, sd in rows
        )
    )


PUBLISHED: dict[str, Architecture] = {
    "avazu-full": _architecture(
        (DP, 32, AT, 48, (0,), (0,), 0, 0, 1, 0),
        (DP, 768, EFC, 64, (0, 1), (0, 1), 0, 0, 1, 0),
        (FC, 512, EFC, 48, (0,), (0,), 0, 0, 1, 0),
        (SUM, 768, AT, 16, (0, 1, 2, 3), (3,), 1, 0, 1, 1),
        (DP, 768, EFC, 64, (2, 3, 4), (2,), 0, 3, 0, 0),
        (SG, 1024, EFC, 64, (0, 1, 2, 5), (0, 4), 0, 3, 1, 0),
        (SG, 768, AT, 16, (1, 2, 3, 5), (2, 3), 0, 2, 1, 0),
    ),
    "avazu-small": _architecture(
        (DP, 512, EFC, 64, (0,), (0,), 0, 0, 1, 0),
        (FC, 1024, EFC, 48, (0, 1), (0,), 0, 0, 1, 0),
        (FC, 512, EFC, 16, (0, 2), (0,), 1, 2, 0, 1),
        (DP, 768, EFC, 48, (3,), (0, 3), 2, 0, 1, 1),
        (FC, 128, EFC, 16, (0, 2, 3), (0, 1), 2, 3, 1, 1),
        (FC, 128, EFC, 64, (1, 3, 4), (0, 1, 3), 0, 3, 1, 0),
        (FC, 512, EFC, 32, (5,), (1, 2, 6), 0, 1, 1, 1),
    ),
    "criteo-full": _architecture(
        (SG, 128, AT, 64, (0,), (0,), 0, 0, 1, 0),
        (DP, 32, EFC, 64, (0,), (0,), 0, 1, 0, 0),
        (DP, 768, EFC, 32, (1, 2), (0, 1, 2), 1, 2, 0, 1),
        (SG, 768, EFC, 48, (0, 3), (0, 1, 2, 3), 2, 0, 1, 0),
        (FC, 16, EFC, 16, (0, 2, 3, 4), (0, 1, 2, 3), 3, 1, 0, 1),
        (FC, 768, AT, 16, (0, 3, 4, 5), (1, 4), 2, 3, 1, 0),
        (FC, 128, AT, 48, (0, 2, 3), (1, 3), 6, 1, 0, 1),
    ),
    "criteo-small": _architecture(
        (FC, 256, EFC, 48, (0,), (0,), 0, 0, 1, 0),
        (DP, 1024, EFC, 48, (1,), (0, 1), 1, 0, 1, 1),
        (FC, 128, EFC, 16, (0, 2), (0, 1, 2), 0, 0, 1, 0),
        (FC, 16, EFC, 48, (2,), (0, 2), 1, 2, 0, 1),
        (DP, 128, EFC, 32, (0, 2, 3, 4), (2, 4), 2, 0, 0, 0),
        (FC, 16, EFC, 64, (0, 1, 2, 5), (1, 2, 5), 3, 5, 1, 0),
        (FC, 1024, EFC, 64, (0, 3, 5), (0, 1, 2, 5), 0, 5, 0, 0),
    ),
    "kdd-full": _architecture(
        (DP, 128, AT, 48, (0,), (0,), 0, 0, 1, 0),
        (SG, 768, AT, 64, (1,), (1,), 0, 0, 1, 0),
        (SG, 16, EFC, 48, (1,), (1, 2), 1, 0, 0, 0),
        (SUM, 64, AT, 16, (0, 2, 3), (1,), 2, 2, 1, 0),
        (SUM, 64, EFC, 48, (0, 1, 2, 4), (0, 2), 0, 2, 0, 0),
        (FC, 128, EFC, 32, (3, 4), (0, 1, 4, 5), 4, 2, 0, 1),
        (SG, 768, EFC, 16, (1, 3, 5, 6), (1, 3, 4, 5), 5, 5, 1, 0),
    ),
    "kdd-small": _architecture(
        (FC, 768, EFC, 48, (0,), (0,), 0, 0, 1, 1),
        (DP, 128, EFC, 64, (0, 1), (0, 1), 0, 1, 1, 0),
        (DP, 32, EFC, 48, (0, 1, 2), (0, 1), 0, 2, 1, 1),
        (FC, 256, EFC, 64, (0, 1, 2, 3), (0, 2, 3), 1, 2, 0, 0),
        (FC, 1024, EFC, 64, (3, 4), (0, 1, 2, 4), 0, 2, 0, 0),
        (DP, 768, EFC, 64, (1, 2, 5), (4, 5), 4, 5, 0, 0),
        (DP, 1024, EFC, 48, (2, 3, 4, 6), (0, 1, 2, 4), 0, 2, 1, 0),
    ),
}

# For each module of a choice block there, the module here. Nodes are numbered as in NASRec-Full; in Small, EFC is 2.
_NODES = {"full": (FC, DP, SG, SUM, AT, EFC), "small": (FC, DP, EFC)}
_PARTS: dict[str, dict[str, str]] = {
    FC: {"_linear": "linear", "_layernorm": "norm"},
    DP: {
        "_dense_proj": "project_dense",
        "_dense_layernorm": "dense_norm",
        "_sparse_inp_proj": "project_tokens",
        "_sparse_inp_proj_layernorm": "tokens_norm",
        "_linear_proj": "project",
        "_linear_layernorm": "norm",
    },
    SG: {"_left_self_linear._linear": "gate", "_linear_proj": "project", "_layernorm": "norm"},
    SUM: {"_linear_proj": "project", "_layernorm": "norm"},
    AT: {
        "_linear_proj": "linear",
        "_proj_ln": "tokens_norm",
        "_mha.in_proj": "project_qkv",
        "_mha.out_proj": "project_heads",
        "_attn_ln": "attention_norm",
        "attn_fc1": "expand",
        "attn_fc2": "contract",
        "_attn_fc_ln": "output_norm",
    },
    EFC: {"_linear": "linear", "_layernorm": "norm"},
    "dense_to_sparse": {"project_emb_dim": "project", "project_emb_dim_layernorm": "norm"},
    "sparse_to_dense": {"deep_fm._linear_proj": "project", "deep_fm._linear_layernorm": "norm"},
}


def load_research_state_dict(model: "NASRecNet", state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state dict of the research code.

    Table i of the research code is loaded into the i-th table of the model's embedding collection.

    Args:
        model: A model with the same architecture that is not sharded.
        state_dict: Tensors by their names in the research code, such as
            ``_blocks.0._nodes.1._linear_proj.weight``.

    Raises:
        ValueError: If a weight is missing, has no counterpart, or has a different shape.
    """
    names = {name.split(".")[3] for name in state_dict if "._nodes." in name}
    space = "full" if names & {"3", "4", "5"} else "small"
    modules = dict(model.named_modules())
    tables = [config.name for config in model.sparse_arch.embedding_bag_collection.embedding_bag_configs()]
    loaded: set[nn.Parameter] = set()
    for name, value in state_dict.items():
        path, attribute = _translate(name, space, tables)
        module = modules.get(path)
        if module is None or isinstance(module, nn.Identity):
            if re.search(r"deep_fm\._linear_layernorm\.", name):
                continue  # without a projection, the research code keeps this LayerNorm but does not use it
            raise ValueError(f"{name}: the model has no such weight; does it have the same architecture?")
        if path.endswith(".gate") and attribute == "weight":
            # The weight is square there, but the columns beyond the left operand are only multiplied by padding.
            value = value[:, : sum(module.in_features.values())]
        loaded |= _copy(module, attribute, value, name)
    missing = [name for name, parameter in model.named_parameters() if parameter not in loaded]
    if missing:
        raise ValueError(f"no weights found for {missing}")


def _translate(name: str, space: str, tables: list[str]) -> tuple[str, str]:
    """Translates a name of the research code to the path of a module here and the name of its parameter."""
    name = re.sub(r"\.in_proj_(weight|bias)$", r".in_proj.\1", name)
    stem, _, attribute = name.rpartition(".")
    if match := re.fullmatch(r"_embedding\.(\d+)", stem):
        number = int(match[1])
        if number < len(tables):
            return f"sparse_arch.embedding_bag_collection.embedding_bags.{tables[number]}", attribute
    if stem == "_final":
        return "interaction_arch.over_arch", attribute
    if match := re.fullmatch(r"_blocks\.(\d+)\.(?:_nodes\.(\d+)\.)?(.+)", stem):
        block = f"interaction_arch.blocks.{match[1]}"
        if match[2] is None:
            for merger in ("dense_to_sparse", "sparse_to_dense"):
                if match[3] in _PARTS[merger]:
                    return f"{block}.{merger}.{_PARTS[merger][match[3]]}", attribute
        elif int(match[2]) < len(_NODES[space]):
            operator = _NODES[space][int(match[2])]
            side = "sparse" if operator in (EFC, AT) else "dense"
            if match[3] in _PARTS[operator]:
                return f"{block}.{side}_operators.{operator}.{_PARTS[operator][match[3]]}", attribute
    raise ValueError(f"{name}: not a weight of the research code, as far as this model's tables and operators go")


@torch.no_grad()
def _copy(module: nn.Module, attribute: str, value: Tensor, name: str) -> set[nn.Parameter]:
    """Copies one tensor, split if the module has one weight per source, and returns the parameters it filled."""
    targets: list[nn.Parameter]
    if attribute == "weight" and isinstance(module, MultiSourceLinear):
        targets = [module.weight(source) for source in module.in_features]
    else:
        targets = [getattr(module, attribute)]
    expected = (*targets[0].shape[:-1], sum(target.shape[-1] for target in targets))
    if tuple(value.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, found {tuple(value.shape)}")
    for target, piece in zip(targets, value.split([t.shape[-1] for t in targets], dim=-1), strict=True):
        target.copy_(piece)
    return set(targets)
