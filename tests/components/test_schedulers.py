"""What each scheduler would be given: torchx's dry runs, without a cluster."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes import client
from torchx.runner import get_runner
from torchx.specs import AppDef

from components import nasrec

CONFIGS: dict[str, dict[str, Any]] = {
    "local_cwd": {},
    "local_docker": {},
    "slurm": {"partition": "gpu", "time": "10:00"},
    "kubernetes": {"queue": "default", "namespace": "ranking"},
    "kubernetes_mcad": {"namespace": "ranking"},
    "aws_batch": {"queue": "gpu", "image_repo": "registry/nasrec"},
    "ray": {"dashboard_address": "head:8265"},
}
ROOT = Path(__file__).resolve().parents[2]
MOUNT = "type=bind,src=/mnt/data,dst=/data,readonly"
APPS = {
    "prepare_data": lambda: nasrec.prepare_data("--source", "/raw", out="/data", dataset="criteo"),
    "train_supernet": lambda: nasrec.train_supernet(
        *("--epochs", "3"),
        data="/data",
        out="/out",
        j="2x4",
        cpu=8,
        gpu=4,
        retries=2,
        image="registry/nasrec:1",
    ),
    "search": lambda: nasrec.search(supernet="/s", data="/data", out="/out", j="1x2", workers=2, env={"A": "b"}),
    "report": lambda: nasrec.report(search="/s"),
    "train": lambda: nasrec.train(data="/data", out="/out", j="1x2", mounts=MOUNT.split(",")),
    "evaluate": lambda: nasrec.evaluate(model="/m", data="/data"),
    "export": lambda: nasrec.export(model="/m", out="/out"),
    "score": lambda: nasrec.score(package="/p", data="/data", out="/out"),
    "serve": lambda: nasrec.serve(package="/p", replicas=2),
}


def _request(app: AppDef, scheduler: str) -> Any:
    with get_runner() as runner:
        return runner.dryrun(app, scheduler, CONFIGS[scheduler])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scheduler", CONFIGS)
@pytest.mark.parametrize("name", APPS)
def test_every_scheduler_takes_every_component(name: str, scheduler: str):
    app = APPS[name]()
    if scheduler == "ray":
        pytest.importorskip("ray")
        del app.roles[1:]  # Ray refuses a search's own workers beside it
        app.roles[0].image = str(ROOT)  # it copies a folder to its hosts where others pull an image
    job = {"prepare_data": "prepare", "train_supernet": "supernet"}.get(name, name)
    request = str(_request(app, scheduler))
    assert "nasrec_torchrec" in request and job in request


def test_slurm_gets_a_valid_script():
    script = str(_request(APPS["train_supernet"](), "slurm")).partition("#----------------\n# SBATCH_SCRIPT\n")[2]
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    options = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert len(options) == 2  # two hosts
    for option in options:
        for wanted in ("--requeue", "--partition=gpu", "--cpus-per-task=8", "--gpus-per-task=4", "--mem=8192"):
            assert wanted in option
    assert "export TORCHX_MAX_RETRIES=2" in script
    assert "--nnodes 2 --nproc_per_node 4" in script and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in script


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kubernetes_gets_a_job_whose_pods_fit_the_schema():
    job = yaml.safe_load(str(_request(APPS["train_supernet"](), "kubernetes")))
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert job["spec"]["queue"] == "default" and job["spec"]["maxRetry"] == 2
    assert [task["replicas"] for task in job["spec"]["tasks"]] == [1, 1]
    api = client.ApiClient()
    for task in job["spec"]["tasks"]:
        # The client's classes know the fields of Kubernetes' OpenAPI document and check which are required; a field
        # that they do not know would be lost on the way.
        text = SimpleNamespace(data=json.dumps(task["template"]))
        template = api.deserialize(text, "V1PodTemplateSpec")
        assert api.sanitize_for_serialization(template) == task["template"]
        (container,) = template.spec.containers
        assert container.image == "registry/nasrec:1"
        assert container.resources.limits["nvidia.com/gpu"] == "4"
        assert "-m nasrec_torchrec supernet --data /data --out /out --epochs 3" in container.command[-1]


def test_environment_and_mounts_reach_containers():
    first, second = _request(APPS["search"](), "local_docker").request.containers
    for container in (first, second):
        assert container.kwargs["environment"]["A"] == "b"
        assert container.kwargs["environment"]["OMP_NUM_THREADS"] == "1"
    (container,) = _request(APPS["train"](), "local_docker").request.containers
    (mount,) = container.kwargs["mounts"]
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == ("/mnt/data", "/data", True)
