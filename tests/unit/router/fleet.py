"""Workers, tickets and a clock for tests of routing; nothing here opens a connection."""

import grpc

from router.model import ServedModel
from router.prefix import PrefixHint
from router.prompt import RoutedPrompt
from router.ticket import Ticket
from router.worker import Worker
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import worker_pb2


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


MODEL = worker_pb2.GetModelResponse(
    name="m",
    revision="r1",
    context_length=100_000,
    vocabulary_size=1000,
    tokenizer_fingerprint="tokenizer",
    chat_template_fingerprint="template",
)


def make_worker(name: str, epoch: str = "e1", clock: Clock | None = None) -> Worker:
    """A worker that has introduced itself; its channel connects when it is first used."""
    worker = Worker(f"127.0.0.1:{name}", grpc.aio.insecure_channel("127.0.0.1:1"), clock or Clock())
    facts = worker_pb2.GetModelResponse()
    facts.CopyFrom(MODEL)
    facts.worker, facts.epoch = name, epoch
    worker.introduce(facts)
    return worker


def make_prompt(
    request: pb.GenerateRequest, tenant: str = "acme", hint: PrefixHint | None = None
) -> RoutedPrompt:
    """A prompt as the relay hands it to the pool."""
    return RoutedPrompt(make_ticket(request, tenant), hint)


def make_ticket(request: pb.GenerateRequest, tenant: str = "acme") -> Ticket:
    """A ticket of the model m, with ten seconds of time."""
    model = ServedModel.from_worker(MODEL)
    return Ticket("id", tenant, request, model, None, False, False, 10.0, 0.0)


def chat(*contents: str, salt: str = "") -> pb.GenerateRequest:
    """A chat whose turns alternate, the user's first."""
    roles = ("user", "assistant")
    messages = [
        pb.ChatMessage(role=roles[n % 2], content=content) for n, content in enumerate(contents)
    ]
    return pb.GenerateRequest(
        model="m", chat=pb.Chat(messages=messages), max_tokens=8, n=1, cache_salt=salt
    )
