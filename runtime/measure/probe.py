"""The embedded probe: a small network that hears a clip, the offline stand-in for VGGish, PANNs or CLAP.

    waveform [B, N] or mel [B, 1, T', M] -> features [B, D], and one output of logits [B, K] per attribute

Distances over its features are reported as "Frechet distance (embedded probe)": they compare with themselves and their
floor, never with published FAD.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quaver.runtime.errors import EngineError

Array = np.ndarray
FEATURES, WAVEFORM = "features", "waveform"


def judge(path: Path, heard: Mapping[str, Array], *, batch: int = 32, threads: int | None = None) -> dict[str, Array]:
    """Outputs of the probe at `path` by name, `features` `[N, D]` and logits `[N, K]`, for what it hears of `heard`.

    `heard` holds `waveform` `[N, samples]`, `mel` `[N, 1, T', M]`, or both; the probe's input bears one of the names.

    Raises: EngineError when the file is no probe.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        taken = session.get_inputs()[0].name
        sounds = np.clip(heard[taken], -1, 1) if taken == WAVEFORM else heard[taken]
        rows = [session.run(None, {taken: sounds[i : i + batch]}) for i in range(0, len(sounds), batch)]
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"{path} is not a probe that runs ({reason}): 'quaver trace RECIPE' writes it anew"
        ) from error
    if FEATURES not in names:
        raise EngineError(f"{path} has outputs {', '.join(names)}, expected {FEATURES!r} among them: is it a probe?")
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def verdicts(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The class of every sample for each attribute, `[N]`: the largest of its logits."""
    return {name: logits.argmax(axis=1) for name, logits in outputs.items() if name != FEATURES}
