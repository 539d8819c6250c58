"""VGGish as a feature network (Hershey et al. 2017, arXiv:1609.09430), by the package torchvggish: what FAD is over.

128 features for every 0.96 s at 16 kHz, without the PCA that AudioSet's published ones went through, and without the
last ReLU, as evaluations of text-to-audio take them. All frames of all clips are one Gaussian (Kilgour et al. 2019). A
clip shorter than one frame is filled with silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np

from quaver.runtime.errors import first_line
from quaver.runtime.measure.features import Heard, Network, NetworkMissing, bring, in_batches, resampled, resampling

Array = np.ndarray
RATE, FILE = 16_000, "vggish-10086976.pth"
TORCH, PACKAGES = "'quaver[export]'", "torchvggish resampy soundfile"
SHORTEST = 15_600  # samples of one frame: 96 windows of 400, 160 apart


def vggish(where: str, *, rate: int, probe: Path) -> Network:
    """VGGish with the weights at `where`, or in torch hub's cache. Raises: NetworkMissing when it is not there."""
    (path,) = kept(where)
    if not path.is_file():
        raise NetworkMissing(
            f"no weights of VGGish at {path}: download {FILE} from github.com/harritaylor/torchvggish/releases, "
            "or name the file as 'vggish:FILE'"
        )
    torch, network = bring("torch", TORCH), bring("torchvggish.torchvggish", PACKAGES)
    examples = bring("torchvggish.vggish_input", PACKAGES).waveform_to_examples
    model = network.VGG(network.make_layers(), postprocess=False).eval()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise NetworkMissing(f"{path} is not VGGish ({first_line(error)}): name {FILE} as 'vggish:FILE'") from error
    model.embeddings = model.embeddings[:-1]

    def listen(clips: Array) -> tuple[Array]:
        with torch.no_grad():
            frames = [examples(clip, RATE) for clip in clips]
            return (model(torch.cat(frames)).numpy().reshape(len(clips), -1, 128),)

    def hear(heard: Mapping[str, Array]) -> Heard:
        clips = resampled(heard["waveform"], rate, RATE)
        padded = np.pad(clips, [(0, 0), (0, max(0, SHORTEST - clips.shape[1]))])
        return Heard(in_batches(listen, padded)[0])

    return Network("VGGish", "FAD (VGGish)", hear, note=resampling(rate, RATE))


def kept(where: str) -> list[Path]:
    """The weights at `where`, or where torch hub keeps those it fetched. Raises: NetworkMissing without torch."""
    return [Path(where or f"{bring('torch', TORCH).hub.get_dir()}/checkpoints/{FILE}").expanduser()]
