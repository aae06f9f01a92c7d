"""What a client makes of a lost connection, against a server that answers as it is told."""

import asyncio

import pytest

from sidecache import errors
from sidecache.client import SidecacheClient
from sidecache.errors import SidecacheError
from sidecache.resumption import DEFAULT_WINDOW_S, MAX_RESUMPTIONS
from sidecache.v1 import inference_pb2 as pb

from .conftest import AttachContext, AttachScript, Context, ScriptedService
from .events import STARTED, delta, finished

FOREIGN = pb.GenerateResponse(started=pb.Started(request_id="another"))
REST = (STARTED, delta(1, 2, text="b"), finished(tokens=2))


async def lost(context: Context) -> None:
    """One token, and the connection is gone."""
    await context.write(STARTED)
    await context.write(delta(0, 1, text="a"))
    raise errors.Unavailable("connection reset")


def going_on(*events: pb.GenerateResponse, error: SidecacheError | None = None) -> AttachScript:
    """An Attach that writes these, then ends as told."""

    async def script(context: AttachContext) -> None:
        for event in events:
            await context.write(pb.AttachResponse(event=event))
        if error is not None:
            raise error

    return script


async def complete(service: ScriptedService, **options: float) -> list[int]:
    """The ids of a stream that may be gone on with."""
    async with asyncio.timeout(10), SidecacheClient(service.address, api_key="k") as client:
        stream = client.generate("hi", resume=True, **options)  # type: ignore[arg-type]  # options
        async with stream:
            return (await stream.complete()).token_ids


async def test_it_goes_on_where_it_was_with_the_same_key(service: ScriptedService) -> None:
    """The request id, the next token's offset, the credentials."""
    service.script, service.attach = lost, going_on(*REST)
    assert await complete(service) == [1, 2]
    assert service.attached == [pb.AttachRequest(request_id="r1", offset=1)]
    assert service.metadata[-1]["authorization"] == "Bearer k"


async def test_the_router_is_asked_to_keep_the_stream(service: ScriptedService) -> None:
    """For the default time, or for the caller's own."""
    service.script, service.attach = lost, going_on(*REST)
    await complete(service)
    await complete(service, attach_window_s=3)
    windows = [request.attach_window.ToNanoseconds() / 1e9 for request in service.requests]
    assert windows == [DEFAULT_WINDOW_S, 3]


async def test_a_connection_of_no_use_is_given_up(service: ScriptedService) -> None:
    """One that breaks again and again does not keep a client busy for ever."""
    service.script = lost
    service.attach = going_on(STARTED, error=errors.Unavailable("reset again"))
    with pytest.raises(errors.Unavailable, match="reset again"):
        await complete(service)
    assert len(service.attached) == MAX_RESUMPTIONS


@pytest.mark.parametrize(
    "word", [errors.NoHealthyWorker, errors.EngineFailed, errors.Draining, errors.StreamInterrupted]
)
async def test_a_servers_own_word_is_no_lost_connection(
    service: ScriptedService, word: type[SidecacheError]
) -> None:
    """It is told as it is, and nothing is asked again."""

    async def refusing(context: Context) -> None:
        await context.write(STARTED)
        raise word("so it is")

    service.script = refusing
    with pytest.raises(word):
        await complete(service)
    assert not service.attached


@pytest.mark.parametrize("word", [errors.NoHealthyWorker, errors.Forbidden, errors.InvalidRequest])
async def test_what_the_router_says_to_the_return_is_told(
    service: ScriptedService, word: type[SidecacheError]
) -> None:
    """Once; another try would be told the same."""
    service.script, service.attach = lost, going_on(error=word("so it is"))
    with pytest.raises(word, match="so it is"):
        await complete(service)
    assert len(service.attached) == 1


async def test_a_stream_that_is_not_kept_is_the_lost_connections_error(
    service: ScriptedService,
) -> None:
    """NotFound would read as if the caller had asked for something that never was."""
    service.script = lost
    service.attach = going_on(error=errors.NotFound("no such stream", kind="stream", name="r1"))
    with pytest.raises(errors.Unavailable, match="connection reset") as failed:
        await complete(service)
    assert isinstance(failed.value.__cause__, errors.NotFound)


async def test_nothing_is_tried_beyond_the_deadline(service: ScriptedService) -> None:
    """However long the router would keep the stream."""
    service.script = lost
    service.attach = going_on(error=errors.Unavailable("still away"))
    with pytest.raises(errors.Unavailable, match="connection reset"):
        await complete(service, timeout_s=0.3, attach_window_s=60)


async def test_the_rest_has_what_is_left_of_the_deadline(service: ScriptedService) -> None:
    """A stream that is gone on with has no more time than an uncut one."""
    left: list[float] = []

    async def slow(context: Context) -> None:
        await asyncio.sleep(0.3)
        await lost(context)

    async def attach(context: AttachContext) -> None:
        left.append(context.time_remaining() or 0.0)
        await going_on(*REST)(context)

    service.script, service.attach = slow, attach
    await complete(service, timeout_s=5.0)
    assert left[0] <= 4.71


@pytest.mark.parametrize("events", [(FOREIGN,), (delta(1, 2),), ()])
async def test_another_stream_is_not_passed_off_as_ones_own(
    service: ScriptedService, events: tuple[pb.GenerateResponse, ...]
) -> None:
    """Nor one that does not start; and the call is not left open."""

    async def attach(context: AttachContext) -> None:
        await going_on(*events)(context)
        if events:
            await asyncio.Event().wait()

    service.script, service.attach = lost, attach
    with pytest.raises(errors.BrokenInvariant):
        await complete(service)
    async with asyncio.timeout(5):
        await service.detached.wait()


async def test_who_gives_up_meanwhile_gets_nothing_more(service: ScriptedService) -> None:
    """The stream that comes back to a caller who left is let go of."""
    service.script = lost
    async with asyncio.timeout(10), SidecacheClient(service.address) as client:
        stream = client.generate("hi", resume=True)

        async def attach(context: AttachContext) -> None:
            stream.cancel()
            await going_on(STARTED)(context)
            await asyncio.Event().wait()

        service.attach = attach
        async with stream:
            with pytest.raises(errors.Unavailable, match="connection reset"):
                await stream.complete()
        await service.detached.wait()


async def test_who_gave_up_before_does_not_return(service: ScriptedService) -> None:
    """The connection's loss had come already, unread, when its caller left."""
    service.script, service.attach = lost, going_on(*REST)
    async with (
        asyncio.timeout(10),
        SidecacheClient(service.address) as client,
        client.generate("hi", resume=True) as stream,
    ):
        await anext(stream)
        await anext(stream)
        await stream._call.code()  # type: ignore[union-attr]  # a call of Generate
        stream.cancel()
        with pytest.raises(errors.Unavailable, match="connection reset"):
            await anext(stream)
    assert not service.attached


async def test_a_stream_that_was_attached_to_can_be_lost_before_it_starts(
    service: ScriptedService,
) -> None:
    """The caller still gets its `started`, once."""
    scripts = [going_on(error=errors.Unavailable("reset")), going_on(*REST)]

    async def attach(context: AttachContext) -> None:
        await scripts.pop(0)(context)

    service.attach = attach
    async with (
        asyncio.timeout(10),
        SidecacheClient(service.address) as client,
        client.attach("r1", 1) as stream,
    ):
        events = [event async for event in stream]
    assert [event.HasField("started") for event in events] == [True, False, False]
    assert stream.started == STARTED.started
