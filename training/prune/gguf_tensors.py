"""Tensors of a GGUF file: read as numbers, and written back with other layers or types.

Source: the GGUF specification and ggml's block formats, github.com/ggml-org/ggml
(docs/gguf.md, src/ggml-common.h).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecache.errors import SetupError

Array = NDArray[np.float32]

_ALIGNMENT = 32
_GROUP = 32
# ggml tensor type: name, and bytes of a block of 32 values (of one value for floats).
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8}
_NAMES = {number: name for name, number in TYPES.items()}
_BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in the file.

    Attributes:
        shape: rows first, as numpy has it; the file has it the other way round.
        kind: one of :data:`TYPES`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: bytes

    def numbers(self) -> Array:
        """Its values, dequantized."""
        return _READERS[self.kind](self.data).reshape(self.shape)

    def as_kind(self, kind: str) -> "Tensor":
        """The same values, rounded to another type."""
        if kind == self.kind:
            return self
        return replace(self, kind=kind, data=_WRITERS[kind](self.numbers().reshape(-1)))


@dataclass(frozen=True, slots=True)
class Model:
    """A whole file.

    Attributes:
        header: (key, type number, raw bytes of the value), in the file's order.
    """

    header: tuple[tuple[str, int, bytes], ...]
    tensors: tuple[Tensor, ...]

    def number(self, key: str) -> float:
        """One number of the header.

        Raises:
            SetupError: it has none of this name.
        """
        for name, kind, raw in self.header:
            if name == key and kind in _SCALARS:
                return float(struct.unpack(_SCALARS[kind], raw)[0])
        raise SetupError(f"the model's header has no number {key!r}")

    def with_number(self, key: str, value: int) -> "Model":
        """The same with one number of the header changed."""
        header = tuple(
            (name, kind, struct.pack(_SCALARS[kind], value) if name == key else raw)
            for name, kind, raw in self.header
        )
        return replace(self, header=header)


def read_model(path: Path) -> Model:
    """Read a file that :func:`inference_svc.engines.gguf.read_gguf` has accepted.

    Raises:
        SetupError: a tensor is of a type not known here.
    """
    data = path.read_bytes()
    _, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    at, header = 24, []
    for _ in range(pairs):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        end = _end_of_value(data, at + 4, kind)
        header.append((key, kind, data[at + 4 : end]))
        at = end
    found = []
    for _ in range(tensors):
        name, at = _text(data, at)
        (count,) = struct.unpack_from("<I", data, at)
        shape = struct.unpack_from(f"<{count}Q", data, at + 4)[::-1]
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * count)
        at += 16 + 8 * count
        if kind not in _NAMES:
            raise SetupError(f"{path}: tensor {name} is of type {kind}; known are {sorted(TYPES)}")
        found.append((name, shape, _NAMES[kind], offset))
    base = -(-at // _ALIGNMENT) * _ALIGNMENT
    whole = tuple(
        Tensor(name, shape, kind, data[base + offset :][: _size(shape, kind)])
        for name, shape, kind, offset in found
    )
    return Model(tuple(header), whole)


def write_model(model: Model, path: Path) -> None:
    """Write it as a GGUF file of version 3."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(model.tensors), len(model.header))
    head += b"".join(
        _packed(key) + struct.pack("<I", kind) + raw for key, kind, raw in model.header
    )
    offset = 0
    for each in model.tensors:
        head += _packed(each.name) + struct.pack("<I", len(each.shape))
        head += struct.pack(f"<{len(each.shape)}Q", *each.shape[::-1])
        head += struct.pack("<IQ", TYPES[each.kind], offset)
        offset += _padded(len(each.data))
    with path.open("wb") as file:
        file.write(head.ljust(_padded(len(head)), b"\0"))
        for each in model.tensors:
            file.write(each.data.ljust(_padded(len(each.data)), b"\0"))


def without_layers(model: Model, dropped: Sequence[int], architecture: str = "llama") -> Model:
    """The model with the layers that remain numbered anew; their tensors are not touched."""
    key = f"{architecture}.block_count"
    kept = [each for each in range(int(model.number(key))) if each not in set(dropped)]
    place = {old: new for new, old in enumerate(kept)}
    tensors = []
    for each in model.tensors:
        room, _, rest = each.name.removeprefix("blk.").partition(".")
        if not each.name.startswith("blk."):
            tensors.append(each)
        elif int(room) in place:
            tensors.append(replace(each, name=f"blk.{place[int(room)]}.{rest}"))
    return replace(model, tensors=tuple(tensors)).with_number(key, len(kept))


def with_weights(model: Model, kind: str) -> Model:
    """The model with every matrix of another type; vectors stay as they are."""
    return replace(
        model,
        tensors=tuple(
            each.as_kind(kind) if len(each.shape) > 1 else each for each in model.tensors
        ),
    )


def as_openvino_reads(model: Model) -> Model:
    """The model as OpenVINO GenAI (seen in 2026.4.1) computes with it.

    A group of Q4_1 has a least value of its own; OpenVINO keeps a whole number of steps of it,
    0 to 15, as zero point, so up to half a step is added to all 32 values.
    """
    return replace(
        model,
        tensors=tuple(
            replace(each, data=_with_whole_zeros(each.data)) if each.kind == "q4_1" else each
            for each in model.tensors
        ),
    )


def _with_whole_zeros(data: bytes) -> bytes:
    blocks = _blocks(data, "q4_1").copy()
    scale, least = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    zero = np.rint(-least / _safe(scale)).clip(0, 15)
    blocks[:, 2:4] = (-zero * scale).astype("<f2").view(np.uint8)
    return blocks.tobytes()


def _size(shape: tuple[int, ...], kind: str) -> int:
    count = int(np.prod(shape))
    if kind in _BLOCK_BYTES:
        return count // _GROUP * _BLOCK_BYTES[kind]
    return count * (4 if kind == "f32" else 2)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape"), at + 8 + length


def _end_of_value(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _text(data, at)[1]
    if kind != _ARRAY:
        return at + struct.calcsize(_SCALARS[kind])
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SCALARS:
        return int(at + count * struct.calcsize(_SCALARS[inner]))
    for _ in range(count):
        at = _end_of_value(data, at, inner)
    return at


def _blocks(data: bytes, kind: str) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, _BLOCK_BYTES[kind])


def _half(columns: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> Array:
    """A block's 32 values: low halves first, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _read_q4_0(data: bytes) -> Array:
    blocks = _blocks(data, "q4_0")
    return (_nibbles(blocks[:, 2:]) - 8) * _half(blocks[:, :2])


def _read_q4_1(data: bytes) -> Array:
    blocks = _blocks(data, "q4_1")
    return _nibbles(blocks[:, 4:]) * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _read_q8_0(data: bytes) -> Array:
    blocks = _blocks(data, "q8_0")
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * _half(
        blocks[:, :2]
    )


def _write_q8_0(values: Array) -> bytes:
    groups = values.reshape(-1, _GROUP)
    scale = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype("<f2")
    steps = np.rint(groups / _safe(scale)).clip(-127, 127).astype(np.int8)
    return _joined(scale, steps.view(np.uint8))


def _write_q4_0(values: Array) -> bytes:
    groups = values.reshape(-1, _GROUP)
    # The value of largest size lands on -8, the end of the range.
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    scale = (peak / -8).astype("<f2")
    steps = np.rint(groups / _safe(scale) + 8).clip(0, 15).astype(np.uint8)
    return _joined(scale, steps[:, :16] | steps[:, 16:] << 4)


def _write_q4_1(values: Array) -> bytes:
    groups = values.reshape(-1, _GROUP)
    least = groups.min(axis=1, keepdims=True).astype("<f2")
    scale = ((groups.max(axis=1, keepdims=True) - least.astype(np.float32)) / 15).astype("<f2")
    steps = np.rint((groups - least.astype(np.float32)) / _safe(scale)).clip(0, 15)
    halves = steps.astype(np.uint8)
    return _joined(np.concatenate([scale, least], axis=1), halves[:, :16] | halves[:, 16:] << 4)


def _safe(scale: NDArray[Any]) -> Array:
    wide = scale.astype(np.float32)
    return np.where(wide == 0, np.float32(1), wide)


def _joined(scale: NDArray[Any], steps: NDArray[np.uint8]) -> bytes:
    head = np.ascontiguousarray(scale).view(np.uint8).reshape(len(scale), -1)
    return np.concatenate([head, steps], axis=1).tobytes()


_READERS = {
    "f32": lambda data: np.frombuffer(data, "<f4").astype(np.float32),
    "f16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
    "q4_0": _read_q4_0,
    "q4_1": _read_q4_1,
    "q8_0": _read_q8_0,
}
_WRITERS = {
    "f32": lambda values: values.astype("<f4").tobytes(),
    "f16": lambda values: values.astype("<f2").tobytes(),
    "q4_0": _write_q4_0,
    "q4_1": _write_q4_1,
    "q8_0": _write_q8_0,
}
