"""Replaces the package of a server under load, beside clients that hang up and slow ones, and checks every answer.

    python benchmarks/hot_swap.py --packages '[runs/export, runs/other]'

The packages take the same inputs. They take turns in the folder that is served: copied in place, made by a delta as
``nasrec patch`` makes them, damaged, copied in halves, and with another schema. Every answer must be that of the
version that it names.
"""

import asyncio
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from load import Load, random_request, send
from process_memory import mib

from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.delta import write_delta
from nasrec_torchrec.inference.exporting import patch
from nasrec_torchrec.inference.predictor import GOLDEN, MANIFEST, PACKAGE, Predictor, Request, manifest_sha256

# What is refused follows what is served, so that its refusal is seen; and a delta needs the package that it changes.
_KINDS = ("half-copied", "delta", "damaged", "good", "another schema", "good")


def main(
    packages: tuple[str, str],
    seconds: float = 60.0,
    clients: int = 16,
    rows: int = 64,
    swaps: int = 20,
    cancelling: int = 200,
    slow: int = 50,
    threads: int = 1,
    body_seconds: float = 5.0,
) -> None:
    """Prints the answers, the latencies, what became of each package, and the server's memory.

    Args:
        packages: Folders of two packages with the same inputs.
        seconds: Seconds of load, undisturbed and then disturbed.
        clients: Number of clients that send requests without a pause.
        rows: Rows per request.
        swaps: Number of packages that are put in place of another.
        cancelling: Number of clients that hang up before the answer, every five seconds.
        slow: Number of clients that send a byte a second.
        threads: Number of threads of the server that compute.
        body_seconds: Seconds after which the server gives up a slow client. Where programs get no core for as long, the
            other clients are slow as well.
    """
    wanted = clients + cancelling + slow + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),) * 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(packages[0], Path(temporary) / "package"))
        deltas = _deltas(packages, Path(temporary))
        command = [sys.executable, "-m", "nasrec_torchrec", "serve", "--package", str(folder), "--port", "0"]
        flags = {"reload_seconds": "0.25", "body_seconds": str(body_seconds), "threads": str(threads)}
        server = subprocess.Popen(
            [*command, *(word for name, value in flags.items() for word in (f"--{name}", value))],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            asyncio.run(_compare(server, folder, packages, deltas, seconds, clients, rows, swaps, cancelling, slow))
        finally:
            server.terminate()
            server.communicate()


async def _compare(
    server: "subprocess.Popen[str]",
    folder: Path,
    packages: tuple[str, str],
    deltas: list[Path],
    seconds: float,
    clients: int,
    rows: int,
    swaps: int,
    cancelling: int,
    slow: int,
) -> None:
    port = _port(server)
    url = f"http://127.0.0.1:{port}"
    bodies = [random_request(url, "nasrec", rows, seed) for seed in range(8)]
    expected = {}
    for package in packages:
        predictor = Predictor(package)
        expected[predictor.version] = [predictor.predict(_request(body)) for body in bodies]
    checked: Counter[str] = Counter()

    def check(number: int, answer: httpx.Response) -> None:
        document = answer.json()
        found = torch.tensor(document["outputs"][0]["data"])
        right = torch.allclose(found, expected[document["model_version"]][number], rtol=0, atol=1e-6)
        checked["right" if right else "wrong"] += 1

    address = f"{url}/v2/models/nasrec/infer"
    await send(address, bodies, clients, min(5.0, seconds), check=check)  # warms up
    before = mib(pid=server.pid)
    print(f"undisturbed: {await send(address, bodies, clients, seconds, check=check)}", flush=True)
    counts: Counter[str] = Counter()
    others = [
        *(_hanging_up(port, bodies[0], number, counts) for number in range(cancelling)),
        *(_slow(port, bodies[0], counts) for _ in range(slow)),
        _swapping(url, folder, packages, deltas, seconds, swaps, counts),
    ]
    tasks = [asyncio.create_task(other) for other in others]
    disturbed: Load = await send(address, bodies, clients, seconds, check=check)
    while not tasks[-1].done():  # a busy machine swaps slowly, and every swap is to be under load
        disturbed += await send(address, bodies, clients, 5.0, check=check)
    await tasks[-1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(f"disturbed: {disturbed}")
    print(f"beside them: {dict(sorted(counts.items()))}")
    metrics = httpx.get(f"{url}/metrics").text
    reloads = [line.partition("{")[2] for line in metrics.splitlines() if line.startswith("nasrec_reloads_total")]
    print(f"reloads: {'; '.join(reloads)}")
    print(f"answers that are those of the version that they name: {checked['right']:,}; others: {checked['wrong']}")
    print(f"memory: {before:,.0f} MiB before, {mib(pid=server.pid):,.0f} MiB after")
    failed = [status for status in disturbed.statuses if status != "200"]
    assert not failed and not checked["wrong"] and not counts["served by mistake"], failed


def _deltas(packages: tuple[str, str], folder: Path) -> list[Path]:
    """Writes the deltas that lead from the other package to each, and prints what they spare."""
    deltas = [folder / f"{number}.delta" for number in range(2)]
    for number, delta in enumerate(deltas):
        package = Path(packages[number])
        write_delta(Path(packages[1 - number]), package, delta)
        whole = sum((package / file).stat().st_size for file in (PACKAGE, GOLDEN, MANIFEST))
        print(f"{package.name}: {whole / 2**20:.2f} MiB, as a delta {delta.stat().st_size / 2**20:.2f} MiB", flush=True)
    return deltas


async def _swapping(
    url: str,
    folder: Path,
    packages: tuple[str, str],
    deltas: list[Path],
    seconds: float,
    swaps: int,
    counts: Counter[str],
) -> None:
    loop, served = asyncio.get_running_loop(), 0
    # Deltas are applied by another program, because this one measures the clients' latencies.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as program:
        copy = Path(shutil.copytree(packages[0], folder.with_name("copy")))
        await loop.run_in_executor(program, _patch, copy, deltas[1])
        began = time.monotonic()
        async with httpx.AsyncClient(timeout=60) as client:
            for number in range(swaps):
                await asyncio.sleep(max(0.0, began + number * seconds / (swaps + 1) - time.monotonic()))
                kind, newer = _KINDS[number % len(_KINDS)], (served + 1) % 2
                before = (await client.get(f"{url}/v2/models/nasrec")).json()["versions"][0]
                package = Path(packages[newer])
                if kind == "delta":
                    await loop.run_in_executor(program, _patch, folder, deltas[newer])
                elif kind == "damaged":
                    await asyncio.to_thread(_put_damaged, package, folder)
                elif kind == "another schema":
                    await asyncio.to_thread(_put_renamed, package, folder)
                elif kind == "half-copied":
                    await asyncio.to_thread(_put_half, package, folder)
                    await _until(client, url, lambda found, _: "refused" in found)
                if kind in ("good", "half-copied"):
                    await asyncio.to_thread(_put, package, folder)
                if kind in ("good", "half-copied", "delta"):
                    await _until(client, url, lambda _, version, before=before: version != before)
                    served += 1
                else:
                    await _until(client, url, lambda found, _: "refused" in found)
                    after = (await client.get(f"{url}/v2/models/nasrec")).json()["versions"][0]
                    counts["served by mistake"] += after != before
                counts[f"package: {kind}"] += 1


async def _until(client: httpx.AsyncClient, url: str, happened: Any) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        described = (await client.get(f"{url}/v2/models/nasrec")).json()
        if happened(described["parameters"]["origin"][0], described["versions"][0]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the server does not notice a package")


def _patch(folder: Path, delta: Path) -> None:
    patch(folder, delta)


def _put(package: Path, folder: Path) -> None:
    """Copies a package over another, a whole file at a time."""
    for file in (PACKAGE, GOLDEN, MANIFEST):
        shutil.copyfile(package / file, folder / "part")
        os.replace(folder / "part", folder / file)


def _put_damaged(package: Path, folder: Path) -> None:
    content = bytearray((package / PACKAGE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "part").write_bytes(content)
    os.replace(folder / "part", folder / PACKAGE)
    shutil.copyfile(package / MANIFEST, folder / MANIFEST)


def _put_half(package: Path, folder: Path) -> None:
    shutil.copyfile(package / MANIFEST, folder / MANIFEST)
    content = (package / PACKAGE).read_bytes()
    (folder / PACKAGE).unlink()
    (folder / PACKAGE).write_bytes(content[: len(content) // 2])


def _put_renamed(package: Path, folder: Path) -> None:
    _put(package, folder / "..")
    document = json.loads((package / MANIFEST).read_text())
    document["schema"]["sparse"][0]["name"] = "renamed"
    document["sha256"][MANIFEST] = manifest_sha256(document)
    (folder / "part").write_text(json.dumps(document))
    for file in (PACKAGE, GOLDEN):
        os.replace(folder / ".." / file, folder / file)
    os.replace(folder / "part", folder / MANIFEST)


async def _hanging_up(port: int, body: bytes, number: int, counts: Counter[str]) -> None:
    rng = random.Random(number)
    await asyncio.sleep(5 * rng.random())
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_head(body) + body)
            await writer.drain()
            await asyncio.sleep(0.02 * rng.random())
            writer.transport.abort()
            counts["clients that hung up"] += 1
        await asyncio.sleep(5)


async def _slow(port: int, body: bytes, counts: Counter[str]) -> None:
    while True:
        answer = b""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_head(body))
            for byte in body:
                writer.write(bytes([byte]))
                await asyncio.sleep(1)
                if writer.is_closing() or reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
                    break
            answer = await reader.read(12)
            writer.close()
        counts[f"slow clients: {answer[9:].decode() or 'cut off'}"] += 1


def _head(body: bytes) -> bytes:
    return b"POST /v2/models/nasrec/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)


def _request(body: bytes) -> Request:
    kinds = {"FP32": torch.float32, "INT64": torch.int64}
    parts = json.loads(body)["inputs"]
    return Request(
        **{
            part["name"]: torch.tensor(part["data"], dtype=kinds[part["datatype"]]).view(part["shape"])
            for part in parts
        }
    )


def _port(server: "subprocess.Popen[str]") -> int:
    assert server.stderr is not None
    seen = ""
    port = 0
    for line in server.stderr:
        seen += line
        if "listening at" in line:
            port = int(line.split(" port ")[1].split(",")[0])
        if "startup complete" in line:
            _drain(server)
            return port
    raise AssertionError(f"the server does not start: {seen}")


def _drain(server: "subprocess.Popen[str]") -> None:
    """Reads what the server logs, or its pipe would be full one day."""
    assert server.stderr is not None
    threading.Thread(target=server.stderr.read, daemon=True).start()


if __name__ == "__main__":
    run(main)
