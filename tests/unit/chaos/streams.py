"""Right streams, written down as a client would have seen them."""

from collections.abc import Iterable, Sequence

from chaos.history import Call, Ended, Received
from chaos.reference import ScriptedReference
from inference_svc.engines.scripted import scripted_text
from sidecache.v1 import inference_pb2 as pb

REFERENCE = ScriptedReference()


def ask(
    prompt: str = "why",
    max_tokens: int = 12,
    n: int | None = None,
    stop: Sequence[str] = (),
    seed: int | None = None,
) -> pb.GenerateRequest:
    sampling = None if seed is None else pb.SamplingParameters(seed=seed, temperature=0.7)
    return pb.GenerateRequest(text=prompt, max_tokens=max_tokens, n=n, stop=stop, sampling=sampling)


def events_of(
    request: pb.GenerateRequest,
    sizes: Sequence[int] = (1, 3, 2),
    *,
    source: pb.Source.ValueType = pb.SOURCE_ENGINE,
    entry_id: str = "",
) -> list[pb.GenerateResponse]:
    """The right stream, its choices in turn, in deltas of these sizes over and over."""
    started = pb.Started(request_id="r", source=source, worker="w", cache_entry_id=entry_id)
    events = [pb.GenerateResponse(started=started)]
    ends = []
    for choice in range(request.n or 1):
        answer = REFERENCE.answer(request, choice)
        position = turn = 0
        while position < len(answer.token_ids):
            ids = answer.token_ids[position : position + sizes[turn % len(sizes)]]
            text = "".join(scripted_text(token) for token in ids)
            # A stop string cuts the text, not the ids.
            text = text[: len(answer.text) - (answer.readable[position - 1] if position else 0)]
            events.append(
                pb.GenerateResponse(
                    delta=pb.Delta(choice=choice, offset=position, token_ids=ids, text=text)
                )
            )
            position += len(ids)
            turn += 1
        usage = pb.Usage(
            prompt_tokens=REFERENCE.prompt_tokens(request),
            completion_tokens=len(answer.token_ids),
        )
        ends.append(
            pb.GenerateResponse(
                finished=pb.Finished(choice=choice, reason=answer.reason, usage=usage)
            )
        )
    return events + ends


def call_of(
    request: pb.GenerateRequest,
    events: Iterable[pb.GenerateResponse],
    *,
    number: int = 0,
    tenant: str = "a",
    ended: Ended | None = None,
) -> Call:
    """A record in which event k came k milliseconds after the call was sent."""
    sent_s = 100.0 * number
    kept = list(events)
    entries: list[Received | Ended] = [
        Received(sent_s + 0.001 * (at + 1), event) for at, event in enumerate(kept)
    ]
    end_s = sent_s + 0.001 * (len(kept) + 1)
    entries.append(ended or Ended(end_s, "OK"))
    return Call(number, tenant, request, sent_s, "", entries)
