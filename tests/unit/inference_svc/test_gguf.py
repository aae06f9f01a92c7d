"""A model file is checked before a native engine may see it."""

import re
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_svc.engines.gguf import read_gguf
from sidecache.errors import SetupError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def small_gguf() -> bytes:
    """A whole GGUF file: three keys, one f32 tensor of 64 values."""
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.context_length") + struct.pack("<II", 4, 128),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("Ġb"),
    ]
    tensor = text("weights") + struct.pack("<IQIQ", 1, 64, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return header + b"\0" * (-len(header) % 32) + b"\0" * 256


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    """Scalars, strings and arrays come out as they were written."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    model = read_gguf(path)
    assert model.get("general.architecture", str) == "llama"
    assert model.get("llama.context_length", int) == 128
    assert model.get("tokenizer.ggml.tokens", list) == ["a", "Ġb"]
    assert re.fullmatch("[0-9a-f]{64}", model.revision)


def test_a_missing_key_names_itself(tmp_path: Path) -> None:
    """What the header lacks, or has as another kind, is named with the file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    with pytest.raises(SetupError, match=r"model\.gguf.*'tokenizer\.chat_template'"):
        read_gguf(path).get("tokenizer.chat_template", str)
    with pytest.raises(SetupError, match=r"'general\.architecture'"):
        read_gguf(path).get("general.architecture", int)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(small_gguf()) - 1))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    """Wherever a download broke off, the error names the file and what to do."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf()[:length])
    with pytest.raises(SetupError, match=r"model\.gguf.*sidecache pull"):
        read_gguf(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_an_error_and_no_crash(tmp_path: Path, at: int, damage: bytes) -> None:
    """Whatever bytes a header holds, reading it ends in a model or in a SetupError."""
    path = tmp_path / "model.gguf"
    whole = small_gguf()
    path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
    with suppress(SetupError):
        read_gguf(path)


@pytest.mark.parametrize("content", [b"", b"just a text file, not a model\n", b"GGUF"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A text file or an empty one is called what it is."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"notes\.txt is not a usable GGUF file"):
        read_gguf(path)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    """So does a folder in a file's place."""
    with pytest.raises(SetupError, match=r"nowhere\.gguf does not exist.*sidecache pull"):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(SetupError, match="cannot be read"):
        read_gguf(tmp_path)
