"""Limits on what a client may use of a server: time, memory and connections, by what arrives, not what it claims."""

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.metrics import ServerMetrics

_LOG = logging.getLogger("nasrec.serve")
_T = TypeVar("_T")
_CLOSE = {"connection": "close"}
# Of which inference requests are counted.
_INFER = re.compile(r"/v2/models/.*/(infer|rows)")
# How often a loop looks again before it says that something did not arrive: it may have done so after the last look,
# while a server that was held up waited for its interpreter.
_LOOKS = 4
# Key of a connection's scope under which the name of the model stands that answers.
MODEL = "nasrec.model"


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Returns an error in the form of the protocol, whatever its text is."""
    return Response(json.dumps({"error": message}), status, headers, media_type="application/json")


class Bodies:
    """The bodies of requests in progress.

    Args:
        config: limits of one body and of all together.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._most, self._most_held = config.max_body_mib << 20, config.max_held_mib << 20
        self._seconds = config.body_seconds
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The whole body of a request, which counts until the context is left.

        Raises:
            HTTPException: 400, 408, 413, 415 or 503; the connection is closed after it.
            ClientDisconnect: when the client hangs up.
        """
        headers = request.headers
        length, encoding = headers.get("content-length"), headers.get("content-encoding", "identity").lower()
        if length is not None and "transfer-encoding" in headers:
            raise HTTPException(400, "expected content-length or transfer-encoding, found both", _CLOSE)
        if length is not None and (not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._most):
            found = f", found content-length {length:.30}"
            raise HTTPException(413, f"expected a body of {self._most} bytes at most{found}", _CLOSE)
        if encoding not in ("identity", "gzip", "deflate"):
            raise HTTPException(415, f"content-encoding: expected gzip, deflate or none, found {encoding:.30}", _CLOSE)
        body, counted = bytearray(), 0
        try:
            end, late, more = time.monotonic() + self._seconds, False, True
            while more:
                message = await before(end, request.receive())
                if time.monotonic() > end and not late:
                    # The server was held up, or it would have noticed the end. The client gets its time once more.
                    end, late = time.monotonic() + self._seconds, True
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                counted += self._take(len(chunk), counted)
                body += chunk
            if encoding != "identity":
                compressed, body = body, self._decompress(body)
                counted += self._take(len(body), 0)
                del compressed
            yield body
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self._seconds:g} seconds", _CLOSE) from None
        finally:
            self.held -= counted

    def _take(self, count: int, before: int) -> int:
        if before + count > self._most:
            raise HTTPException(413, f"expected a body of {self._most} bytes at most", _CLOSE)
        if self.held + count > self._most_held:
            raise HTTPException(503, "the bodies of other requests fill the memory; ask again later", _CLOSE)
        self.held += count
        return count

    def _decompress(self, body: bytearray) -> bytearray:
        # gzip and zlib, told apart by their heads.
        decoder = zlib.decompressobj(wbits=47)
        try:
            plain = bytearray(decoder.decompress(body, self._most + 1))
        except zlib.error as error:
            raise HTTPException(400, f"body: cannot be decompressed: {error}") from None
        if len(plain) > self._most:
            raise HTTPException(413, f"expected a body of {self._most} bytes at most after decompression", _CLOSE)
        if not decoder.eof or decoder.unused_data:
            raise HTTPException(400, "body: expected one whole compressed stream")
        return plain


async def before(end: float, work: Awaitable[_T]) -> _T:
    """Awaits what a client sends, or what has arrived when a server looks that was held up beyond the end.

    Raises:
        TimeoutError: If it has not arrived.
    """
    task = asyncio.ensure_future(work)
    try:
        # Of events that are due together, the loop handles what arrived before what has timed out. A time-out that
        # cancels the task would lose what arrived.
        await asyncio.wait({task}, timeout=max(0.0, end - time.monotonic()))
        for _ in range(0 if task.done() else _LOOKS):
            await asyncio.sleep(0)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Awaits work for a client, and cancels it if the client hangs up meanwhile.

    Args:
        request: request whose body has been read.
        work: what the client waits for.

    Raises:
        ClientDisconnect: If the client has hung up.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    with anyio.CancelScope() as scope:
        watch = asyncio.create_task(gone())
        watch.add_done_callback(lambda _: scope.cancel())
        try:
            return await work
        finally:
            watch.cancel()
    raise ClientDisconnect


class CountedAnswers:
    """Counts every answer under its status, and turns what nobody foresaw into a 500 with a body.

    Args:
        app: the application behind it.
        metrics: counters.
        draining: holds a true ``draining`` while connections are to be closed after their answer.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, draining: Any) -> None:
        self._app, self._metrics, self._draining = app, metrics, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                status = str(message["status"])
                self._metrics.responses.labels(status).inc()
                if scope["method"] == "POST" and _INFER.fullmatch(scope["path"]):
                    self._metrics.count_request(scope.get(MODEL, ""), status)
                if self._draining.draining:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except ClientDisconnect:
            pass  # nobody is left to read an answer
        except Exception:
            _LOG.exception("%s %s", scope["method"], Headers(scope=scope).get("host", ""))
            if not begun:
                await error_response(500, "internal error; the server's log has it", _CLOSE)(scope, receive, counted)


class _Limit:
    """A function that is called after some seconds, unless it is cancelled before or at one of the last looks."""

    def __init__(self, seconds: float, call: Callable[[str], None], reason: str) -> None:
        self._loop, self._call, self._reason = asyncio.get_running_loop(), call, reason
        self._handle: asyncio.Handle = self._loop.call_later(seconds, self._due, _LOOKS)

    def _due(self, looks: int) -> None:
        if looks:
            self._handle = self._loop.call_soon(self._due, looks - 1)
        else:
            self._call(self._reason)

    def cancel(self) -> None:
        self._handle.cancel()


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose connections end when a client does not send its headers, or does not read its answer.

    Args:
        arguments: arguments from uvicorn.
        bounds: limits.
        metrics: counters.
        values: keyword arguments from uvicorn.
    """

    def __init__(self, *arguments: Any, bounds: ServingConfig, metrics: ServerMetrics, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self._bounds, self._metrics = bounds, metrics
        self._headers_end: _Limit | None = None
        self._reading_ends: _Limit | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.max_connections:
            self._refuse(503, "too many connections; ask again later")
            return
        self._headers_end = _Limit(self._bounds.header_seconds, self._end, "headers took too long")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # What arrives between two requests is the beginning of headers, or what is left of a body that nobody reads.
        if not self._busy() and self._headers_end is None:
            self._headers_end = _Limit(self._bounds.header_seconds, self._end, "headers took too long")
        super().data_received(data)
        if self._busy():
            self._stop_waiting()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_ends = _Limit(self._bounds.body_seconds, self._end, "answer is not read")

    def resume_writing(self) -> None:
        if self._reading_ends is not None:
            self._reading_ends.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        if self._busy() and self.cycle.response_started:
            self._end("body is no HTTP")
        else:
            self._refuse(400, msg)

    def _stop_waiting(self) -> None:
        if self._headers_end is not None:
            self._headers_end.cancel()
            self._headers_end = None

    def _busy(self) -> bool:
        """Returns whether headers have arrived of a request that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        self._metrics.responses.labels(str(status)).inc()
        self._metrics.refused.labels(message.split(";")[0]).inc()
        body = json.dumps({"error": message}).encode()
        head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _end(self, reason: str) -> None:
        self._metrics.refused.labels(reason).inc()
        self.transport.abort()
