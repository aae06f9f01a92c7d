"""The pair model: its files, its bounds, its repeatability."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.pair_scorer import MODEL_FOLDER, WINDOW_TOKENS, PairScorer
from sidecache.errors import SetupError

ONE, OTHER = "How do I cancel my gym membership?", "I'd like to end my gym membership, how?"


@pytest.fixture(scope="module")
def scorer(minilm_path: Path) -> PairScorer:
    return PairScorer(base=minilm_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL_FOLDER, tmp_path / "model"))


def test_symmetric_to_the_bit(scorer: PairScorer) -> None:
    """Which prompt is stored and which is asked does not matter."""
    assert scorer.score(ONE, OTHER) == scorer.score(OTHER, ONE)


def test_same_score_in_another_process(scorer: PairScorer) -> None:
    """Two sidecars, or one before and after a restart, judge alike."""
    program = (
        "from cache_svc.pair_scorer import PairScorer; "
        f"print(PairScorer().score({ONE!r}, {OTHER!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) == scorer.score(ONE, OTHER)


def test_too_long_for_the_window_is_refused(scorer: PairScorer) -> None:
    """A pair that the model cannot see whole is no score, and a veto rather than a guess."""
    long = "word " * WINDOW_TOKENS
    assert scorer.score(long, long + "more") is None
    verdict = LearnedVerifier(scorer).verify(long, long + "more", 0.99)
    assert not verdict.accepted
    assert "too long" in verdict.reason


@pytest.mark.parametrize("name", ["adapters.npz", "graph.onnx"])
def test_damaged_file_says_so(folder: Path, minilm_path: Path, name: str) -> None:
    """A flipped byte is an error that names the file and the way out, never a wrong score."""
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(SetupError, match=rf"{name} is damaged.*semantic.verifier to rules"):
        PairScorer(folder, minilm_path)


@pytest.mark.parametrize("name", ["adapters.npz", "graph.onnx", "manifest.json"])
def test_missing_file_says_so(folder: Path, minilm_path: Path, name: str) -> None:
    """An incomplete install is one clear error at start."""
    (folder / name).unlink()
    with pytest.raises(SetupError, match=r"semantic\.verifier to rules"):
        PairScorer(folder, minilm_path)


@pytest.mark.parametrize("content", [None, b"", b"another model"])
def test_foreign_base_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Adapters are never put on weights that they were not trained on."""
    base = tmp_path / "model.onnx"
    if content is not None:
        base.write_bytes(content)
    with pytest.raises(SetupError, match=r"sidecache pull"):
        PairScorer(base=base)


def test_costs_milliseconds(scorer: PairScorer) -> None:
    """A pair of ordinary prompts costs some 3 ms of one core; the bound leaves room for noise."""
    spent = []
    for _ in range(15):
        started = time.thread_time()
        scorer.score(ONE, OTHER)
        spent.append(time.thread_time() - started)
    assert np.median(spent) < 0.02
