"""Sends load to a server of the Open Inference Protocol, and prints what it answered and how fast.

    python benchmarks/load.py http://localhost:8080 --clients 16 --seconds 60
    python benchmarks/load.py http://localhost:8080 --body request.json --path rows --rate 200

It needs httpx alone, so it can be copied to where the load comes from. Without ``--body`` it sends random ids in the
shapes that the model's metadata gives. With ``--rate`` the time of a request counts from the moment it was due, so a
server that stalls is not flattered.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass
class Load:
    """What a server answered under load.

    Args:
        seconds: how long the load lasted.
        statuses: number of answers by status, or by the name of the error of a connection.
        latencies: seconds to each answer with status 200.
    """

    seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Returns the milliseconds within which a share of the answers with status 200 came."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def __add__(self, later: "Load") -> "Load":
        """Returns what the server answered in both loads, one after the other."""
        return Load(self.seconds + later.seconds, self.statuses + later.statuses, [*self.latencies, *later.latencies])

    def __str__(self) -> str:
        times = ", ".join(f"p{100 * share:g} {self.quantile(share):.1f} ms" for share in (0.5, 0.9, 0.99, 0.999))
        rate = self.statuses["200"] / self.seconds
        return f"{dict(sorted(self.statuses.items()))} in {self.seconds:.0f} s, {rate:,.0f} answers/s; {times}"


def random_request(url: str, model: str, rows: int, seed: int = 0) -> bytes:
    """Returns the body of a request for random rows, with one id of every feature in each."""
    described = {part["name"]: part for part in httpx.get(f"{url}/v2/models/{model}").json()["inputs"]}
    features, rng = described["lengths"]["shape"][0], random.Random(seed)
    inputs = []
    for name, part in described.items():
        shape = {"dense": [rows, part["shape"][-1]], "lengths": [features, rows]}.get(name, [features * rows])
        count = shape[0] * shape[-1] if len(shape) == 2 else shape[0]
        values: Callable[[], float] = rng.random if part["datatype"] == "FP32" else lambda: rng.randrange(100)
        data = [1] * count if name == "lengths" else [values() for _ in range(count)]
        inputs.append({"name": name, "shape": shape, "datatype": part["datatype"], "data": data})
    return json.dumps({"inputs": inputs}).encode()


async def send(
    address: str,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
    rate: float | None = None,
    check: Callable[[int, httpx.Response], None] | None = None,
) -> Load:
    """Sends requests for some time.

    Args:
        address: URL that takes them.
        bodies: their bodies, sent in turns.
        clients: number of clients, each with a connection of its own; one sends its next request after an answer.
        seconds: how long.
        rate: requests per second of all clients together; if unset, as fast as they are answered.
        check: function that is called with the number of the body and every answer with status 200.
    """
    found, started = Load(seconds), time.perf_counter()

    async def ask(number: int) -> None:
        turn = number
        async with httpx.AsyncClient(timeout=60, headers={"content-type": "application/json"}) as client:
            while True:
                due = time.perf_counter() if rate is None else started + turn / rate
                if due - started >= seconds:
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                try:
                    answer = await client.post(address, content=bodies[turn % len(bodies)])
                except httpx.TransportError as error:
                    found.statuses[type(error).__name__] += 1
                else:
                    found.statuses[str(answer.status_code)] += 1
                    if answer.status_code == 200:
                        found.latencies.append(time.perf_counter() - due)
                        if check is not None:
                            check(turn % len(bodies), answer)
                turn += clients

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return found


def main() -> None:
    """Reads the flags, sends the load and prints a line."""
    parser = argparse.ArgumentParser(description="Send load to a server of the Open Inference Protocol.")
    parser.add_argument("url", help="address of the server, such as http://localhost:8080")
    parser.add_argument("--model", default="nasrec", help="name of the model")
    parser.add_argument("--path", default="infer", help="infer, or rows for raw rows")
    parser.add_argument("--body", type=Path, nargs="*", default=[], help="files with the bodies of requests")
    parser.add_argument("--rows", type=int, default=64, help="rows of a random request")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="requests per second; if unset, as fast as they are answered")
    flags: Any = parser.parse_args()
    url = flags.url.rstrip("/")
    bodies = [file.read_bytes() for file in flags.body] or [random_request(url, flags.model, flags.rows)]
    address = f"{url}/v2/models/{flags.model}/{flags.path}"
    print(asyncio.run(send(address, bodies, flags.clients, flags.seconds, flags.rate)))


if __name__ == "__main__":
    main()
