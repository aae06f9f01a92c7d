"""The gate between a worker that began early and its client."""

from router.speculation import Gate
from sidecache.v1 import inference_pb2 as pb

STARTED = pb.GenerateResponse(started=pb.Started(request_id="r"))
PROGRESS = pb.GenerateResponse(progress=pb.Progress())
TOKEN = pb.GenerateResponse(delta=pb.Delta(token_ids=[1], text="a"))


class Kept:
    """A reader that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[pb.GenerateResponse] = []

    async def write(self, message: pb.GenerateResponse) -> None:
        self.messages.append(message)


async def test_nothing_passes_before_the_first_token() -> None:
    """It ends the race; then all comes in order, of heartbeats the newest."""
    kept, ends = Kept(), []
    gate = Gate(kept, lambda: ends.append("first token"))
    for message in (STARTED, PROGRESS, PROGRESS, PROGRESS):
        await gate.write(message)
    assert not kept.messages
    assert not ends
    await gate.write(TOKEN)
    assert ends == ["first token"]
    assert kept.messages == [STARTED, PROGRESS, TOKEN]
    assert gate.is_open


async def test_a_shut_gate_drops_the_stream() -> None:
    """The client has another answer; whoever reads along still gets this one."""
    kept = Kept()
    gate = Gate(kept, lambda: None)
    await gate.write(STARTED)
    gate.shut()
    await gate.write(TOKEN)
    assert not kept.messages
    assert not gate.is_open


async def test_after_a_miss_nothing_is_held() -> None:
    """A heartbeat passes too, with what came before it."""
    kept = Kept()
    gate = Gate(kept, lambda: None)
    await gate.write(STARTED)
    gate.open()
    await gate.write(PROGRESS)
    assert kept.messages == [STARTED, PROGRESS]
