"""The resources of Kubernetes in the pages are what their operators read: nothing is misspelt or in the wrong place."""

import re
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as trainer
import pytest
import yaml

from nasrec_torchrec.cli.main import JOBS

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODELS = {"TrainJob": trainer.TrainerV1alpha1TrainJob, "TrainingRuntime": trainer.TrainerV1alpha1TrainingRuntime}


def resources(page: str) -> list[dict[str, Any]]:
    """Returns the resources of Kubernetes that a page shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    found = [document for block in blocks for document in yaml.safe_load_all(block)]
    return [document for document in found if "apiVersion" in document]


@pytest.mark.parametrize("resource", resources("launch.md"), ids=lambda resource: resource["metadata"]["name"])
def test_the_trainer_reads_what_stands_there(resource: dict[str, Any]):
    # A field that the model does not know is lost on the way.
    assert MODELS[resource["kind"]].from_dict(resource).to_dict() == resource
    resource["spec"]["unknown"] = 1
    assert MODELS[resource["kind"]].from_dict(resource).to_dict() != resource


def test_the_jobs_start_programs_that_exist_in_a_runtime_that_is_shown():
    shown = resources("launch.md")
    jobs = [resource for resource in shown if resource["kind"] == "TrainJob"]
    runtimes = {resource["metadata"]["name"] for resource in shown if resource["kind"] == "TrainingRuntime"}
    started = [job["spec"]["trainer"]["command"][-1] for job in jobs]
    assert started == ["supernet", "search", "train"] and set(started) <= set(JOBS)
    for job in jobs:
        assert job["spec"]["runtimeRef"]["name"] in runtimes
        # Without `suspend`, Kueue would not see the job before it starts.
        assert job["spec"]["suspend"] and "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
