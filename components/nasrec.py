"""One torchx component per program.

A component takes the folders of its program and the resources that a scheduler needs. Other flags of the program follow
after ``--``, for instance ``torchx run nasrec.train_supernet --data d --out o -j 1x2 -- --epochs 3``; a lone ``--
--help`` lists them. ``docs/launch.md`` describes how schedulers run the components.
"""

from dataclasses import replace
from typing import Dict, List, Optional, Tuple

import torchx
from torchx import specs
from torchx.components import dist, utils

# `python -m nasrec_torchrec JOB` is `nasrec JOB`. These components have another name than their job:
_MODULE = "nasrec_torchrec"
_JOBS = {"prepare_data": "prepare", "train_supernet": "supernet"}
# One compute thread per rank: with more, ranks that share cores wait for each other most of the time.
# The second variable lets gloo ranks connect again after one was killed and restarted.
_RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _arguments(flags: Dict[str, Optional[str]], more: Tuple[str, ...]) -> List[str]:
    """Returns the flags that are given; the program itself reports missing ones."""
    given = {flag: value for flag, value in flags.items() if value is not None}
    return [text for flag, value in given.items() for text in (f"--{flag}", value)] + list(more)


def _program(
    name: str,
    flags: Dict[str, Optional[str]],
    more: Tuple[str, ...],
    memory: int,
    image: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
    *subcommand: str,
) -> specs.AppDef:
    """Returns a component that runs a program in one process."""
    arguments = [_JOBS.get(name, name), *subcommand, *_arguments(flags, more)]
    app = utils.python(*arguments, m=_MODULE, name=name, image=image, cpu=2, memMB=memory)
    app.roles = [replace(role, env=env or {}, mounts=specs.parse_mounts(mounts or [])) for role in app.roles]
    return app


def _ranks(
    name: str,
    flags: Dict[str, Optional[str]],
    more: Tuple[str, ...],
    j: str,
    cpu: int,
    gpu: int,
    memory: int,
    retries: int,
    image: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
) -> specs.AppDef:
    """Returns a component that runs a program in ``j`` processes of one process group."""
    app = dist.ddp(
        _JOBS.get(name, name),
        *_arguments(flags, more),
        m=_MODULE,
        name=name,
        image=image,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memory,
        # torchrun's --max-restarts, which dist.ddp does not pass on. It restarts the ranks on their hosts; a
        # scheduler restarts the whole job, if it can.
        env=_RANK_ENVIRONMENT | {"PET_MAX_RESTARTS": str(retries)} | (env or {}),
        max_retries=retries,
        mounts=mounts,
    )
    app.roles = [replace(role, name=name) for role in app.roles]
    return app


def prepare_data(
    *flags: str,
    out: Optional[str] = None,
    dataset: str = "movielens100k",
    memory: int = 8192,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Prepares a data set: schema, manifest, and sharded Parquet files per split.

    Args:
        flags: more flags of nasrec prepare, such as --source
        out: folder that receives the data set
        dataset: criteo, criteo1tb, avazu, kdd2012, frappe, movielens100k, or table for any files with a schema
        memory: memory in MB
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _program("prepare_data", {"out": out}, flags, memory, image, env, mounts, dataset)


def train_supernet(
    *flags: str,
    data: Optional[str] = None,
    out: Optional[str] = None,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    retries: int = 0,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Trains a supernet over all ranks.

    Args:
        flags: more flags of nasrec supernet
        data: prepared data set
        out: run folder
        j: hosts x ranks per host, such as 1x2
        cpu: number of cores per host
        gpu: number of GPUs per host
        memory: memory per host in MB
        retries: number of restarts of all ranks after a failure, and of the whole job if the scheduler supports it
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _ranks("train_supernet", {"data": data, "out": out}, flags, j, cpu, gpu, memory, retries, image, env, mounts)


def train(
    *flags: str,
    data: Optional[str] = None,
    out: Optional[str] = None,
    architecture: str = "dlrm",
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    retries: int = 0,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Trains NASRecNets from scratch, or TorchRec's DLRM, over all ranks and keeps the best.

    Args:
        flags: more flags of nasrec train
        data: prepared data set
        out: run folder
        architecture: JSON file or a folder of them, the name of a published architecture, or a baseline such as dlrm
        j: hosts x ranks per host, such as 1x2
        cpu: number of cores per host
        gpu: number of GPUs per host
        memory: memory per host in MB
        retries: number of restarts of all ranks after a failure, and of the whole job if the scheduler supports it
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    named = {"data": data, "out": out, "architecture": architecture}
    return _ranks("train", named, flags, j, cpu, gpu, memory, retries, image, env, mounts)


def search(
    *flags: str,
    supernet: Optional[str] = None,
    data: Optional[str] = None,
    out: Optional[str] = None,
    j: str = "1x1",
    workers: int = 1,
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 8192,
    retries: int = 0,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Searches a trained supernet for the best architectures.

    Args:
        flags: more flags of nasrec search
        supernet: run folder of the supernet
        data: prepared data set
        out: folder that receives the study, the report and the architectures
        j: hosts x ranks per host, such as 1x2; each rank holds a share of the tables and of the rows
        workers: number of such groups of ranks, each on one host, that share one study; start groups of several hosts
            as separate jobs with the same out or storage
        cpu: number of cores per host
        gpu: number of GPUs per host
        memory: memory per host in MB
        retries: number of restarts of all ranks after a failure, and of the whole job if the scheduler supports it
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    if workers > 1 and "x" in j and not j.startswith("1x"):
        raise ValueError(f"workers: expected 1 with groups of several hosts, found {workers} with j {j}")
    named = {"supernet": supernet, "data": data, "out": out}
    app = _ranks("search", named, flags, j, cpu, gpu, memory, retries, image, env, mounts)
    (role,) = app.roles
    app.roles = [replace(role, name=f"search{number}") for number in range(workers)]
    return app


def report(
    *flags: str,
    search: Optional[str] = None,
    finalists: Optional[str] = None,
    memory: int = 2048,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Shows a search, with its finalists beside the supernet's predictions, as one page.

    Args:
        flags: more flags of nasrec report
        search: folder of the search
        finalists: run folders of trainings, separated by commas
        memory: memory in MB
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _program("report", {"search": search, "finalists": finalists}, flags, memory, image, env, mounts)


def evaluate(
    *flags: str,
    model: Optional[str] = None,
    data: Optional[str] = None,
    memory: int = 8192,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Measures a trained model on a split.

    Args:
        flags: more flags of nasrec evaluate
        model: run folder of a training
        data: prepared data set
        memory: memory in MB
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _program("evaluate", {"model": model, "data": data}, flags, memory, image, env, mounts)


def export(
    *flags: str,
    model: Optional[str] = None,
    out: Optional[str] = None,
    memory: int = 8192,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Exports a trained NASRecNet to a package that scores without this project.

    Args:
        flags: more flags of nasrec export, such as --data and --tables
        model: run folder of a training
        out: package folder
        memory: memory in MB
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _program("export", {"model": model, "out": out}, flags, memory, image, env, mounts)


def score(
    *flags: str,
    package: Optional[str] = None,
    data: Optional[str] = None,
    out: Optional[str] = None,
    memory: int = 8192,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Scores the rows of files with an exported model.

    Args:
        flags: more flags of nasrec score
        package: folder of an exported model
        data: files, patterns and URIs, several separated by commas, or folders of Parquet files
        out: folder that receives the scores
        memory: memory in MB
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    return _program("score", {"package": package, "data": data, "out": out}, flags, memory, image, env, mounts)


def serve(
    *flags: str,
    package: Optional[str] = None,
    host: str = "0.0.0.0",
    port: int = 8080,
    replicas: int = 1,
    memory: int = 8192,
    retries: int = 3,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Serves an exported model over HTTP and the Open Inference Protocol.

    Args:
        flags: more flags of nasrec serve
        package: folder of an exported model
        host: address to listen on
        port: port to listen on
        replicas: number of servers, each on its own host
        memory: memory in MB
        retries: number of restarts of a failed server
        image: container or folder that holds this project
        env: environment variables, as A=1,B=2
        mounts: mounts of containers, such as type=bind,src=/data,dst=/data,readonly
    """
    app = _program("serve", {"package": package, "host": host, "port": str(port)}, flags, memory, image, env, mounts)
    (role,) = app.roles
    app.roles = [replace(role, num_replicas=replicas, max_retries=retries, port_map={"http": port})]
    return app
