"""CLAP as a feature network: sound and text in one space (Wu et al. 2023, arXiv:2211.06687), by transformers.

    CLAP score = mean over clips of cos(features of the clip, features of its caption)

The extractor repeats a clip that is shorter than what the network takes. Of one that is longer it would draw a random
part or fuse several; here its beginning is taken, so that a figure comes out the same twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quaver.runtime.errors import first_line
from quaver.runtime.measure.features import Heard, Network, NetworkMissing, bring, in_batches, resampled, resampling

Array = np.ndarray
DEFAULT = "laion/clap-htsat-unfused"


def clap(where: str, *, rate: int, probe: Path) -> Network:
    """CLAP in a folder that `save_pretrained` wrote, or in the hub's cache.

    Raises: NetworkMissing when it is not there.
    """
    torch, transformers = (bring(name, "'quaver[export]'") for name in ("torch", "transformers"))
    where = where or DEFAULT
    try:
        model = transformers.ClapModel.from_pretrained(where, local_files_only=True).eval()
        processor = transformers.ClapProcessor.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NetworkMissing(
            f"CLAP is not at {where} ({first_line(error)}): hf download {DEFAULT}, or name a folder as 'clap:FOLDER'"
        ) from error
    extractor = processor.feature_extractor
    hears, longest = int(extractor.sampling_rate), int(extractor.nb_max_samples)

    def listen(clips: Array) -> tuple[Array]:
        fed = extractor(list(clips[:, :longest]), sampling_rate=hears, return_tensors="pt")
        # none is longer, and where that is so the extractor would say it of one at random
        fed["is_longer"] = torch.zeros(len(clips), 1, dtype=torch.bool)
        with torch.no_grad():
            return (_plain(model.get_audio_features(**fed)),)

    def hear(heard: Mapping[str, Array]) -> Heard:
        return Heard(in_batches(listen, resampled(heard["waveform"], rate, hears))[0])

    def read(texts: Sequence[str]) -> Array:
        fed = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return _plain(model.get_text_features(**fed))

    return Network(f"CLAP ({Path(where).name})", "Frechet distance (CLAP)", hear, read, resampling(rate, hears))


def kept(where: str) -> list[Path]:
    """The folder at `where`, or a repository's files in the hub's cache. Raises: NetworkMissing without the hub."""
    if where and (folder := Path(where).expanduser()).is_dir():
        return [folder]
    try:
        snapshot = bring("huggingface_hub", "'quaver[export]'").snapshot_download
        return sorted(Path(snapshot(where or DEFAULT, local_files_only=True)).iterdir())
    except (OSError, ValueError):
        return []


def _plain(features: Any) -> Array:
    """Projected features [N, D], which some versions of transformers wrap."""
    return getattr(features, "pooler_output", features).numpy()
