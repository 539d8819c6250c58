"""What a step shows: trimming against numpy, the graph in floats against arithmetic by hand, and who leads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quaver.calib import comparison, evidence
from quaver.calib.closed_loop import close
from quaver.calib.comparison import Pair, branches, look, open_pair
from quaver.calib.error_stats import OPEN, StatsSettings, collect_beside, collect_error_stats
from quaver.calib.evidence import from_tensors, gather, merge_shards
from quaver.calib.fanout import Fanout, Work
from quaver.calib.moments import covariance
from quaver.calib.simulated import open_simulated
from quaver.calib.trajectories import Shard, split_prompts
from quaver.runtime.artifact import Stamp, load_tensors
from quaver.runtime.bundle import Bundle
from quaver.runtime.config import to_config
from quaver.runtime.denoise import denoiser
from quaver.runtime.engine import open_engine
from quaver.runtime.error_law import ErrorStats, load_stats
from quaver.runtime.errors import EngineError, RecipeError
from quaver.runtime.generate import generate
from quaver.runtime.progress import quiet
from quaver.runtime.sample import SamplingSettings
from quaver.runtime.session import open_bundle
from tests.calib.conftest import SCHEDULER, C, D, F, T, model

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
SETTINGS = StatsSettings(trajectories=6, batch=3)


def collect(bundle: Bundle, settings: StatsSettings) -> tuple[ErrorStats, dict]:
    path = collect_error_stats(bundle, settings, SAMPLING, stamp=Stamp("stats"), progress=quiet())
    return load_stats(path), load_tensors(path, "error_stats")[1]


def heavy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """q and D [B, C, T, F] with a tail that a Gaussian has not."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((8, 3, 16, 16))
    return q, 0.1 * (0.5 * q + rng.standard_t(2.5, q.shape))


def test_trimming_leaves_out_what_is_beyond_its_deviations_per_channel_and_nothing_else() -> None:
    q, d = heavy()
    seen = look(q, q[None], (q - d)[None], range(8), 1, trim=3.0)
    for c in range(3):
        v, w = q[:, c].ravel(), (q - (q - d))[:, c].ravel()
        near = np.abs(w - w.mean()) <= 3.0 * w.std()
        assert 0.005 < 1 - near.mean() < 0.1
        assert seen.channels.count[c] == near.sum()
        np.testing.assert_allclose(covariance(seen.channels)[c], np.cov(v[near], w[near]), rtol=1e-10)
    assert seen.halves.count.sum() == 8 * 256  # the local law keeps all


def test_trimming_lowers_c11_and_both_it_and_rho_are_reported(bundle: Bundle) -> None:
    plain, before = collect(bundle, SETTINGS)
    stats, meta = collect(bundle, replace(SETTINGS, trim=1.0))
    kept = 1 - stats.count.sum() / plain.count.sum()
    assert 0.1 < kept < 0.7
    assert max(meta["trimmed"]["share"]) > 0.2 and max(meta["trimmed"]["C11"]) < 0.6
    expected = stats.cov[..., 1, 1].sum(axis=1) / plain.cov[..., 1, 1].sum(axis=1)
    np.testing.assert_allclose(meta["trimmed"]["C11"], expected, rtol=1e-9)
    moved = np.subtract(meta["explained"], before["explained"])
    np.testing.assert_allclose(meta["trimmed"]["rho^2"], moved, atol=1e-9)
    assert not any(before["trimmed"]["share"]) and np.allclose(before["trimmed"]["C11"], 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_statistics_are_of_what_a_deployed_sampler_computes_to_the_bit(bundle: Bundle, prediction: str) -> None:
    bundle.scheduler.write_text(json.dumps({**SCHEDULER, "prediction_type": prediction}))
    x = np.random.default_rng(0).standard_normal((4, C, T, F)).astype(np.float32)
    with open_bundle(bundle) as session:
        cond = session.family.embed(session.parts, ["a", "b", "c", "d"])
        deployed = denoiser(session.engine, session.family, cond, session.uncond, session.schedule, 2.5)
        said = branches(session, session.engine, cond, 2.5)(x, 301)
        uncond = {name: np.repeat(row, 4, axis=0) for name, row in session.uncond.items()}
        alone = [branches(session, session.engine, rows, 1.0)(x, 301)[0] for rows in (uncond, cond)]
        np.testing.assert_array_equal(said[0], deployed(x, 301))
    np.testing.assert_allclose(said[1:], alone, rtol=1e-5, atol=1e-6)


def coded() -> onnx.ModelProto:
    """out = conv(dq(q(sample)), dq(codes)) + 0 t: 8 bits on inputs and weights, as the exporter writes them."""
    rng = np.random.default_rng(5)
    codes = rng.integers(-60, 60, (C, C, 1, 1)).astype(np.int8)
    values = {"s": np.float32(0.02), "z": np.uint8(128), "ws": np.float32(0.01), "wz": np.int8(0), "codes": codes}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["sample", "s", "z"], ["c"]),
        node("DequantizeLinear", ["c", "s", "z"], ["x"]),
        node("DequantizeLinear", ["codes", "ws", "wz"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
        node("QuantizeLinear", ["y", "s", "z"], ["d"]),
        node("DequantizeLinear", ["d", "s", "z"], ["out"]),
        node("Identity", ["timestep"], ["unused"]),
        node("Identity", ["class_labels"], ["also"]),
    ]
    inputs = [("sample", 1, ["B", C, T, F]), ("timestep", TensorProto.INT64, ["B"]), ("class_labels", 1, ["B", D])]
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()]
    return model(nodes, inputs, [("out", 1, ["B", C, T, F])], constants)


def fake_quantized(x: np.ndarray) -> np.ndarray:
    """`coded` by hand in float64."""
    weight = 0.01 * np.random.default_rng(5).integers(-60, 60, (C, C))

    def rounded(v: np.ndarray) -> np.ndarray:
        return 0.02 * np.clip(np.rint(v / np.float32(0.02)), -128, 127)

    return rounded(np.einsum("oi,bihw->bohw", weight, rounded(x.astype(np.float64))))


def test_a_simulated_graph_says_what_its_nodes_say(tmp_path: Path) -> None:
    onnx.save(coded(), tmp_path / "unet.onnx")
    x = np.random.default_rng(0).standard_normal((4, C, T, F)).astype(np.float32)
    feeds = {"sample": x, "timestep": np.ones(4, np.int64), "class_labels": np.zeros((4, D), np.float32)}
    with open_simulated(tmp_path / "unet.onnx", threads=1) as engine:
        got = engine(feeds)
        level = engine.session.get_session_options().graph_optimization_level
    assert level.name == "ORT_DISABLE_ALL"  # on a graph this small integer kernels would say the same
    off = np.abs(got - fake_quantized(x))
    assert np.mean(off > 1e-5) < 0.01 and off.max() < 0.0201  # a sum that ends at half a step may round either way


def test_what_cannot_be_simulated_says_how_to_do_without(tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"cannot simulate unet\.onnx .*stats\.simulated = false"):
        open_simulated(tmp_path / "unet.onnx")


def test_simulated_statistics_of_a_float_graph_are_the_deployed_ones(bundle: Bundle) -> None:
    stats, _ = collect(bundle, replace(SETTINGS, simulated=True))
    assert stats.simulated is not None and stats.simulated.cov.shape == (4, 3, 2, 2)
    np.testing.assert_allclose(stats.simulated.mean, stats.mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stats.simulated.cov, stats.cov, rtol=1e-3, atol=1e-7)
    assert collect(bundle, SETTINGS)[0].simulated is None


def led(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, teacher: comparison.Teacher) -> list[np.ndarray]:
    """x_t [2, C, T, F] of every step that statistics with a teacher were collected at."""
    seen: list[np.ndarray] = []
    kept = look

    def spy(x: np.ndarray, *rest: np.ndarray, **more: float) -> evidence.Seen:
        seen.append(x)
        return kept(x, *rest, **more)

    monkeypatch.setattr(comparison, "look", spy)
    with open_pair(Pair(bundle, "ort-cpu", 1, SAMPLING, teacher=teacher), threads=1) as compute:
        compute(Shard(("a b", "c"), 70))
    return seen


@pytest.mark.parametrize(("teacher", "engine"), [("float", "float"), ("quantized", None)])
def test_the_teacher_leads(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, teacher: str, engine: str | None) -> None:
    own: list[np.ndarray] = []
    list(
        generate(
            bundle, ["a b", "c"], [70, 71], engine_file=engine, steps=4, guidance=2.0,
            on_step=lambda step: own.append(step.x_t),
        )
    )  # fmt: skip
    for x, expected in zip(led(monkeypatch, bundle, teacher), own, strict=True):  # type: ignore[arg-type]
        np.testing.assert_allclose(x, expected, atol=1e-4)


def test_a_corrected_teacher_keeps_the_law_of_least_error_and_tells_every_round(bundle: Bundle) -> None:
    """The engine is off by a gain and an offset, which the law takes off: the corrected path is the float model's."""
    stats, meta = collect(bundle, replace(SETTINGS, teacher="corrected"))
    none = [next(generate(bundle, ["a b"], [5], steps=4, guidance=2.0, engine_file=e)).latents for e in ("float", None)]
    uncorrected = np.linalg.norm(none[1] - none[0]) / np.linalg.norm(none[0])
    assert 1 <= len(meta["rounds"]) <= 3 and min(meta["rounds"]) < uncorrected
    assert meta["settings"]["teacher"] == "corrected" and stats.path is not None


def test_rounds_that_were_killed_go_on_and_end_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    taught = replace(SETTINGS, teacher="corrected", simulated=True, trim=3.0)
    collect(bundle, taught)
    whole, kept, calls = bundle.error_stats("ort-cpu").read_bytes(), evidence.add, []

    def dies(*both: evidence.Found) -> evidence.Found:
        calls.append(1)
        if len(calls) == 2:  # two shards a round: in round 1
            raise KeyboardInterrupt
        return kept(*both)

    monkeypatch.setattr(evidence, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(bundle, taught)
    assert (bundle.shards("stats") / "round-1" / "000001.safetensors").exists()
    collect(bundle, taught)
    assert bundle.error_stats("ort-cpu").read_bytes() == whole and not bundle.shards("stats").exists()


def test_statistics_of_another_sampling_lie_beside_and_take_nothing_from_those_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """Killed, they go on, and so do those of the recipe that were killed before."""
    other, calls, kept = replace(SAMPLING, steps=3, eta=1.0), [], evidence.add
    collect(bundle, SETTINGS)
    own, half = bundle.error_stats("ort-cpu").read_bytes(), bundle.shards("stats") / "000000.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"of a run that was killed")

    def dies(*both: evidence.Found) -> evidence.Found:
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        collect_beside(bundle, SETTINGS, other, stamp=Stamp("stats"), progress=quiet())
    (state,) = bundle.shards("stats-ddim-3-eta1-g2").glob("000000.safetensors")
    monkeypatch.setattr(evidence, "add", lambda *both: calls.append(state.exists()) or kept(*both))
    path = collect_beside(bundle, SETTINGS, other, stamp=Stamp("stats"), progress=quiet())
    assert path.name == "error_stats.ort-cpu.ddim-3-eta1-g2.safetensors" and all(calls)
    bound = load_stats(path).binding
    assert bound and (bound.steps, bound.eta, bound.guidance) == (3, 1.0, 2.0)
    assert bundle.error_stats("ort-cpu").read_bytes() == own and half.exists() and not state.exists()
    assert bundle.all_error_stats("ort-cpu") == [bundle.error_stats("ort-cpu"), path]


@pytest.mark.slow
def test_rounds_do_not_know_how_many_workers_there_were(bundle: Bundle) -> None:
    taught = replace(SETTINGS, teacher="corrected", rounds=2)
    collect(bundle, taught)
    whole = bundle.error_stats("ort-cpu").read_bytes()
    how = {"stamp": Stamp("stats"), "progress": quiet(), "fanout": Fanout(workers=2)}
    assert collect_error_stats(bundle, taught, SAMPLING, **how).read_bytes() == whole  # type: ignore[arg-type]


def follow(errors: list[float], rounds: int = 9) -> tuple[int, list[float]]:
    """Laws are numbers; law i has error i."""
    calls: list[int] = []

    def again(law: int, number: int) -> tuple[int, float]:
        calls.append(number)
        return law + 1, errors[law]

    kept, told = close(0, again, rounds)
    assert calls == list(range(1, len(told) + 1))
    return kept, told


@pytest.mark.parametrize(
    ("errors", "kept", "tried"),
    [
        ([5.0, 4.0, 3.0, 3.5, 1.0], 2, 4),
        ([5.0, 6.0], 0, 2),
        ([5.0, float("nan"), 1.0], 0, 2),
        ([float("nan"), 4.0, 5.0], 1, 3),
    ],
)
def test_rounds_end_with_the_first_that_is_no_better(errors: list[float], kept: int, tried: int) -> None:
    law, told = follow(errors)
    assert law == kept and len(told) == tried


def test_rounds_end_when_they_are_spent() -> None:
    assert follow([5.0, 4.0, 3.0, 2.0], rounds=2) == (1, [5.0, 4.0])


def works(bundle: Bundle, folder: Path) -> Callable[[], evidence.Seen]:
    work = Work(OPEN, Pair(Bundle(bundle.root.resolve()), "ort-cpu", 1, SAMPLING), "sha256:some")
    shards = split_prompts(["a b", "c", "d", "e f", "f", "b", "a"], 70, 1)
    return lambda: gather(work, shards, folder, progress=quiet(), label="stats")[0]


def test_shards_are_merged_as_they_come_and_a_killed_run_goes_on_from_their_total(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path
) -> None:
    whole = works(bundle, tmp_path / "a")()
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 7
    monkeypatch.setattr(evidence, "EVERY", 2)
    kept, calls = evidence.add, []

    def dies(*both: evidence.Found) -> evidence.Found:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return kept(*both)

    monkeypatch.setattr(evidence, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        works(bundle, tmp_path / "b")()
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert left == {"total.safetensors", "000004.safetensors", "000005.safetensors"}
    again = works(bundle, tmp_path / "b")()
    for name in ("halves", "channels"):
        for key, values in vars(getattr(whole, name)).items():
            np.testing.assert_array_equal(getattr(getattr(again, name), key), values)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"total.safetensors", "000006.safetensors"}
    np.testing.assert_array_equal(merge_shards(files)[0].channels.m2, whole.channels.m2)
    tensors, meta = load_tensors(tmp_path / "b" / "total.safetensors", "shard")
    assert meta["shards"] == 6 and from_tensors(tensors).halves.count.sum() == 6 * 4 * T * F


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"stats\.trim is 0\.5, expected 0 \(off\) or 1 and more"):
        StatsSettings(trim=0.5)
    with pytest.raises(RecipeError, match=r"unknown stats\.teacher 'x'; valid: corrected, float, quantized"):
        to_config(StatsSettings, {"teacher": "x"}, where="stats")


def test_a_shards_prompts_are_embedded_once(bundle: Bundle) -> None:
    calls = []
    pair = Pair(bundle, "ort-cpu", 1, SAMPLING)
    with (
        open_bundle(bundle, engine_file="float", threads=1) as opened,
        open_engine(bundle.qdq("ort-cpu"), threads=1) as engine,
    ):

        def embed(parts: object, prompts: list[str]) -> dict[str, np.ndarray]:
            calls.append(len(prompts))
            return dict(opened.family.embed(parts, prompts))

        session = replace(opened, family=replace(opened.family, embed=embed))
        comparison.compare(comparison.Engines(session, engine), Shard(("a b", "c", "d"), 7), pair)
    assert calls == [3]
