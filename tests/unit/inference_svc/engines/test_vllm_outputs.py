"""A collector that is listened to: each output is told of, and the last one as the last."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from inference_svc.engines.vllm_outputs import VllmOutputs


@dataclass
class Output:
    tokens: list[int]
    finished: bool = False


class Collector:
    """As vLLM's RequestOutputCollector merges."""

    request_id = "internal-1"

    def __init__(self) -> None:
        self.output: Any = None

    def put(self, output: Any) -> None:
        if self.output is None or isinstance(output, Exception):
            self.output = output
        else:
            self.output.tokens += output.tokens
            self.output.finished |= output.finished

    def get_nowait(self) -> Any:
        output, self.output = self.output, None
        if isinstance(output, Exception):
            raise output
        return output


@dataclass
class Engine:
    aborted: list[str] = field(default_factory=list)

    async def abort(self, request_id: str, *, internal: bool) -> None:
        assert internal
        self.aborted.append(request_id)


async def test_each_output_is_told_and_the_last_as_such() -> None:
    """Also one that comes on top of others that nobody has taken."""
    told: list[bool] = []
    collector, engine = Collector(), Engine()
    outputs = VllmOutputs(engine, collector, told.append)
    collector.put(Output([1]))
    collector.put(Output([2]))
    collector.put(Output([3], finished=True))
    assert told == [False, False, True]
    assert outputs.take() == Output([1, 2, 3], finished=True)
    assert outputs.take() is None
    await outputs.abort()
    assert engine.aborted == [], "an ended sequence is not aborted"


async def test_what_came_before_we_listened_is_told() -> None:
    """The engine may be quicker than whoever asked it."""
    told: list[bool] = []
    collector = Collector()
    collector.put(Output([1]))
    VllmOutputs(Engine(), collector, told.append)
    assert told == [False]


async def test_an_error_is_the_last_and_is_raised() -> None:
    """A dead engine puts an error in every collector."""
    told: list[bool] = []
    collector = Collector()
    outputs = VllmOutputs(Engine(), collector, told.append)
    collector.put(RuntimeError("dead"))
    assert told == [True]
    with pytest.raises(RuntimeError, match="dead"):
        outputs.take()


async def test_a_running_sequence_is_aborted_and_no_circle_is_left() -> None:
    """By its internal name; ended, the collector has its own method again."""
    collector, engine = Collector(), Engine()
    outputs = VllmOutputs(engine, collector, lambda _: None)
    await outputs.abort()
    assert engine.aborted == ["internal-1"]
    assert "put" in vars(collector)
    collector.put(Output([], finished=True))
    assert "put" not in vars(collector)
