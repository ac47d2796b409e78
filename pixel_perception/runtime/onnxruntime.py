"""Graphs on ONNX Runtime, on the CPU or with its CUDA provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.session import Step

MOST_THREADS = 8
"""More do not make graphs of this size faster."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CACHE = ("past_key_values.", "present.")


class OnnxRuntime:
    """Backend: one thread pool per graph, none of which spins while it waits."""

    def __init__(self, threads: int | None = None, provider: str = "cpu") -> None:
        """`threads` per graph; None takes every core that this process may use, at most `MOST_THREADS`. `provider` is "cpu" or
        "cuda". Raises PerceptionError INVALID_QUERY where the installed ONNX Runtime lacks it."""
        if provider not in _PROVIDERS:
            raise PerceptionError("INVALID_QUERY", f"provider: expected {' or '.join(_PROVIDERS)}, found {provider!r}.")
        self.name = f"onnxruntime-{provider}"
        self.threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._provider = _PROVIDERS[provider]
        available = ort.get_available_providers()
        if self._provider not in available:
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected an ONNX Runtime with {self._provider}, found "
                                  f"{ort.__version__} with {', '.join(available)}; install onnxruntime-gpu in place of onnxruntime.")
        if provider == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN may come from wheels, where the loader does not look

    def session(self, path: Path) -> OnnxSession:
        """See `Backend.session`."""
        return OnnxSession(self._open(path))

    def decoder(self, path: Path) -> OnnxDecoder:
        """See `Backend.decoder`."""
        return OnnxDecoder(self._open(path), path)

    def _open(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Language and pixels run side by side and share the cores with the rest of the robot: a pool that spins while it
        # waits takes from them what it gains.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors come as exceptions
        try:
            session = ort.InferenceSession(str(path), options, providers=list(dict.fromkeys((self._provider, _PROVIDERS["cpu"]))))
        except Exception as error:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a graph that ONNX Runtime {ort.__version__} can run, "
                                                    f"found: {_first_line(error)}") from error
        if self._provider not in session.get_providers():  # it falls back in silence where a library or the device is missing
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected a CUDA device and the CUDA and cuDNN libraries that "
                                  f"ONNX Runtime {ort.__version__} was built for, found that {self._provider} does not start.")
        return session


class OnnxSession:
    """One graph with arrays in and out; inputs are read in place when contiguous."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(i.name for i in session.get_inputs())
        self.outputs = tuple(o.name for o in session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        with _Reported():
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))


@dataclass(frozen=True, eq=False)
class OnnxPast:
    """Keys and values of every layer, (rows, key/value heads, length, head size) each, in ONNX Runtime's memory."""

    values: tuple[ort.OrtValue, ...]
    rows: int
    length: int


class OnnxDecoder:
    """The language model. Keys and values stay in ONNX Runtime's memory between steps.

    The graph appends by writing a new, longer tensor, so a past is never changed and can be shared. Appending in place was
    measured too: at the hundred positions of a prompt it saves nothing (12.5 ms against 12.6 ms a token on one core).
    """

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        inputs = {i.name: i.shape for i in session.get_inputs()}
        outputs = [o.name for o in session.get_outputs()]
        self._session = session
        self._past = tuple(name for name in inputs if name.startswith(_CACHE[0]))
        self._present = tuple(name.replace(*_CACHE) for name in self._past)
        expected = {"inputs_embeds", "attention_mask", "logits", "hidden_states", *self._present}
        missing = expected - {*inputs, *outputs}
        if missing or not self._past:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a language model with inputs inputs_embeds, attention_mask, "
                                  f"past_key_values.* and outputs logits, hidden_states, present.*; found no "
                                  f"{', '.join(sorted(missing)) or 'past_key_values.*'}.")
        self._fetched = ("logits", "hidden_states", *self._present)
        _, heads, _, size = inputs[self._past[0]]
        empty = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), np.float32))
        self._nothing = OnnxPast((empty,) * len(self._past), 1, 0)
        self.hidden = int(inputs["inputs_embeds"][2])

    def read(self, embeddings: np.ndarray, past: OnnxPast | None) -> Step:
        """See `Decoder.read`."""
        past = past or self._nothing
        rows, count, _ = embeddings.shape
        if rows != past.rows or (rows > 1 and past.length and count > 1):
            raise ValueError(f"embeddings: expected {past.rows} rows, of one position where there are several, found {rows} of {count}")
        total = past.length + count
        feeds = dict(zip(self._past, past.values, strict=True))
        feeds["inputs_embeds"] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(embeddings, np.float32))
        feeds["attention_mask"] = ort.OrtValue.ortvalue_from_numpy(np.ones((rows, total), np.int64))
        with _Reported():
            logits, states, *present = self._session.run_with_ort_values(self._fetched, feeds)
            return Step(logits.numpy()[:, -1], states.numpy(), OnnxPast(tuple(present), rows, total))

    def stack(self, pasts: Sequence[OnnxPast]) -> OnnxPast:
        """See `Decoder.stack`."""
        if len({p.length for p in pasts}) != 1:
            raise ValueError(f"pasts: expected one length, found {sorted({p.length for p in pasts})}")
        values = tuple(ort.OrtValue.ortvalue_from_numpy(np.concatenate([v.numpy() for v in layer]))
                       for layer in zip(*(p.values for p in pasts), strict=True))  # fmt: skip
        return OnnxPast(values, sum(p.rows for p in pasts), pasts[0].length)


class _Reported:
    """Turns ONNX Runtime's exceptions into PerceptionError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None or not kind.__module__.startswith("onnxruntime"):
            return
        if "allocate" in str(error).lower() or "bad_alloc" in str(error):
            raise PerceptionError("OUT_OF_MEMORY", "the model found no memory for this query; use fewer boxes.") from error
        raise PerceptionError("INTERNAL", f"ONNX Runtime: {_first_line(error)}") from error


def _first_line(error: BaseException | None) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
