"""The answers of an undisturbed run, as what later runs are held against."""

from collections.abc import Iterable
from dataclasses import dataclass

from chaos.history import Call
from chaos.reference import Answer
from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class RecordedReference:
    """Knows the answer to each request that was asked before; see chaos.reference."""

    answers: dict[bytes, tuple[Answer, int]]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> "RecordedReference":
        """Take whole answers as the truth.

        Raises:
            RuntimeError: one of them did not end well.
        """
        return cls({_key(call.request): _read(call) for call in calls})

    def answer(self, request: pb.GenerateRequest, choice: int) -> Answer:
        return self.answers[_key(request)][0]

    def prompt_tokens(self, request: pb.GenerateRequest) -> int:
        return self.answers[_key(request)][1]

    def max_tokens(self, request: pb.GenerateRequest) -> int:
        return request.max_tokens


def _key(request: pb.GenerateRequest) -> bytes:
    return request.SerializeToString(deterministic=True)


def _read(call: Call) -> tuple[Answer, int]:
    if call.code != "OK":
        text = call.ended.text if call.ended else "no end"
        raise RuntimeError(f"the undisturbed run failed: {call.code} {text}")
    ids = [token for event in call.events() for token in event.delta.token_ids]
    text = "".join(event.delta.text for event in call.events())
    finished = next(event.finished for event in call.events() if event.HasField("finished"))
    # How far the text lags behind each token depends on how tokens came together.
    readable = (len(text),) * len(ids)
    answer = Answer(tuple(ids), text, readable, finished.reason)
    return answer, finished.usage.prompt_tokens
