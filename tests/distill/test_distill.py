"""A pruned model learns from the whole one."""

import numpy as np
import pytest
import torch

from sidecache.errors import SetupError
from tests.unit.training.test_prune import LAYERS, WORDS, tiny
from training.distill.__main__ import shared_layers
from training.distill.lesson import Lesson
from training.distill.llama import TorchLlama
from training.distill.questions import questions
from training.distill.teacher import Text
from training.prune.gguf_tensors import without_layers
from training.prune.llama import Llama

DROPPED = 2
# On matrices this small more threads only wait for each other.
torch.set_num_threads(1)


def texts(count: int = 16) -> list[Text]:
    draw = np.random.default_rng(1)
    lengths = draw.integers(4, 9, count)
    return [
        Text(tuple(draw.integers(0, WORDS, 3).tolist()), tuple(draw.integers(0, WORDS, n).tolist()))
        for n in lengths
    ]


def lesson() -> Lesson:
    pruned = without_layers(tiny(), [DROPPED])
    student = TorchLlama(pruned, range(DROPPED, LAYERS - 1))
    return Lesson(TorchLlama(tiny()), student, DROPPED)


def test_both_implementations_give_the_same_numbers() -> None:
    """torch's forward pass is the one that pruning measures with, to float32's rounding."""
    plain, ids = Llama(tiny()), [5, 6, 7, 8, 9]
    hidden = plain.embed(ids)
    for number in range(LAYERS):
        hidden = plain.layer(number, hidden)
    ours = TorchLlama(tiny())
    with torch.no_grad():
        given = ours.run(ours.embed(torch.tensor([ids])), range(LAYERS))
    assert np.allclose(given[0].numpy(), hidden, atol=1e-4)


def test_the_student_comes_nearer_to_the_teacher() -> None:
    """Divergence on the texts falls by more than half, and what was frozen has not moved."""
    taught = lesson()
    frozen = [each.clone() for each in taught._student._layers[0].values()]
    before = taught.agreement(texts(), batch=4)
    steps = taught.learn(texts(), steps=80, batch=4, rate=3e-3, limit_s=1e6)
    after = taught.agreement(texts(), batch=4)
    assert steps == 80
    assert after.divergence < before.divergence / 2
    assert all(map(torch.equal, taught._student._layers[0].values(), frozen))


def test_padding_changes_nothing() -> None:
    """A text counts the same alone as beside longer ones."""
    taught, given = lesson(), texts()
    one_by_one = taught.agreement(given, batch=1)
    together = taught.agreement(given, batch=len(given))
    assert one_by_one.divergence == pytest.approx(together.divergence, rel=1e-4)
    assert one_by_one.same == together.same


def test_time_ends_a_lesson() -> None:
    """No step is begun after the time is up."""
    assert lesson().learn(texts(), steps=5, batch=4, rate=1e-3, limit_s=1e-9) == 0


def test_what_was_learnt_is_written() -> None:
    """Only the layers that learn change, and the file gives the numbers that were learnt."""
    taught, pruned = lesson(), without_layers(tiny(), [DROPPED])
    taught.learn(texts(), steps=3, batch=4, rate=1e-2, limit_s=1e6)
    written = taught._student.written(pruned, "f32")
    again = Lesson(TorchLlama(tiny()), TorchLlama(written), DROPPED)
    assert again.agreement(texts(), 4).divergence == pytest.approx(
        taught.agreement(texts(), 4).divergence, rel=1e-5
    )
    changed = {
        one.name.split(".")[1]
        for one, other in zip(pruned.tensors, written.tensors, strict=True)
        if one.data != other.data
    }
    assert changed == {str(each) for each in range(DROPPED, LAYERS - 1)}


def test_only_a_pruned_teacher_is_a_student() -> None:
    """Layers before the first missing one are shared; any other model is refused."""
    assert shared_layers(tiny(), without_layers(tiny(), [DROPPED])) == DROPPED
    for other in (tiny(), without_layers(tiny(seed=1), [DROPPED])):
        with pytest.raises(SetupError, match="layers left out"):
            shared_layers(tiny(), other)


def test_no_question_is_both_learnt_and_judged() -> None:
    """Judging on what was learnt would flatter."""
    learnt, judged = questions()
    assert not set(learnt) & set(judged)
    assert len(set(learnt)) == len(learnt) == 7 * len(judged)
