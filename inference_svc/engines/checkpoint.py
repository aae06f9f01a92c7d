"""A Hugging Face checkpoint folder, checked before an engine is trusted with it.

An engine that chokes on a checkpoint does so in a process of its own, minutes
later and with somebody else's words; what can be told from the files is told here.

Source of the layout: the safetensors specification, github.com/huggingface/safetensors.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecache.errors import SetupError

_MAX_HEADER_BYTES = 100 * 2**20
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked folder.

    Attributes:
        revision: sha256 over the names and hashes of config and weights, hex.
        config: config.json.
        end_token_ids: tokens that end an answer, of config and generation config.
    """

    folder: Path
    revision: str
    config: dict[str, Any]
    end_token_ids: frozenset[int]

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output layer: ids the model may give."""
        return int(_text_part(self.config)["vocab_size"])

    @property
    def quantized(self) -> bool:
        """Whether config.json says that the weights are quantized."""
        return any("quantization_config" in part for part in (self.config, _text_part(self.config)))


def read_checkpoint(folder: Path, *, with_weights: bool = True) -> Checkpoint:
    """Check and hash a folder; takes as long as reading all of it.

    Args:
        folder: as Hugging Face stores a model.
        with_weights: False where the weights are made up (load_format dummy).

    Raises:
        SetupError: a file is missing, damaged or truncated; names it.
    """
    if not folder.is_dir():
        raise SetupError(
            f"model folder {folder} does not exist; model_path is a folder with config.json, "
            "tokenizer.json and *.safetensors, as Hugging Face stores a model"
        )
    config = _read_json(folder / "config.json")
    if not config.get("architectures"):
        raise SetupError(f"{folder / 'config.json'} names no architectures: not a model's config")
    if not isinstance(_text_part(config).get("vocab_size"), int):
        raise SetupError(f"{folder / 'config.json'} has no usable vocab_size")
    hashed = [folder / "config.json"]
    if with_weights:
        hashed += _weight_files(folder)
    return Checkpoint(folder, _revision(hashed), config, _end_tokens(folder, config))


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Of a model that also sees, the part that writes."""
    part = config.get("text_config")
    return part if isinstance(part, dict) and "vocab_size" not in config else config


def _weight_files(folder: Path) -> list[Path]:
    """The weights, each checked to be as long as its header says."""
    if (folder / _INDEX).is_file():
        names = set(_read_json(folder / _INDEX).get("weight_map", {}).values())
        files = [folder / str(name) for name in sorted(names)]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SetupError(f"model folder {folder} has no *.safetensors; was the download cut short?")
    for path in files:
        _check_safetensors(path)
    return files


def _check_safetensors(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size, _MAX_HEADER_BYTES)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
    except OSError as error:
        raise SetupError(f"weights {path} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SetupError(f"weights {path} are damaged: no safetensors header") from error
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise SetupError(f"weights {path} are truncated: {size} bytes of {needed}; fetch it again")


def _revision(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()


def _end_tokens(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    ids: set[int] = set()
    sources = [_text_part(config)]
    if (folder / "generation_config.json").is_file():
        sources.append(_read_json(folder / "generation_config.json"))
    for source in sources:
        value = source.get("eos_token_id")
        ids.update(each for each in (value if isinstance(value, list) else [value]) if each)
    return frozenset(ids)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} holds no JSON object")
    return value
