"""The wire to a remote server: requests out, server-sent events in, failures as our errors.

Source: OpenAI's API reference for /v1/models and streamed /v1/completions; server-sent
events as in the WHATWG HTML standard, of which such servers use data lines only.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx

from inference_svc.engines.in_turns import InTurns
from inference_svc.engines.remote_http2 import teach_resets
from inference_svc.remote_settings import RemoteSettings
from sidecache.errors import EngineFailed, InvalidRequest, Overloaded, SetupError, SidecacheError

_MAX_LINE_BYTES = 1 << 20
_MAX_MODELS_BYTES = 1 << 22
_MAX_ERROR_BYTES = 1 << 16
_MAX_ERROR_CHARACTERS = 300
_MAX_RETRY_AFTER_S = 60.0
_CLIENT_ERRORS = {400, 413, 422}
_BUSY = {429, 503}
_READ_OUT_S = 0.05
_DONE = b"[DONE]"
_EVENTS = "text/event-stream"

Event = dict[str, Any]


class RemoteServer:
    """One server and its connections.

    Args:
        max_streams: connections kept; beyond them a request waits in our own queue.

    Raises:
        SetupError: the file of the key or of the certificates cannot be read.
    """

    def __init__(self, settings: RemoteSettings, max_streams: int) -> None:
        self._settings = settings
        self._closing: set[asyncio.Task[None]] = set()
        two = settings.http != "1.1"
        if two:
            teach_resets()
        self._client = httpx.AsyncClient(
            base_url=settings.base_url,
            headers=_credentials(settings),
            http2=two,
            http1=settings.http != "2",
            # First and later tokens have limits of their own, below.
            timeout=httpx.Timeout(settings.connect_timeout_s, read=None, pool=None),
            # Beside the streams, and those whose end is still being read, a probe must
            # always find a connection.
            limits=httpx.Limits(
                max_connections=2 * max_streams + 2, max_keepalive_connections=max_streams + 2
            ),
            follow_redirects=False,
            verify=_trusted(settings),
            # Somebody's HTTP_PROXY is not meant for this.
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close every connection, which makes the server drop what runs on them."""
        if self._closing:
            await asyncio.wait(self._closing)
        await self._client.aclose()

    async def models(self, timeout_s: float) -> list[Event]:
        """What the server can run, one object each with at least an ``id``.

        Raises:
            EngineFailed: no answer in time, or none that can be understood.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("GET", "models") as response,
            ):
                data = await _read_at_most(response, _MAX_MODELS_BYTES)
        except TimeoutError:
            raise EngineFailed(f"{self._where} did not answer within {timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        if response.status_code != httpx.codes.OK:
            raise EngineFailed(f"{self._where} answers /models with {response.status_code}")
        try:
            return [each for each in json.loads(data)["data"] if isinstance(each["id"], str)]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EngineFailed(f"{self._where} answers /models with something else") from None

    async def completions(self, body: Event) -> AsyncGenerator[Event, None]:
        """Events of one streamed completion, up to its end; closing it aborts.

        Raises:
            InvalidRequest, Overloaded: the server refuses it.
            EngineFailed: the server is silent, gone, broken, or does not make sense.
        """
        request = self._client.build_request("POST", "completions", json=body)
        limit_s = self._settings.first_token_timeout_s
        complete = False
        response: httpx.Response | None = None
        lines: AsyncGenerator[bytes, None] | None = None
        try:
            async with asyncio.timeout(limit_s) as limit:
                response = await self._send(request)
                if response.status_code != httpx.codes.OK:
                    raise await self._refusal(response)
                self._check_kind(response)
                lines = _data_lines(response)
            # The rest of the first token's time, then a limit for each line.
            deadline = limit.when()
            in_turns = InTurns(lines)
            while True:
                async with asyncio.timeout_at(deadline):
                    line = await in_turns.next()
                if line is None:
                    raise EngineFailed(f"{self._where} broke the stream off")
                if line == _DONE:
                    return
                event = self._event(line)
                complete = complete or _has_ended(event)
                yield event
                limit_s = self._settings.token_timeout_s
                deadline = asyncio.get_running_loop().time() + limit_s
        except TimeoutError:
            raise EngineFailed(f"{self._where} was silent for {limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        finally:
            if response is not None:
                await self._close(response, lines, complete)

    async def _close(
        self, response: httpx.Response, lines: AsyncGenerator[bytes, None] | None, complete: bool
    ) -> None:
        """End a response; a reader that is cancelled meanwhile leaves that to us.

        A response that is not closed holds its place among the connections for ever.
        """
        closing = asyncio.create_task(_end(response, lines, complete))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        await asyncio.shield(closing)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send it; once more where the server hung up on a connection that it had kept open."""
        try:
            return await self._client.send(request, stream=True)
        except httpx.RemoteProtocolError:
            # Nothing of an answer came: keep-alive ended as the request was on its way.
            return await self._client.send(request, stream=True)

    def _check_kind(self, response: httpx.Response) -> None:
        """Servers that send events say so, but for a few that say nothing."""
        kind = response.headers.get("content-type", _EVENTS)
        if not kind.lower().startswith(_EVENTS):
            raise EngineFailed(f"{self._where} answers with {kind[:60]!r}, not with a stream")

    def _event(self, line: bytes) -> Event:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise EngineFailed(f"{self._where} sent an event that is no JSON object")
        if "error" in event:
            raise EngineFailed(f"{self._where} gave up: {_message(event)}")
        return event

    async def _refusal(self, response: httpx.Response) -> SidecacheError:
        """What a status that is not 200 means, to the caller or about the server."""
        data = await _read_at_most(response, _MAX_ERROR_BYTES)
        code = response.status_code
        try:
            text = _message(json.loads(data))
        except (ValueError, RecursionError):
            text = "no reason that can be read"
        if code in _CLIENT_ERRORS:
            return InvalidRequest(f"the remote server refuses it: {text}")
        if code in _BUSY:
            return Overloaded(
                f"{self._where} is busy ({code}: {text})", retry_after_s=_retry_after_s(response)
            )
        return EngineFailed(f"{self._where} answers {code}: {text}")

    def _broken(self, error: httpx.HTTPError) -> EngineFailed:
        how = str(error) or type(error).__name__
        return EngineFailed(f"{self._where}: {how[:_MAX_ERROR_CHARACTERS]}")

    @property
    def _where(self) -> str:
        return f"the remote server {self._settings.base_url}"


async def _read_at_most(response: httpx.Response, max_bytes: int) -> bytes:
    """The body, or its beginning if it is longer."""
    data = b""
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > max_bytes:
            break
    return data


async def _data_lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The data of each event, in order; comments and other fields are left out."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise EngineFailed(f"the remote server sent a line beyond {_MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def _end(
    response: httpx.Response, lines: AsyncGenerator[bytes, None] | None, complete: bool
) -> None:
    """Close a response, whatever its server says to that.

    After the last token the rest is read: HTTP/1.1 can then keep the connection.
    """
    with suppress(TimeoutError, httpx.HTTPError, SidecacheError):
        try:
            if complete and lines is not None:
                async with asyncio.timeout(_READ_OUT_S):
                    async for _ in lines:
                        pass
        finally:
            if lines is not None:
                await lines.aclose()
            await response.aclose()


def _has_ended(event: Event) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(
        isinstance(each, dict) and each.get("finish_reason") for each in choices
    )


def _trusted(settings: RemoteSettings) -> ssl.SSLContext | bool:
    path = settings.ca_file
    if path is None:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise SetupError(f"remote.ca_file {path} cannot be read: {error}") from error


def _credentials(settings: RemoteSettings) -> dict[str, str]:
    path = settings.api_key_file
    if path is None:
        return {}
    try:
        return {"Authorization": f"Bearer {path.read_text().strip()}"}
    except OSError as error:
        raise SetupError(f"remote.api_key_file {path} cannot be read: {error.strerror}") from error


def _message(answer: Any) -> str:
    """The words of an error, in any of the forms that servers use."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or "no reason given"
    return " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]


def _retry_after_s(response: httpx.Response) -> float:
    """Retry-After in its form of seconds; a date, or nothing, is one second."""
    try:
        seconds = float(response.headers.get("retry-after", "1"))
    except ValueError:
        return 1.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else 1.0  # noqa: PLR0124 - NaN
