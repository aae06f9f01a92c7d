"""The stepping process: OpenVINO GenAI's continuous batching, alone with its GIL.

Run as a program by :mod:`inference_svc.engines.openvino_link`; it imports
nothing of Sidecache. One thread does everything: between two steps it takes
commands, so requests join and leave the batch only there. Why a process and
not a thread: docs/decisions/0003-engine-process.md.

Protocol, one JSON object a line. In: first the configuration, then
``{"add": key, "prompt": [...], "config": {...}}`` and ``{"cancel": key}``; end
of input ends the process. Out: ``{"ready": {...}}`` or ``{"failed": text}``;
then for each step, and for each cancel between two, ``{"tokens": [[key, ids,
logprobs, reason], ...], "gone": [key, ...], "joined": [key, ...], "stepped": whether,
"kv_cache_usage": share}``, where ``joined`` names those that were added since the last
event, in their order; and ``{"refused": key, "text": ...}``.
"""

import ctypes
import json
import os
import select
import signal
import sys
from typing import Any

import numpy as np

# On import OpenVINO reports itself to its makers over HTTPS, unless the module
# that does so cannot be found.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402 - after the line above
import openvino_genai as genai  # noqa: E402

_READ_BYTES = 1 << 16
_WARM_UP_PROMPT_TOKENS = 64
_WARM_UP_TOKENS = 4
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Commands:
    """Reads commands from a file descriptor without ever blocking a running batch."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def read(self, *, wait: bool) -> list[dict[str, Any]] | None:
        """The commands that have come, waiting for one if asked to; None at the end."""
        while True:
            ready, _, _ = select.select([self._descriptor], [], [], None if wait else 0)
            if not ready:
                return []
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                return [json.loads(line) for line in lines]


class Batch:
    """The pipeline and the sequences in it.

    Args:
        config: ``model_path``, ``device``, ``properties``, ``cache_gib``,
            ``max_num_batched_tokens`` and ``max_num_seqs``; ``kv_blocks``, where it is
            not 0, instead of the size that ``cache_gib`` gives; ``generation``, what every
            request has beside its own; ``prompt_lookup``, whether to guess; ``draft_model``,
            a folder or None.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        if config["kv_blocks"]:
            scheduler.num_kv_blocks = config["kv_blocks"]
        else:
            scheduler.cache_size = config["cache_gib"]
        scheduler.max_num_batched_tokens = config["max_num_batched_tokens"]
        # Room for those who join in the very step that clears away cancelled ones.
        scheduler.max_num_seqs = 2 * config["max_num_seqs"]
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        # By default a token depends on what else is in its batch: activations are
        # quantized to int8 in groups, products rounded to bf16, the KV cache to 8 bits.
        # Measured over 50 takeovers in the middle of an answer, 24 then went on with
        # other tokens; with the properties that the settings give by default, none.
        properties: dict[str, Any] = dict(config["properties"])
        device = config["device"]
        if config["draft_model"]:
            properties["draft_model"] = genai.draft_model(
                config["draft_model"], device, **config["properties"]
            )
        elif config["prompt_lookup"]:
            properties["prompt_lookup"] = True
        self._generation: dict[str, Any] = config["generation"]
        self._pipeline = genai.ContinuousBatchingPipeline(
            config["model_path"], scheduler, device, properties
        )
        self._handles: dict[int, Any] = {}
        self._joined: list[int] = []
        self._must_clear = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._must_clear or bool(self._handles)

    def warm_up(self) -> dict[str, Any]:
        """Generate a little, so that the first request finds compiled kernels.

        A prompt of a few tokens is not enough: kernels are chosen by the number of
        tokens in a step, and the first longer prefill would take a second or more.

        Returns:
            ``prompt`` and ``ids``: what is now in the KV cache, one id a step unless guessing;
        ``kv_cache_usage``: the share of its blocks that they took.
        """
        prompt = list(range(_WARM_UP_PROMPT_TOKENS))
        handle = self._pipeline.add_request(
            0,
            _tensor(prompt),
            _generation_config(self._generation | {"max_new_tokens": _WARM_UP_TOKENS}),
        )
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        (output,) = handle.read_all()
        return {
            "prompt": prompt,
            "ids": list(output.generated_ids),
            "kv_cache_usage": float(self._pipeline.get_metrics().max_cache_usage) / 100,
        }

    def add(self, key: int, prompt: list[int], config: dict[str, Any]) -> None:
        """Let a sequence join at the next step."""
        self._handles[key] = self._pipeline.add_request(
            key, _tensor(prompt), _generation_config(self._generation | config)
        )
        self._joined.append(key)

    def cancel(self, key: int) -> bool:
        """Take a sequence out before the next step, which frees its KV blocks.

        Returns:
            False if it had ended already.
        """
        handle = self._handles.pop(key, None)
        if handle is None:
            return False
        handle.cancel()
        self._must_clear = True
        return True

    def step(self) -> dict[str, Any]:
        """Give every sequence its next token, as far as the step's budget goes."""
        self._pipeline.step()
        self._must_clear = False
        tokens = []
        gone = []
        for key, handle in self._handles.items():
            if not handle.can_read():
                continue
            for output in handle.read().values():
                reason = output.finish_reason.name
                tokens.append(
                    [key, list(output.generated_ids), list(output.generated_log_probs), reason]
                )
                if reason != "NONE":
                    gone.append(key)
        for key in gone:
            del self._handles[key]
        return self.event(tokens, gone, stepped=True)

    def event(self, tokens: list[list[Any]], gone: list[int], *, stepped: bool) -> dict[str, Any]:
        """What happened, with those who joined before it."""
        joined, self._joined = self._joined, []
        return {
            "tokens": tokens,
            "gone": gone,
            "joined": joined,
            "stepped": stepped,
            "kv_cache_usage": self.kv_cache_usage,
        }

    @property
    def kv_cache_bytes(self) -> int:
        """Memory of all KV blocks."""
        return int(self._pipeline.get_metrics().kv_cache_size_in_bytes)

    @property
    def kv_cache_usage(self) -> float:
        """Share of KV blocks that sequences had in the last step; not those kept for reuse."""
        # The engine reports per cent.
        return float(self._pipeline.get_metrics().cache_usage) / 100


def _tensor(ids: list[int]) -> ov.Tensor:
    return ov.Tensor(np.array([ids], np.int64))


def _generation_config(values: dict[str, Any]) -> Any:
    config = genai.GenerationConfig()
    for name, value in values.items():
        if name == "structured_output_config":
            config.structured_output_config = genai.StructuredOutputConfig(**value)
        elif name == "stop_token_ids":
            config.stop_token_ids = set(value)
        else:
            setattr(config, name, value)
    return config


def _send(descriptor: int, event: dict[str, Any]) -> None:
    data = memoryview(json.dumps(event).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def _obey(batch: Batch, command: dict[str, Any], output: int) -> None:
    if "cancel" in command:
        if batch.cancel(command["cancel"]):
            _send(output, batch.event([], [command["cancel"]], stepped=False))
        return
    try:
        batch.add(command["add"], command["prompt"], command["config"])
    except Exception as error:  # noqa: BLE001 - whatever the engine dislikes is this request's
        _send(output, {"refused": command["add"], "text": str(error)})


def _serve(commands: Commands, output: int) -> None:
    """Load, then step while there is work and wait while there is none."""
    arrived = commands.read(wait=True)
    if arrived is None:
        return
    config = arrived.pop(0)
    device = config["device"]
    batch = Batch(config)
    ready = {"warm_up": batch.warm_up(), "kv_cache_bytes": batch.kv_cache_bytes}
    _send(output, {"ready": ready | {"build": _build(device)}})
    while arrived is not None:
        for command in arrived:
            _obey(batch, command, output)
        if batch.has_work:
            _send(output, batch.step())
        arrived = commands.read(wait=not batch.has_work)


def _build(device: str) -> str:
    """Whatever may change a number: the library and the kind of processor."""
    processor = ov.Core().get_property(device, "FULL_DEVICE_NAME")
    return f"openvino-genai {genai.get_version()} on {processor}"


def _end_with_parent() -> None:
    """Where the kernel can: the end of standard input is seen only once the model is loaded."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve until standard input ends."""
    _end_with_parent()
    # Native code prints where it likes; the protocol gets a descriptor of its own.
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        _serve(Commands(0), output)
    except Exception as error:  # noqa: BLE001 - the other side must hear why
        _send(output, {"failed": f"{type(error).__name__}: {error}"})
        code = 1
    else:
        code = 0
    # The pipeline's destructor complains about sequences that still run.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
