"""A small cross-encoder that reads both prompts at once.

It is the embedder's own network with low-rank adapters (LoRA, Hu et al., arXiv
2106.09685): the frozen weights are read out of the MiniLM file that
``sidecache pull`` fetches, and only 0.7 MB of adapters ship with the project
(``pair_model/``; made by ``training/verifier``).
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sidecache import weights
from sidecache.catalogue import CATALOGUE
from sidecache.errors import SetupError

MODEL_FOLDER = Path(__file__).parent / "pair_model"
TOKENIZER = Path(__file__).parent / "minilm" / "tokenizer.json"
BASE = "minilm-l6-v2-int8"
_INT8_MAX = 127
# Of both prompts together; the model was trained on 64.
WINDOW_TOKENS = 128

Array = NDArray[Any]


class PairScorer:
    """How surely one answer serves two prompts, as a logit.

    Args:
        folder: graph, adapters and their manifest.
        base: the embedder's weights; None: those that were pulled.

    Raises:
        SetupError: a file is missing or is not the pinned content.
    """

    def __init__(self, folder: Path = MODEL_FOLDER, base: Path | None = None) -> None:
        manifest = read_manifest(folder)
        base = weights.locate(BASE) if base is None else base
        frozen = read_base(base, manifest["base"]["arrays"])
        learned = read_adapters(folder / "adapters.npz")
        arrays = _merged(frozen, learned)
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._session = open_session(folder / "graph.onnx", arrays)

    def score(self, one: str, other: str) -> float | None:
        """The logit, the same whichever prompt comes first; None: too long to be seen whole.

        Blocking; 1 to 8 ms. Safe to call from several threads.
        """
        first, second = sorted((one, other))
        encoding = self._tokenizer.encode(first, second)
        if len(encoding.ids) > WINDOW_TOKENS:
            return None
        feed = {
            "pieces": np.array(encoding.ids, np.int64),
            "segments": np.array(encoding.type_ids, np.int64),
        }
        (logit,) = self._session.run(None, feed)
        return float(logit[0, 0])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, once every file that it names has the hash it says."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        hashes = {name: _sha256(folder / name) for name in manifest["sha256"]}
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(
            f"the pair model in {folder} cannot be read ({type(error).__name__}); install "
            "Sidecache again, or set semantic.verifier to rules"
        ) from error
    for name, found in hashes.items():
        if found != manifest["sha256"][name]:
            raise SetupError(
                f"{folder / name} is damaged (not the pinned content); install Sidecache again, "
                "or set semantic.verifier to rules"
            )
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_base(path: Path, places: Mapping[str, tuple[int, str, list[int]]]) -> dict[str, Array]:
    """The frozen arrays, from where they lie in the embedder's file."""
    raw = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(raw).hexdigest() != CATALOGUE[BASE].sha256:
        raise SetupError(
            f"{path} is not the MiniLM that the pair model was trained on; run `sidecache pull`, "
            "or set semantic.verifier to rules"
        )
    return {
        name: np.frombuffer(raw, kind, int(np.prod(shape)), offset).reshape(shape)
        for name, (offset, kind, shape) in places.items()
    }


def read_adapters(path: Path) -> dict[str, Array]:
    """What was learned, as float32."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SetupError(f"{path} cannot be read ({type(error).__name__})") from error


def _merged(frozen: Mapping[str, Array], learned: Mapping[str, Array]) -> dict[str, Array]:
    """Every array of the graph: the frozen ones, with what was learned put into them."""
    arrays = {name: array for name, array in frozen.items() if not name.startswith("position")}
    arrays["position"] = frozen["position.q"] * frozen["position.scale"]
    arrays |= {n: array for n, array in learned.items() if not n.endswith((".down", ".up"))}
    for name in [n.removesuffix(".q") for n in frozen if n[0].isdigit() and n.endswith(".q")]:
        quantised, scale = frozen[f"{name}.q"], frozen[f"{name}.scale"]
        if f"{name}.down" in learned:
            change = learned[f"{name}.down"] @ learned[f"{name}.up"]
            quantised, scale = _quantise(quantised * scale + change)
        arrays[f"{name}.q"], arrays[f"{name}.scale"] = quantised, scale.reshape(-1)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _quantise(matrix: Array) -> tuple[Array, Array]:
    """Symmetric int8 with one scale a column."""
    scale = np.maximum(np.abs(matrix).max(axis=0, keepdims=True), 1e-12) / _INT8_MAX
    return np.rint(matrix / scale).astype(np.int8), scale.astype(np.float32)


def open_session(path: Path, arrays: Mapping[str, Array]) -> onnxruntime.InferenceSession:
    """A graph without weights, and its weights; runs on the caller's thread alone.

    Raises:
        SetupError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    try:
        return onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        raise SetupError(
            f"the graph {path} cannot be loaded ({type(error).__name__}); "
            "onnxruntime may be too old"
        ) from error
