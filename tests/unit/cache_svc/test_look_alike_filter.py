"""The quick filter: what it may refuse, and that the model would have refused it too."""

import shutil
from pathlib import Path

import pytest

from cache_svc.learned_verifier import Bounds, LearnedVerifier
from cache_svc.look_alike_filter import WINDOW_TOKENS, LookAlikeFilter
from cache_svc.pair_scorer import MODEL_FOLDER
from cache_svc.verifier import Look, Verdict
from sidecache.errors import SetupError
from training.verifier.pairs import read_pairs

ONE, OTHER = "top up by cash", "can I top up with a cheque please"
TUNING = Path(__file__).parents[3] / "training" / "verifier" / "tuning_pairs.jsonl"


@pytest.fixture(scope="module")
def quick(minilm_path: Path) -> LookAlikeFilter:
    return LookAlikeFilter(base=minilm_path)


@pytest.fixture(scope="module")
def verifier(quick: LookAlikeFilter) -> LearnedVerifier:
    return LearnedVerifier(look_alikes=quick)


def test_symmetric_to_the_bit(quick: LookAlikeFilter) -> None:
    """Which prompt is stored and which is asked does not matter."""
    assert quick.score(ONE, OTHER, 0.8) == quick.score(OTHER, ONE, 0.8)


def test_weights_compute_what_was_trained(quick: LookAlikeFilter) -> None:
    """Numpy computes what torch computed with the same weights (training/verifier/distill.py)."""
    assert quick.score(ONE, OTHER, 0.8) == pytest.approx(-1.66917, abs=1e-3)
    assert quick.score("my card was stolen", "where is my card", 0.8) == pytest.approx(
        -6.33889, abs=1e-3
    )


def test_together_as_one_by_one(quick: LookAlikeFilter) -> None:
    """Company changes no logit: neither longer prompts beside it, nor ones outside the window."""
    texts = [OTHER, "where is my card", "word " * (WINDOW_TOKENS + 1), ONE, "a " * 40, "", "cash"]
    looks = [Look(text, 0.6 + at / 100) for at, text in enumerate(texts)]
    together = quick.score_each(ONE, looks)
    assert [logit is None for logit in together] == [not 0 < len(t.split()) <= 44 for t in texts]
    for look, logit in zip(looks, together, strict=True):
        if logit is not None:
            assert logit == pytest.approx(quick.score(ONE, *look), abs=1e-4)
    assert quick.score_each(ONE, []) == []


@pytest.mark.parametrize("text", ["", "word " * (WINDOW_TOKENS + 1)])
def test_outside_its_window_it_says_nothing(quick: LookAlikeFilter, text: str) -> None:
    """A prompt that it was not trained on is left to the model."""
    assert quick.score(text, ONE, 0.9) is None
    assert quick.score(ONE, text, 0.9) is None


@pytest.mark.parametrize(
    "text", ["It's  4.5% — naïve café\n№ 10, x_y?", "a\u00a0b\tc d'e-f 東京", ONE]
)
def test_pieces_are_the_tokenizers(quick: LookAlikeFilter, text: str) -> None:
    """Words are tokenized one by one and kept; that changes no piece."""
    whole = quick._tokenizer.encode(text, add_special_tokens=False).ids
    assert [piece for word in text.split() for piece in quick._ids(word)] == whole


def test_refuses_only_what_the_model_refuses(verifier: LearnedVerifier) -> None:
    """Of the pairs kept for tuning it refuses a good part, and none that the model would serve."""
    unfiltered = LearnedVerifier(bounds=Bounds(foreseen=float("-inf")))
    foreseen = 0
    for pair in read_pairs(TUNING):
        verdict = verifier.screen(pair.a, pair.b, 0.8)
        if verdict is not None and verdict.rule == "filter":
            foreseen += 1
            assert not unfiltered.verify(pair.a, pair.b, 0.8).accepted, pair
    assert foreseen >= 15


def test_verify_says_what_the_screen_said(verifier: LearnedVerifier) -> None:
    """A verdict of the screen is the verifier's last word, and says who spoke it."""
    screened = verifier.screen("my card was stolen", "where is my card", 0.8)
    assert screened == verifier.verify("my card was stolen", "where is my card", 0.8)
    assert isinstance(screened, Verdict)
    assert screened.rule == "filter"
    assert "-6.34 is under -3.50" in screened.reason


@pytest.mark.parametrize("name", ["look_alike.npz", "look_alike.onnx"])
def test_damaged_files_say_so(name: str, tmp_path: Path, minilm_path: Path) -> None:
    """A flipped byte is an error that names the file, never a wrong refusal."""
    folder = Path(shutil.copytree(MODEL_FOLDER, tmp_path / "model"))
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(SetupError, match=rf"{name} is damaged.*verifier to rules"):
        LookAlikeFilter(folder, minilm_path)
