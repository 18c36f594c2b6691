import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.specs.finder import get_component

from components import nasrec

_COMPONENTS = ["prepare_data", "train_supernet", "search", "report", "train", "evaluate", "export", "score", "serve"]


class NasrecComponentsTest(ComponentTestCase):
    def test_every_component_is_valid(self) -> None:
        for name in _COMPONENTS:
            self.validate(nasrec, name)


def test_ranks_and_flags_reach_the_program():
    app = nasrec.train_supernet("--epochs", "3", data="d", out="o", j="2x4", gpu=4, retries=2)
    (role,) = app.roles
    assert role.num_replicas == 2 and role.max_retries == 2 and role.resource.gpu == 4
    command = " ".join(role.args)
    assert "--nproc_per_node 4" in command and "-m nasrec_torchrec supernet --data d --out o --epochs 3" in command
    assert role.env["OMP_NUM_THREADS"] == "1" and role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert role.env["PET_MAX_RESTARTS"] == "2"


def test_programs_of_one_process_get_their_flags():
    (role,) = nasrec.report("--plugins", "[a]", search="s").roles
    assert role.args == ["-m", "nasrec_torchrec", "report", "--search", "s", "--plugins", "[a]"]
    assert role.num_replicas == 1
    (role,) = nasrec.prepare_data("--source", "s", out="o", dataset="criteo").roles
    assert role.args == ["-m", "nasrec_torchrec", "prepare", "criteo", "--out", "o", "--source", "s"]


def test_workers_of_a_search_are_groups_of_ranks():
    roles = nasrec.search("--top_k", "2", supernet="s", data="d", out="o", j="1x2", workers=3).roles
    assert len({role.name for role in roles}) == 3 and len({" ".join(role.args) for role in roles}) == 1
    command = " ".join(roles[0].args)
    assert (
        "--nproc_per_node 2" in command
        and "-m nasrec_torchrec search --supernet s --data d --out o --top_k 2" in command
    )
    with pytest.raises(ValueError, match="workers: expected 1 with groups of several hosts, found 2 with j 2x4"):
        nasrec.search(supernet="s", data="d", out="o", j="2x4", workers=2)


def test_servers_are_replicas_that_come_back():
    (role,) = nasrec.serve("--threads", "2", package="p", port=80, replicas=3).roles
    flags = ["--package", "p", "--host", "0.0.0.0", "--port", "80", "--threads", "2"]
    assert role.args == ["-m", "nasrec_torchrec", "serve", *flags]
    assert (role.num_replicas, role.max_retries, role.port_map) == (3, 3, {"http": 80})


def test_components_are_found_by_entry_point_beside_torchx_own():
    assert get_component("nasrec.train").name == "nasrec.train"
    assert get_component("dist.ddp").name == "dist.ddp"
    assert get_component("utils.python").name == "utils.python"
