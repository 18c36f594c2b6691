"""Limits on what clients use, where a server of its own is not needed."""

import asyncio
import socket
import threading
import time
from functools import partial

import pytest
import uvicorn
from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.limits import Bodies, BoundedProtocol
from nasrec_torchrec.inference.metrics import ServerMetrics

_HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize(("sent", "status"), [(200_000, b"200"), (199_999, b"408")])
def test_a_server_that_was_held_up_does_not_blame_its_client(sent: int, status: bytes, looked: bool):
    """The whole body is there in time, and only the server looks for it too late."""
    bodies = Bodies(ServingConfig(body_seconds=0.3))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with bodies.read(Request(scope, receive)) as body:
                answer = Response(str(len(body)))
        except HTTPException as error:
            answer = Response(error.detail, error.status_code)
        await answer(scope, receive, send)

    assert asyncio.run(_ask(uvicorn.Config(app), _HEAD, bytes(sent), looked)) == status
    assert bodies.held == 0


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize(("sent", "status"), [(_HEAD, b"204"), (_HEAD[:-2], b"")])
def test_a_server_that_was_held_up_does_not_miss_headers(sent: bytes, status: bytes, looked: bool):
    metrics, bounds = ServerMetrics(), ServingConfig(header_seconds=0.3)
    http = partial(BoundedProtocol, bounds=bounds, metrics=metrics)
    config = uvicorn.Config(Response(status_code=204), http=http)  # type: ignore[arg-type]
    assert asyncio.run(_ask(config, b"", sent, looked)) == status


async def _ask(config: uvicorn.Config, before: bytes, content: bytes, looked: bool) -> bytes:
    """Returns the status that a client gets, which sends ``content`` while the server is held up.

    Args:
        config: of the server.
        before: what the client sends before.
        looked: whether the server has looked for what arrived, and then waits for the interpreter.
    """
    config.port, config.lifespan, config.log_level = 0, "off", "error"
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=10) as client:
        client.sendall(before)
        await asyncio.sleep(0.1)  # the server waits for more
        sending = threading.Thread(target=client.sendall, args=(content,))
        if looked:
            selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
            select = selector.select

            def held_up(timeout: float | None) -> object:
                found, selector.select = select(0), select
                sending.start()
                time.sleep(0.5)
                return found

            selector.select = held_up
            await asyncio.sleep(0)
        else:
            sending.start()
            time.sleep(0.5)
        await asyncio.to_thread(sending.join)
        try:
            answer = await asyncio.to_thread(client.recv, 12)
        except ConnectionResetError:
            answer = b""
    server.should_exit = True
    await serving
    return answer[9:]
