import numpy as np
import pytest
from safetensors.torch import load_file

from quaver.exporter.checkpoints import bigvgan
from quaver.exporter.checkpoints.layout import read_settings
from quaver.exporter.checkpoints.tensors import read_tensors, under
from quaver.exporter.checkpoints.vocoder import load_hifigan, multiplied_out
from quaver.runtime.errors import RecipeError
from tests.exporter.checkpoints.conftest import BIGVGAN, DATA, bigvgan_weights, relative

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def hifigan():
    folder = DATA / "tango"
    said = read_settings(folder / "vae_config.json")["vocoder_config"]
    return under(read_tensors(folder / "pytorch_model_vae.bin"), "vocoder."), said, load_file(folder / "io.safetensors")


def test_hifigan_sounds_as_the_original_did(hifigan):
    tensors, said, io = hifigan
    assert relative(load_hifigan(tensors, said, what="it")(io["mel"]), io["waveform"][:, 0]) < 1e-4


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ("parametrizations.weight.original0",) * 2])
def test_weight_normalization_is_multiplied_out(hifigan, names):
    tensors, said, io = hifigan
    norm, direction = names[0], names[1].replace("original0", "original1")
    normed = {}
    for key, value in tensors.items():
        if not key.endswith(".weight"):
            normed[key] = value
            continue
        module = key.removesuffix("weight")
        length = value.float().flatten(1).norm(dim=1).reshape(-1, 1, 1)
        normed |= {module + norm: length, module + direction: 3 * value.float()}
    assert multiplied_out(normed).keys() == tensors.keys()
    assert relative(load_hifigan(normed, said, what="it")(io["mel"]), io["waveform"][:, 0]) < 1e-4


@pytest.fixture(scope="module")
def generator():
    """A BigVGAN of 3 mel bins and 8 channels, by the keys of its checkpoint, normalized weights among them."""
    return bigvgan_weights(3)


def test_bigvgan_is_its_equations(generator):
    mel = np.random.default_rng(1).standard_normal((3, 6))
    found = bigvgan.load_bigvgan(bigvgan.read_shape(BIGVGAN), generator, what="it")(
        torch.tensor(mel, dtype=torch.float32)[None, None]
    )
    assert found.shape == (1, 36)
    assert relative(found[0], by_loops(generator, mel)) < 1e-5


def test_the_filter_is_a_kaiser_windowed_sinc():
    signal = pytest.importorskip("scipy.signal")
    beta = signal.kaiser_beta(signal.kaiser_atten(6, 4 * bigvgan.TRANSITION))
    np.testing.assert_allclose(bigvgan.lowpass(), signal.firwin(12, 0.5, window=("kaiser", beta)), atol=1e-6)


def test_a_configuration_of_another_bigvgan_is_refused(generator):
    with pytest.raises(RecipeError, match=r"holds 4 residual blocks, its configuration describes 6 x 3"):
        bigvgan.load_bigvgan(bigvgan.Shape(), generator, what="g.pt")
    with pytest.raises(RecipeError, match="resblock 2 or no final tanh"):
        bigvgan.read_shape(BIGVGAN | {"resblock": "2"})


def by_loops(generator, mel):
    """The waveform [N] of log-mel [M, T], from the definitions of every operation, in float64."""
    weight = {}
    for key, value in generator.items():
        if key.endswith(".weight_v"):
            v, g = value.double().numpy(), generator[key.replace("_v", "_g")].double().numpy()
            weight[key.removesuffix("_v")] = g * v / np.sqrt((v**2).sum((1, 2), keepdims=True))
        else:
            weight[key] = value.double().numpy()
    taps = bigvgan.lowpass().double().numpy()

    def conv(name, x, dilation=1):
        kernel = weight[f"{name}.weight"]
        reach = dilation * (kernel.shape[2] - 1) // 2
        padded = np.pad(x, ((0, 0), (reach, reach)))
        out = np.repeat(weight[f"{name}.bias"][:, None], x.shape[1], 1)
        for k in range(kernel.shape[2]):
            out += kernel[:, :, k] @ padded[:, k * dilation : k * dilation + x.shape[1]]
        return out

    def up(name, x, rate):
        kernel = weight[f"{name}.weight"]
        size = kernel.shape[2]
        full = np.zeros((kernel.shape[1], (x.shape[1] - 1) * rate + size))
        for i in range(x.shape[1]):
            full[:, i * rate : i * rate + size] += np.einsum("c,cok->ok", x[:, i], kernel)
        cut = (size - rate) // 2
        return full[:, cut : full.shape[1] - cut] + weight[f"{name}.bias"][:, None]

    def activate(name, x):
        a, b = np.exp(weight[f"{name}.act.alpha"]), np.exp(weight[f"{name}.act.beta"])
        rows = []
        for row, alpha, beta in zip(x, a, b, strict=True):
            stuffed = np.zeros(2 * (len(row) + 10) - 1)
            stuffed[::2] = np.pad(row, 5, mode="edge")
            doubled = 2 * np.convolve(stuffed, taps)[15:-15]
            bent = doubled + np.sin(alpha * doubled) ** 2 / beta
            rows.append(np.correlate(np.pad(bent, (5, 6), mode="edge"), taps, mode="valid")[::2])
        return np.array(rows)

    x = conv("conv_pre", mel)
    for stage, rate in enumerate(BIGVGAN["upsample_rates"]):
        x, outs = up(f"ups.{stage}.0", x, rate), []
        for j, dilations in enumerate(BIGVGAN["resblock_dilation_sizes"]):
            y, block = x, f"resblocks.{2 * stage + j}"
            for i, dilation in enumerate(dilations):
                z = conv(f"{block}.convs1.{i}", activate(f"{block}.activations.{2 * i}", y), dilation)
                y = y + conv(f"{block}.convs2.{i}", activate(f"{block}.activations.{2 * i + 1}", z))
            outs.append(y)
        x = sum(outs) / len(outs)
    return np.tanh(conv("conv_post", activate("activation_post", x)))[0]
