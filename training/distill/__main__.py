"""Train a pruned GGUF model on the whole one's answers, and write it as GGUF again.

``python -m training.distill --teacher IN.gguf --student PRUNED.gguf --output OUT.gguf`` lets the
teacher answer the questions of :mod:`training.distill.questions`, trains the layers above the
first missing one, and prints how well the student follows the teacher on questions held back:
before, after, and after rounding to the output's weights. The student is what
``python -m training.prune`` made of the teacher. Needs torch: the extra ``train``.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

from inference_svc.engines.gguf import read_gguf
from sidecache.errors import SetupError
from training.distill.lesson import Lesson
from training.distill.llama import TorchLlama
from training.distill.questions import questions
from training.distill.teacher import Text, answers
from training.prune.gguf_tensors import TYPES, Model, as_openvino_reads, read_model, write_model


def main() -> None:
    """Read the flags, train, write the file, print what was done as JSON."""
    flags = _flags()
    for path in (flags.teacher, flags.student):
        read_gguf(path)  # says what is wrong with a file better than a parser of tensors
    print(json.dumps(distill(flags)))


def distill(flags: argparse.Namespace) -> dict[str, object]:
    """Write the trained student; how it went.

    Raises:
        SetupError: the student has no layers that could learn to stand in for missing ones.
    """
    whole, pruned = read_model(flags.teacher), read_model(flags.student)
    shared = shared_layers(whole, pruned)
    asked, held = questions()
    begun = time.monotonic()
    texts = _texts(flags, asked + held)
    learnt, judged = texts[: len(asked)], texts[len(asked) :]
    answered_s = time.monotonic() - begun
    # Numbers as the engine that gave the answers, and will run the student, has them.
    teacher = TorchLlama(as_openvino_reads(whole))
    layers = range(shared, int(pruned.number("llama.block_count")))
    student = TorchLlama(as_openvino_reads(pruned), layers)
    lesson = Lesson(teacher, student, shared)
    before = lesson.agreement(judged, flags.batch)
    begun = time.monotonic()
    steps = lesson.learn(
        learnt, steps=flags.steps, batch=flags.batch, rate=flags.rate, limit_s=flags.limit_s
    )
    learnt_s = time.monotonic() - begun
    after = lesson.agreement(judged, flags.batch)
    write_model(student.written(pruned, flags.weights), flags.output)
    written = TorchLlama(as_openvino_reads(read_model(flags.output)))
    rounded = Lesson(teacher, written, shared)
    return {
        "shared_layers": shared,
        "texts": len(learnt),
        "tokens": sum(len(each.answer) for each in learnt),
        "answered_s": round(answered_s, 1),
        "steps": steps,
        "learnt_s": round(learnt_s, 1),
        "before": _rounded(before),
        "after": _rounded(after),
        "as_written": _rounded(rounded.agreement(judged, flags.batch)),
        "bytes": flags.output.stat().st_size,
    }


def _texts(flags: argparse.Namespace, asked: list[str]) -> list[Text]:
    """The teacher's answers, or those that a run before this one has kept."""
    if flags.texts is not None and flags.texts.is_file():
        return [Text(*map(tuple, each)) for each in json.loads(flags.texts.read_text())]
    texts = asyncio.run(answers(flags.teacher, asked, flags.tokens))
    if flags.texts is not None:
        flags.texts.write_text(json.dumps(texts))
    return texts


def shared_layers(whole: Model, pruned: Model) -> int:
    """Layers from the first on that both models have alike.

    Raises:
        SetupError: the student is not the teacher with layers left out.
    """
    kept, all_layers = (int(each.number("llama.block_count")) for each in (pruned, whole))
    one, other = ({each.name: each.data for each in model.tensors} for model in (whole, pruned))
    same = [
        one.get(name) == other.get(name) for name in ("token_embd.weight", "blk.0.ffn_up.weight")
    ]
    if kept >= all_layers or not all(same):
        raise SetupError(
            "the student is not the teacher with layers left out; make it with "
            "`python -m training.prune --drop-layers N` from the same file"
        )
    name = "blk.{}.ffn_up.weight"
    differ = (n for n in range(kept) if one[name.format(n)] != other[name.format(n)])
    return next(differ, kept - 1)


def _rounded(values: tuple[float, float]) -> dict[str, float]:
    divergence, same = values
    return {"divergence": round(divergence, 4), "same_token": round(same, 4)}


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="a GGUF file, llama")
    parser.add_argument("--student", type=Path, required=True, help="the same, pruned")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--weights", choices=sorted(TYPES), default="q8_0", help="of trained layers"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--texts", type=Path, help="keep the answers here, and take them next time")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit-s", type=float, default=1200.0, help="learn no longer than this")
    parser.add_argument("--batch", type=int, default=4, help="answers in a step")
    parser.add_argument("--rate", type=float, default=2e-4, help="of learning, at its highest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
