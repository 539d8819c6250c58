"""The embedded probe: a small network that hears a clip, the offline stand-in for VGGish, PANNs or CLAP.

    waveform [B, N], mel [B, 1, T', M] or image [B, C, H, W] -> features [B, D], and logits [B, K] per attribute

Distances over its features are reported as "Frechet distance (embedded probe)": they compare with themselves and their
floor, never with published FAD.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.measure.features import Heard, Network, NetworkMissing, resampled, resampling

Array = np.ndarray
FEATURES, WAVEFORM = "features", "waveform"


def judge(path: Path, heard: Mapping[str, Array], *, batch: int = 32, threads: int | None = None) -> dict[str, Array]:
    """Outputs of the probe at `path` by name, `features` `[N, D]` and logits `[N, K]`, for what it hears of `heard`.

    `heard` holds some of `waveform` `[N, samples]`, `mel` `[N, 1, T', M]` and `image` `[N, C, H, W]` in -1..1; the
    probe's input bears one of the names.

    Raises: EngineError when the file is no probe, or hears something else.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        taken = session.get_inputs()[0].name
        if taken not in heard:
            raise EngineError(f"{path} takes {taken!r}, and here is {', '.join(heard)}: name a network for that")
        sounds = np.clip(heard[taken], -1, 1) if taken == WAVEFORM else heard[taken]
        rows = [session.run(None, {taken: sounds[i : i + batch]}) for i in range(0, len(sounds), batch)]
    except EngineError:
        raise
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


def embedded(where: str, *, rate: int, probe: Path) -> Network:
    """The bundle's own probe as a feature network. Raises: NetworkMissing when it has none."""
    if not probe.exists():
        raise NetworkMissing(f"this bundle has no {probe.name}: name another feature network, as 'onnx:FILE'")
    note = "a small network of this project: its distances compare with their floor, never with published ones"
    return Network("embedded probe", "Frechet distance (embedded probe)", lambda heard: _heard(probe, heard), note=note)


def graph(where: str, *, rate: int, probe: Path) -> Network:
    """An ONNX file as a feature network: "FILE", or "FILE@RATE" when it hears another rate than that of the clips.

    Raises: NetworkMissing when there is no such file; RecipeError for a rate that is no number.
    """
    said = where.rpartition("@")[2] if "@" in where else str(rate)
    if not said.isdecimal() or ("@" in where and not int(said)):
        raise RecipeError(f"feature network 'onnx:{where}': the rate is {said!r}, expected a number of Hz")
    (file,), hears = kept(where), int(said)
    if not file.is_file():
        raise NetworkMissing(f"no feature network at {file}: name an ONNX file as 'onnx:FILE' or 'onnx:FILE@RATE'")

    def hear(heard: Mapping[str, Array]) -> Heard:
        sounds = {WAVEFORM: resampled(heard[WAVEFORM], rate, hears)} if WAVEFORM in heard else {}
        return _heard(file, {**heard, **sounds})

    return Network(file.stem, f"Frechet distance ({file.stem})", hear, note=resampling(rate, hears))


def kept(where: str) -> list[Path]:
    """The file that "FILE" or "FILE@RATE" names."""
    return [Path(where.rpartition("@")[0] or where).expanduser()]


def _heard(path: Path, heard: Mapping[str, Array]) -> Heard:
    outputs = judge(path, heard)
    return Heard(outputs[FEATURES], {name: rows for name, rows in outputs.items() if name != FEATURES})
