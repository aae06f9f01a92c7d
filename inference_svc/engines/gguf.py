"""What a GGUF file says about itself, read before an engine is trusted with it.

A native engine may take the process down on a file that is not what it claims
to be, so the header is parsed here with every length checked, and the file must
be as long as its tensors need.

Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from sidecache.errors import SetupError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# A header beyond these is damage, not a model.
_MAX_STRING_BYTES = 16 * 2**20
_MAX_ITEMS = 2**22
_MAX_DIMENSIONS = 4

# GGUF value types, as struct formats.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

# ggml tensor type: (values in a block, bytes of a block).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24),
    8: (32, 34), 9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144),
    13: (256, 176), 14: (256, 210), 15: (256, 292), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
# Counts for a type that is not listed: no type is smaller, so a file of a newer
# format is never called truncated.
_SMALLEST_BLOCK = (256, 50)

Value = int | float | bool | str | list["Value"]
V = TypeVar("V", int, str, list[Value])


class _Damaged(Exception):
    """The header does not hold what it announces."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked GGUF file.

    Attributes:
        path: where it lies.
        revision: sha256 of the whole file, hex.
        metadata: the header's keys and values.
    """

    path: Path
    revision: str
    metadata: dict[str, Value]

    def get(self, key: str, kind: type[V]) -> V:
        """One value of the header.

        Raises:
            SetupError: the key is missing or of another kind.
        """
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise _refusal(self.path, f"its header has no usable {key!r}")
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read the header, check the file against it and hash the whole file.

    Raises:
        SetupError: the file is missing, unreadable, not GGUF, damaged or
            truncated; the text names the file and says what to do.
    """
    try:
        with path.open("rb") as file:
            metadata, needed_bytes = _read_header(file)
            _check_size(file, needed_bytes)
            file.seek(0)
            revision = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise SetupError(
            f"model file {path} does not exist; fetch it with `sidecache pull` "
            "or set model_path to a GGUF file"
        ) from None
    except OSError as error:
        raise SetupError(f"model file {path} cannot be read: {error.strerror}") from error
    except _Damaged as error:
        raise _refusal(path, str(error)) from None
    return GgufFile(path, revision, metadata)


def _check_size(file: BinaryIO, needed_bytes: int) -> None:
    size = file.seek(0, 2)
    if size < needed_bytes:
        raise _Damaged(f"truncated: {size} bytes of at least {needed_bytes}")


def _refusal(path: Path, problem: str) -> SetupError:
    return SetupError(
        f"model file {path} is not a usable GGUF file ({problem}); delete it and fetch it "
        "again with `sidecache pull`, or set model_path to another file"
    )


def _read_header(file: BinaryIO) -> tuple[dict[str, Value], int]:
    """The metadata, and the fewest bytes that a file with these tensors has."""
    magic = file.read(4)
    if magic != _MAGIC:
        raise _Damaged(f"it begins with {magic!r}, not {_MAGIC!r}")
    version, tensors, pairs = struct.unpack("<IQQ", _exactly(file, 20))
    if version not in _VERSIONS:
        raise _Damaged(f"version {version}, known are {_VERSIONS}")
    if tensors > _MAX_ITEMS or pairs > _MAX_ITEMS:
        raise _Damaged(f"{tensors} tensors and {pairs} keys announced, at most {_MAX_ITEMS}")
    metadata = dict(_pair(file) for _ in range(pairs))
    data_bytes = max((_tensor_end(file) for _ in range(tensors)), default=0)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"alignment {alignment!r}")
    return metadata, math.ceil(file.tell() / alignment) * alignment + data_bytes


def _pair(file: BinaryIO) -> tuple[str, Value]:
    return _string(file), _value(file, _u32(file))


def _tensor_end(file: BinaryIO) -> int:
    """Where one tensor ends, in bytes from the beginning of the data."""
    _string(file)
    dimensions = _u32(file)
    if dimensions > _MAX_DIMENSIONS:
        raise _Damaged(f"a tensor of {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", _exactly(file, 8 * dimensions))
    kind, offset = struct.unpack("<IQ", _exactly(file, 12))
    values, block_bytes = _BLOCKS.get(kind, _SMALLEST_BLOCK)
    return int(offset + math.prod(shape) // values * block_bytes)


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        return _array(file)
    if kind not in _SCALARS:
        raise _Damaged(f"unknown value type {kind}")
    scalar: Value = struct.unpack(_SCALARS[kind], _exactly(file, struct.calcsize(_SCALARS[kind])))[
        0
    ]
    return scalar


def _array(file: BinaryIO) -> Value:
    kind = _u32(file)
    count = _count(file)
    if kind == _ARRAY:
        raise _Damaged("an array of arrays")
    return [_value(file, kind) for _ in range(count)]


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > _MAX_STRING_BYTES:
        raise _Damaged(f"a string of {length} bytes")
    return _exactly(file, length).decode("utf-8", "surrogateescape")


def _u32(file: BinaryIO) -> int:
    return int.from_bytes(_exactly(file, 4), "little")


def _count(file: BinaryIO) -> int:
    count = int.from_bytes(_exactly(file, 8), "little")
    if count > _MAX_ITEMS:
        raise _Damaged(f"an array of {count} items")
    return count


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Damaged("truncated inside its header")
    return data
