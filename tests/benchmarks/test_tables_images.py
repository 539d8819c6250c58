from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.digits import cells as images_cells
from benchmarks.digits.cells import CONSISTENT, FP, TABLES, Cell, bit_operations, cells, mean_alone, part
from benchmarks.digits.images import held_out, load_digits
from benchmarks.digits.measures import make_judge, measure
from benchmarks.digits.probe import PROBE, load_probe, read_images
from benchmarks.digits.published import orders
from benchmarks.orders import HOLDS, REVERSED, UNDECIDED
from benchmarks.tables_images import claims, compare, verdicts
from quaver.runtime.artifact import Stamp, save_json
from quaver.runtime.bundle import Bundle
from quaver.runtime.correct import d2_deterministic
from quaver.runtime.error_law import Binding, ErrorStats
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings, sample_ddim
from quaver.runtime.schedule import load_schedule


def test_every_sampling_has_the_float_model_once_and_at_eta_0_nothing_stands_twice():
    found = list(cells(TABLES[1]))
    assert [cell.eta for cell in found if cell.method == FP] == [0.0, 1.0]
    assert {cell.method for cell in found if cell.eta == 1} - {cell.method for cell in found if cell.eta == 0} == {
        CONSISTENT
    }
    assert {cell.width for cell in found} == {"", "W8A8", "W4A8"}
    assert len(set(found)) == len(found)


def test_the_ablation_draws_nothing_that_table_2_has_but_the_mean_alone():
    fresh = set(cells(TABLES[5])) - set(cells(TABLES[2]))
    assert [cell.method for cell in fresh] == ["DMC"]


def test_published_orders_are_those_of_the_figures_whatever_side_is_better():
    said = set(orders(1, "W4A8", 0.0))
    assert ("Frechet", "PTQ4DM", "Q-Diffusion") in said  # 10.45 and 11.13
    assert ("IS", "Q-Diffusion", "PTQ4DM") in said  # 347.52 and 336.28
    assert not [line for line in said if line[0] == "recall" and {*line[1:]} == {"S-D2", "D-D2"}]  # both 30.21
    assert {line[0] for line in orders(5, "W4A8", 1.0)} == {"Frechet", "spatial", "IS"}
    assert not list(orders(2, "W8A8", 0.0))


def measured(shift: float, *, seed: int = 0):
    """One measure of a cell whose images are those of any other, shifted."""
    from benchmarks.digits.measures import mean

    rng = np.random.default_rng(seed)
    return mean(rng.normal(size=200) + shift, np.random.default_rng(1).integers(0, 200, (100, 200)))


def test_more_of_a_score_is_better_and_less_of_a_distance():
    a, b = (Cell(name, "W4A8", 20, 3.0, 0.0) for name in ("a", "b"))
    found = {a: {"IS": measured(1), "Frechet": measured(1)}, b: {"IS": measured(0), "Frechet": measured(0)}}
    assert compare(found, "IS", a, b).verdict == HOLDS
    assert compare(found, "Frechet", a, b).verdict == REVERSED
    assert compare(found, "IS", a, a).verdict == UNDECIDED


def test_a_table_says_of_every_published_order_what_becomes_of_it_here():
    size = {"FP": 0.0, "PTQD": 2.0, "D-D2": 1.0}
    found = {
        Cell(name, "" if name == FP else "W4A8", 250, 1.5, eta): dict.fromkeys(
            ("Frechet", "spatial", "IS", "precision", "recall"), measured(size.get(name, 3.0))
        )
        for name in ("FP", "PTQD", "D-D2", "S-D2")
        for eta in (0.0, 1.0)
    }
    said = {(v["measure"], v["eta"], v["paper says"]): v["here"] for v in verdicts(2, found)}
    assert said["Frechet", "0", "D-D2 before PTQD"] == HOLDS
    assert said["IS", "0", "D-D2 before PTQD"] == REVERSED  # here all measures are the same numbers
    assert said["Frechet", "1", "S-D2 before PTQD"] == REVERSED


def test_auto_claims_to_be_nearer_to_the_float_engine_only_where_it_is():
    def claimed(auto: float) -> bool:
        sampling = ("W4A8", 20, 3.0, 0.0)
        error = {"auto": measured(auto), "Q-Diffusion": measured(0.0)}
        (true,) = claims({Cell(name, *sampling): {"latent error": m} for name, m in error.items()}).values()
        return true

    assert claimed(-1.0)
    assert not claimed(0.0)
    assert not claimed(1.0)


def test_parts_that_were_drawn_are_read_and_others_drawn(tmp_path, monkeypatch):
    (tmp_path / "rows").write_text("rows")
    session = SimpleNamespace(engine=SimpleNamespace(digest="e"), bundle=SimpleNamespace(rows=tmp_path / "rows"))
    asked = []

    def generate(session, texts, seeds, sampling, **rest):
        asked.append((texts[0], seeds[0]))
        yield SimpleNamespace(latents=np.full((len(seeds), 1, 8, 8), seeds[0], np.float32))

    monkeypatch.setattr(images_cells, "generate_from", generate)
    with quiet().bar(1, "") as bar:
        draw = lambda eta, index: part(session, SamplingSettings(eta=eta), "none", index, tmp_path, bar)  # noqa: E731
        first = draw(0.0, range(4))
        assert (draw(0.0, range(4)) == first).all() and len(asked) == 1
        draw(0.0, range(13, 15))
        draw(1.0, range(4))
    assert asked[1] == ("row 3", images_cells.SEED + 13)
    assert len(asked) == 3


def test_the_mean_alone_is_that_of_d_d2_and_leaves_the_sampler_its_noise():
    bound = Binding("e", "r", "onnxruntime", "ddim", 1, 1.0, 3.0, "epsilon", (1, 2, 2))
    stats = ErrorStats(
        timesteps=np.array([5]),
        mean=np.array([[[0.1, 0.2]]]),
        cov=np.array([[[[1.0, 0.3], [0.3, 0.5]]]]),
        count=np.array([9.0]),
        binding=bound,
    )
    q = np.random.default_rng(0).normal(size=(3, 1, 2, 2)).astype(np.float32)
    whole, alone = d2_deterministic(stats)(q, 5, q), mean_alone(stats)(q, 5, q)
    np.testing.assert_array_equal(alone.eps, whole.eps)
    assert np.all(whole.var == pytest.approx(0.5 - 0.3**2)) and alone.var == 0


def test_bit_operations_count_what_is_coded_and_what_stays_float(tmp_path):
    layers = [{"name": "a", "macs": 1e9}, {"name": "b", "macs": 2e9}, {"name": "c", "macs": 1e9}]
    sites = [
        {"layer": "a", "role": "weight", "format": "int4"},
        {"layer": "a", "role": "input", "format": "uint8"},
        {"layer": "a", "role": "output", "format": "uint8"},
        {"layer": "b", "role": "weight", "format": "int8"},
        {"layer": "c", "role": "layer", "format": "float"},
    ]
    bundle = Bundle(tmp_path)
    save_json(bundle.sites("ort-cpu"), {"layers": layers, "sites": sites}, Stamp("export"))
    assert bit_operations(bundle) == pytest.approx((4 * 1024, 4 * 8 + 2 * 8 * 32 + 1024))


def test_the_probe_reads_digits_that_it_was_not_trained_on():
    images, labels = load_digits()
    rest = held_out(len(images))
    said = read_images(load_probe(), images[rest]).classes.argmax(axis=1)
    assert (said == labels[rest]).mean() > 0.97


def test_real_images_are_at_no_distance_from_themselves_and_noise_is_far():
    images, judge = load_digits()[0], make_judge(1797, draws=4)
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32)
    own, far = measure(images, images, judge), measure(noise, images, judge)
    assert own["Frechet"].value < 0.01 * far["Frechet"].value
    assert own["precision"].value == own["recall"].value == 100
    assert far["precision"].value < 50 and own["latent error"].value == 0
    assert 10 > own["IS"].value > 7 > far["IS"].value


@pytest.mark.slow
def test_the_model_draws_digits_that_the_probe_reads_as_asked():
    import torch
    from diffusers import UNet2DModel

    unet, asked = UNet2DModel.from_pretrained(PROBE.parent / "unet", low_cpu_mem_usage=False).eval(), np.arange(50) % 10
    labels = torch.from_numpy(np.concatenate([np.full(50, 10), asked]))

    def denoise(x, t):
        with torch.no_grad():
            eps = unet(torch.from_numpy(np.concatenate([x, x])), int(t), labels).sample.numpy()
        return eps[:50] + 2.0 * (eps[50:] - eps[:50])

    noise = np.random.default_rng(0).standard_normal((50, 1, 8, 8), np.float32)
    schedule = load_schedule(PROBE.parent / "scheduler" / "scheduler_config.json")
    drawn = sample_ddim(denoise, noise, schedule, steps=10)
    assert (read_images(load_probe(), drawn).classes.argmax(axis=1) == asked).mean() > 0.9
