"""Sends damaged requests to the server's application, in this process, and measures its memory.

    python benchmarks/fuzz_requests.py --package runs/export --count 200000

Each request is a valid one (tensors as JSON or as bytes, raw rows, rows with shared values, raw columns) in which some
parts were replaced, removed, repeated, nested or cut. It must be answered with 200, or with 4xx and a reason.
"""

import asyncio
import gzip
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from process_memory import mib

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.predictor import read_manifest
from nasrec_torchrec.inference.server import create_app

_WILD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**70, 10**400, 1.5, -0.0, 1e39, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "x", "1", "NaN", "é\0\u2028", "1e999", "a|b", [], [[]], [None], [[1], [2, 3]]),
    *({}, {"a": 1}, {"binary_data_size": 8}, [1.5, "x", None], "x" * 2000),
)
_HEADERS = ("content-type", "content-encoding", "inference-header-content-length", "nasrec-key", "content-length")


def main(package: Path, count: int = 100_000, seed: int = 0, rows: int = 3) -> None:
    """Prints the answers by kind of request, and the memory over the requests.

    Args:
        package: Folder that nasrec export wrote.
        count: Number of requests.
        seed: Seed of the requests.
        rows: Rows per request before it is damaged.
    """
    app = create_app(
        package, ServingConfig(max_rows=100, max_ids=2000, max_body_mib=1, max_delay_ms=0, reload_seconds=0)
    )
    schema = Schema.from_json(json.dumps(read_manifest(package)["schema"]))
    asyncio.run(_fuzz(app, _Grammar(schema, rows, random.Random(seed)), count))


async def _fuzz(app: FastAPI, grammar: "_Grammar", count: int) -> None:
    answers: dict[str, Counter[int]] = {kind: Counter() for kind in grammar.kinds}
    memory, started = [], time.monotonic()
    async with app.router.lifespan_context(app):
        for number in range(count):
            kind, path, body, headers = grammar.draw()
            status, answer = await _ask(app, path, body, headers)
            answers[kind][status] += 1
            if not (status == 200 or (400 <= status < 500 and json.loads(answer)["error"])):
                raise AssertionError(f"request {number}: {kind}: {path} {headers} {body!r:.1000}: {status} {answer!r}")
            if (number + 1) % max(1, count // 40) == 0:
                memory.append((number + 1, mib()))
        metrics = (await _ask(app, "/metrics", b"", {}, "GET"))[1].decode()
    for kind, found in answers.items():
        print(f"{kind:16}{sum(found.values()):>8,}  {dict(sorted(found.items()))}")
    others = sum(times for found in answers.values() for status, times in found.items() if status >= 500)
    print(f"{count:,} requests in {time.monotonic() - started:,.0f} s; crashes: 0, 5xx: {others}")
    print("MiB after 1,000 requests: " + ", ".join(f"{at / 1000:g}: {mib:.1f}" for at, mib in memory[3::4]))
    late = memory[len(memory) // 2 :]
    # The median of the slopes between all pairs, which a single large request does not move.
    slopes = [(later - mib) / (after - at) for (at, mib), (after, later) in itertools.combinations(late, 2)]
    print(f"slope over the last half: {2**20 * statistics.median(slopes):+.1f} bytes per request")
    assert "nasrec_held_bytes 0.0" in metrics and 'nasrec_waiting_rows{model="nasrec"} 0.0' in metrics


class _Grammar:
    """Draws damaged requests for a schema."""

    def __init__(self, schema: Schema, rows: int, rng: random.Random) -> None:
        self._schema, self._rows, self._rng = schema, rows, rng
        self.kinds: dict[str, Callable[[], tuple[str, Any, bytes]]] = {
            "tensors": lambda: ("infer", {"id": "7", "inputs": self._tensors()}, b""),
            "bytes": self._binary,
            "rows": lambda: ("rows", {"rows": self._raw(), "parameters": {"unknown": True}}, b""),
            "shared rows": self._shared,
            "columns": self._columns,
        }

    def draw(self) -> tuple[str, str, bytes, dict[str, str]]:
        """Returns the kind, the path, the body and the headers of a request."""
        rng = self._rng
        kind = rng.choice(list(self.kinds))
        path, document, tail = self.kinds[kind]()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            document = self._damaged(document)
        header = json.dumps(document).encode()
        headers = {"content-type": "application/json"}
        if tail or rng.random() < 0.02:
            headers["inference-header-content-length"] = str(len(header))
        body = header + tail
        if rng.random() < 0.15 and body:  # cut, flipped or repeated bytes
            place = rng.randrange(len(body))
            flipped = bytes([body[place] ^ 1 << rng.randrange(8)])
            body = rng.choice((body[:place], body[:place] + flipped + body[place + 1 :], body + body[place:]))
        if rng.random() < 0.005:  # deeper than any parser likes
            body = b'{"id": "7", "%s": ' % rng.choice((b"rows", b"inputs", b"shared")) + b"[" * rng.choice(
                (1000, 100_000)
            )
        if rng.random() < 0.05:
            headers["content-encoding"] = rng.choice(("gzip", "deflate", "br", ""))
            body = gzip.compress(body)[: rng.choice((None, 10, -1))]
        if rng.random() < 0.05:
            headers[rng.choice(_HEADERS)] = rng.choice(("", "x", "-1", "1", "99999", "gzip", "9" * 30))
        model = rng.choice(("nasrec",) * 30 + ("other", "nasrec/versions/x", "%00"))
        return kind, f"/v2/models/{model}/{path}", body, headers

    def _damaged(self, value: Any) -> Any:
        """Replaces, removes, repeats or nests a part, at any depth."""
        rng = self._rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            if rng.random() < 0.15:
                return {name: part for name, part in value.items() if name != key}
            if rng.random() < 0.1:
                return value | {rng.choice(("id", "rows", "shared", "inputs", "extra", "")): rng.choice(_WILD)}
            return value | {key: self._damaged(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            place = rng.randrange(len(value))
            if rng.random() < 0.15:
                return value[:place] + value[place + 1 :]
            if rng.random() < 0.1:
                return value + [value[place]] * rng.choice((1, 20))
            return [*value[:place], self._damaged(value[place]), *value[place + 1 :]]
        if rng.random() < 0.02:
            for _ in range(rng.choice((5, 50, 150))):
                value = [value]
            return value
        return rng.choice(_WILD)

    def _tensors(self) -> list[dict[str, Any]]:
        count, schema, rng = self._rows, self._schema, self._rng
        lengths = [[rng.choice((0, 1, 2)) if f.multi_hot else 1 for _ in range(count)] for f in schema.sparse]
        total = sum(map(sum, lengths))
        dense = [rng.random() for _ in range(count * len(schema.dense))]
        inputs = [_tensor("dense", [count, len(schema.dense)], "FP32", dense)] if schema.dense else []
        ids = [rng.randrange(-1, 60) for _ in range(total)]
        inputs += [_tensor("ids", [total], "INT64", ids), _tensor("lengths", [len(lengths), count], "INT64", lengths)]
        return inputs

    def _binary(self) -> tuple[str, Any, bytes]:
        inputs, tail = self._tensors(), b""
        for part in inputs:
            kind = np.float32 if part["datatype"] == "FP32" else np.int64
            data = np.array(part.pop("data"), kind).tobytes()
            part["parameters"] = {"binary_data_size": len(data)}
            tail += data
        return "infer", {"inputs": inputs, "parameters": {"binary_data_output": True}}, tail

    def _raw(self) -> list[dict[str, Any]]:
        rng, rows = self._rng, []
        for _ in range(self._rows):
            row: dict[str, Any] = {feature.name: rng.choice((0.5, -1, None, "2.5")) for feature in self._schema.dense}
            for feature in self._schema.sparse:
                if not feature.cross:
                    row[feature.name] = (
                        [1, 2, "a"][: rng.randrange(3)] if feature.multi_hot else rng.choice((3, "4", None))
                    )
            rows.append(row)
        return rows

    def _shared(self) -> tuple[str, Any, bytes]:
        rows = self._raw()
        shared = {name: value for name, value in rows[0].items() if self._rng.random() < 0.5}
        items = [{name: value for name, value in row.items() if name not in shared} for row in rows]
        return "rows", {"rows": items, "shared": shared}, b""

    def _columns(self) -> tuple[str, Any, bytes]:
        inputs = [_tensor(dense.name, [self._rows], "FP32", [0.5] * self._rows) for dense in self._schema.dense]
        for feature in self._schema.sparse:
            if not feature.cross:
                inputs.append(_tensor(feature.name, [self._rows], "BYTES", ["3"] * self._rows))
        return "infer", {"inputs": inputs}, b""


def _tensor(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


async def _ask(
    app: FastAPI, path: str, body: bytes, headers: dict[str, str], method: str = "POST"
) -> tuple[int, bytes]:
    """Calls the application as a server does, and returns the status and the body of the answer."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": raw}
    answered, received = asyncio.Event(), False
    status, answer = 0, b""

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await answered.wait()
            return {"type": "http.disconnect"}
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, answer
        status = message.get("status", status)
        answer += message.get("body", b"")

    await app(scope, receive, send)  # type: ignore[arg-type]
    answered.set()
    return status, answer


if __name__ == "__main__":
    run(main)
