import pytest
import torch
from torch import nn

from nasrec_torchrec.datasets.names import check_distinct, check_name, safe_name
from nasrec_torchrec.datasets.schema import Schema


def test_every_name_can_be_a_module():
    modules = nn.ModuleDict()
    for name in [*dir(nn.ModuleDict()), "a.b", "a/b", "../x", "C:\\x", "日本", "with blank", "-"]:
        modules[safe_name(name)] = nn.Linear(1, 1)
        assert "/" not in safe_name(name) and "." not in safe_name(name)
    torch.save(modules.state_dict(), "/dev/null")


def test_ordinary_names_stay_as_they_are():
    for name in ("t_user", "user", "C1", "site domain", "größe"):
        assert safe_name(name) == name


def test_names_that_would_become_one_are_refused():
    with pytest.raises(ValueError, match=r"'a.b' and 'a/b' would both be named 'a_b'; rename one"):
        check_distinct(["a.b", "a/b"], "tables")
    text = "{label: y, sparse: [{name: items, ids: dictionary}, {name: b, ids: dictionary, table: items}]}"
    with pytest.raises(ValueError, match=r"'t_items' and 'items' would both be named 't_items'"):
        Schema.from_json(text)


@pytest.mark.parametrize("name", ["", " ", "//split", "x" * 201, "a\nb", "a\x00b", "\x1b[31mred", "\x85", "\udcff", 5])
def test_names_that_nothing_can_have(name):
    with pytest.raises(ValueError, match="column: "):
        check_name(name, "column")
