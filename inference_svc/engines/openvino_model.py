"""A model that OpenVINO GenAI can run: a GGUF file, or a folder with an OpenVINO model."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from inference_svc.engines.checkpoint import read_checkpoint
from inference_svc.engines.gguf import GgufFile, read_gguf
from inference_svc.engines.local_tokenizer import LocalTokenizer, read_tokenizer, tokenizer_of
from sidecache.errors import SetupError

_FILES = ("openvino_model.xml", "openvino_model.bin")
_TOKENIZER = "openvino_tokenizer.xml"
_DEFAULT_CONTEXT = 2048
_UNKNOWN = re.compile(r"Unsupported model architecture ('[^']*')")


@dataclass(frozen=True, slots=True)
class OpenVinoModel:
    """A checked model.

    Attributes:
        revision: sha256 of the weights, hex.
        has_tokenizer: the library has one of its own, which grammars need.
    """

    path: Path
    revision: str
    context_length: int
    tokenizer: LocalTokenizer
    has_tokenizer: bool


def read_model(path: Path) -> OpenVinoModel:
    """Check and hash a model; takes as long as reading all of it.

    Args:
        path: a GGUF file, or a folder with openvino_model.xml and .bin beside the config.json
            and tokenizer.json of its Hugging Face checkpoint.

    Raises:
        SetupError: a file is missing, damaged or truncated; names it.
    """
    return _read_folder(path) if path.is_dir() else _of_gguf(read_gguf(path))


def not_loaded(path: Path, cause: str) -> SetupError:
    """What to tell of a checked model that the library refused all the same."""
    if found := _UNKNOWN.search(cause):
        return SetupError(
            f"{path} is of architecture {found[1]}, which OpenVINO GenAI does not read from a "
            "GGUF file (llama, qwen2 and a few others it does); convert the model to an OpenVINO "
            "folder (optimum-intel) and give that as model_path"
        )
    return SetupError(
        f"model file {path} could not be loaded ({cause}); check that it "
        "is a model OpenVINO GenAI can run and that memory suffices, or fetch it again "
        "with `sidecache pull`"
    )


def _of_gguf(model: GgufFile) -> OpenVinoModel:
    architecture = model.get("general.architecture", str)
    context_length = model.get(f"{architecture}.context_length", int)
    return OpenVinoModel(
        model.path, model.revision, context_length, tokenizer_of(model), has_tokenizer=True
    )


def _read_folder(path: Path) -> OpenVinoModel:
    whole = hashlib.sha256()
    for name in _FILES:
        try:
            with (path / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise SetupError(
                f"{path / name} cannot be read ({error.strerror}); model_path is a GGUF file, or a "
                f"folder with {' and '.join(_FILES)}, config.json and tokenizer.json"
            ) from error
    config = read_checkpoint(path, with_weights=False).config
    context_length = config.get("max_position_embeddings", _DEFAULT_CONTEXT)
    has_tokenizer = (path / _TOKENIZER).is_file()
    return OpenVinoModel(
        path, whole.hexdigest(), int(context_length), read_tokenizer(path), has_tokenizer
    )
