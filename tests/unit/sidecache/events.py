"""Short names for the events of a stream."""

from sidecache.v1 import inference_pb2 as pb

STARTED = pb.GenerateResponse(
    started=pb.Started(
        request_id="r1", source=pb.SOURCE_ENGINE, worker="w1", trace_id="ab" * 16, model="m"
    )
)
PROGRESS = pb.GenerateResponse(progress=pb.Progress())


def delta(offset: int, *ids: int, text: str = "x", choice: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        delta=pb.Delta(offset=offset, token_ids=ids, text=text, choice=choice)
    )


def migrated(offset: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        migrated=pb.Migrated(from_worker="w1", to_worker="w2", offset=offset)
    )


def finished(choice: int = 0, tokens: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        finished=pb.Finished(
            choice=choice,
            reason=pb.FINISH_REASON_STOP,
            usage=pb.Usage(prompt_tokens=7, completion_tokens=tokens),
        )
    )
