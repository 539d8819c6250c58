"""Corrected schedulers against diffusers' own, against the loop that generating takes, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest

from quaver.runtime.correct import make_correct
from quaver.runtime.denoise import CORRECTION, step_noise
from quaver.runtime.diffusers import EngineUNet, corrected, corrected_class
from quaver.runtime.diffusers import scheduler as module
from quaver.runtime.diffusers.course import KINDS
from quaver.runtime.error_law import load_stats
from quaver.runtime.errors import ArtifactError, QuaverError, RecipeError
from quaver.runtime.sample import SAMPLERS, SamplingSettings, advance
from quaver.runtime.schedule import load_schedule, to_eps

torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

CONFIG = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHAPE = (2, 2, 4, 4)
PLAIN = {"ddim": {"clip_sample": False, "set_alpha_to_one": False}, "ddpm": {"clip_sample": False}}


def theirs(sampler, **config):
    """The diffusers scheduler of a sampler."""
    kind, settings = KINDS[sampler]
    known = {"timestep_spacing": "leading", **CONFIG, **PLAIN.get(sampler, {}), **settings, **config}
    return getattr(diffusers, kind)(**known)


def ours(scheduler):
    return corrected_class(type(scheduler).__name__).from_config(scheduler.config)


def bumpy(x, t):
    """Some nonlinear network."""
    return torch.tanh(1.5 * x + 0.3) * (0.5 + float(t) / 1500) + 0.1 * torch.roll(x, 1, dims=-1)


def start(shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def drawn(scheduler, steps=20, x_T=None, net=bumpy, **kwargs):
    """x_0 and what every step took the clean sample to be, as a pipeline draws them."""
    scheduler.set_timesteps(steps)
    x, seen = (start() if x_T is None else x_T) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t)
        step = scheduler.step(out, t, x, **kwargs)
        x, _ = step.prev_sample, seen.append(getattr(step, "pred_original_sample", None))
    return x, seen


def seeded():
    return torch.Generator().manual_seed(9)


def apart(a, b):
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", KINDS)
def test_without_correction_every_step_is_that_of_diffusers(sampler, spacing, prediction):
    scheduler = theirs(sampler, timestep_spacing=spacing, prediction_type=prediction)
    takes = {"generator"} & set(inspect.signature(scheduler.step).parameters)
    expected, predicted = drawn(scheduler, **{name: seeded() for name in takes})
    found, clean = drawn(ours(scheduler), **{name: seeded() for name in takes})
    assert apart(found, expected) <= 1e-5
    if predicted[0] is not None and sampler != "ddpm":
        assert max(apart(a, b) for a, b in zip(clean, predicted, strict=True)) <= 1e-4


@pytest.mark.parametrize(
    ("sampler", "config"), [("ddim", {}), ("ddpm", {}), ("ddpm", {"variance_type": "fixed_large"})]
)
def test_clipping_noise_and_its_variance_are_those_of_diffusers(sampler, config):
    scheduler = theirs(sampler, **{**config, "clip_sample": True})
    eta = {"eta": 1.0} if sampler == "ddim" else {}
    expected, _ = drawn(scheduler, generator=seeded(), **eta)
    assert apart(drawn(ours(scheduler), generator=seeded(), **eta)[0], expected) <= 1e-5


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmsolver++"])
def test_a_run_may_begin_in_the_middle_whatever_was_run_before(sampler):
    """What a multistep sampler remembers is forgotten with new timesteps: the first step is of first order."""

    def second_half(scheduler):
        drawn(scheduler)
        scheduler.set_timesteps(20)
        x = start() * scheduler.init_noise_sigma
        for t in scheduler.timesteps[10:]:
            x = scheduler.step(bumpy(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return x

    assert apart(second_half(ours(theirs(sampler))), second_half(theirs(sampler))) <= 1e-5


def test_a_run_that_begins_in_the_middle_looks_back_at_nothing(monkeypatch):
    """Nor does k, by which a residual moves the step: its bend is that of a change since a step that was not taken."""
    moves = []
    monkeypatch.setattr(
        module, "advance", lambda move, *args, **rest: moves.append(move) or advance(move, *args, **rest)
    )
    scheduler = ours(theirs("sde-dpmsolver++"))
    scheduler.set_timesteps(20)
    x = start()
    for t in scheduler.timesteps[10:12]:
        x = scheduler.step(bumpy(x, t), t, x, generator=seeded()).prev_sample
    first, second = moves
    assert first.bend == 0.0 and second.bend > 0.0
    assert first.k == pytest.approx(first.direction(first.sigma) - np.sqrt((1 / first.a - 1) * first.a_prev))


@pytest.mark.parametrize("sampler", KINDS)
def test_pipelines_see_the_class_and_the_signature_they_know(sampler):
    scheduler = ours(base := theirs(sampler))
    assert isinstance(scheduler, type(base))
    assert inspect.signature(scheduler.step) == inspect.signature(base.step)
    assert type(scheduler).__name__ == f"Corrected{type(base).__name__}"
    assert {k: v for k, v in scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in base.config.items() if k[0] != "_"
    }
    assert type(pickle.loads(pickle.dumps(scheduler))) is type(scheduler)
    assert isinstance(type(base).from_config(scheduler.config), type(base))


@pytest.fixture
def unet(fitted):
    """unet(sampler, eta): the tiny bundle's, with statistics of that way of sampling in 20 steps."""
    opened = []

    def open_unet(sampler="ddim", eta=0.0):
        bundle = fitted(SamplingSettings(sampler, steps=20, eta=eta, guidance=2.0))
        opened.append(EngineUNet.from_bundle(bundle, threads=1))
        return opened[-1]

    yield open_unet
    for each in opened:
        each.close()


def fixed(scheduler, unet, **settings):
    return corrected(scheduler, unet, steps=20, **settings)


def of_bundle(sampler, unet):
    kind, settings = KINDS[sampler]
    config = getattr(diffusers, kind).load_config(unet.session.bundle.scheduler.parent)
    return getattr(diffusers, kind).from_config(config, timestep_spacing="leading", **settings)


@pytest.mark.parametrize("name", ["d2-deterministic", "d2-consistent", "d2-stochastic", "auto"])
@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0), ("euler", 0.0), ("euler-ancestral", 0.0), ("sde-dpmsolver++", 0.0)],
)
def test_corrected_steps_are_those_of_generating(unet, monkeypatch, sampler, eta, name):
    """The same network, noise and statistics through `sample`: also what is left off the sampler's noise."""
    used = unet(sampler, eta)
    bundle, noise = used.session.bundle, step_noise([4, 5])
    scheduler = corrected(of_bundle(sampler, used), used, correct=name, steps=20, eta=eta, seed=4)
    x_T, given = start().float(), {"eta": eta} if sampler == "ddim" else {}

    def drawn_with_our_noise(scheduler):
        count = itertools.count()
        monkeypatch.setattr(module, "standard_normal", lambda given, fine: torch.from_numpy(noise(next(count), SHAPE)))
        return drawn(scheduler, x_T=x_T, **given)[0]

    found = drawn_with_our_noise(scheduler)

    schedule, clipped = load_schedule(bundle.scheduler), []
    expected = SAMPLERS[sampler](
        lambda x, t: to_eps(bumpy(torch.from_numpy(x), t).numpy(), x, t, schedule),
        x_T.numpy(),
        schedule,
        steps=20,
        eta=eta,
        correct=make_correct(name, load_stats(bundle.error_stats("ort-cpu")), step_noise([4, 5], CORRECTION)),
        noise=noise,
        on_step=lambda step: clipped.append(step.clipped),
    )
    assert apart(found, torch.from_numpy(expected)) <= 1e-5
    assert scheduler.clipped == sum(clipped)
    assert scheduler.clipped > 0 or sampler in ("ddim", "euler") or not name.startswith("d2-det")
    assert apart(found, drawn_with_our_noise(ours(of_bundle(sampler, used)))) > 1e-3


def test_a_correction_draws_from_a_stream_of_its_own(unet):
    """Neither does the pipeline's generator move it, nor it the generator."""
    used = unet(eta=1.0)
    own = of_bundle("ddim", used)
    make = {seed: fixed(own, used, correct="d2-stochastic", eta=1.0, seed=seed) for seed in (1, 2)}
    x_T = start().float()
    first, again, other = (drawn(make[seed], x_T=x_T, eta=1.0, generator=seeded())[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert apart(first, other) > 1e-3
    spent = seeded()
    drawn(make[1], x_T=x_T, eta=1.0, generator=spent)
    plain = seeded()
    drawn(ours(of_bundle("ddim", used)), x_T=x_T, eta=1.0, generator=plain)
    assert torch.equal(spent.get_state(), plain.get_state())


def test_half_precision_samples_stay_so_and_are_computed_finer():
    found, _ = drawn(ours(theirs("ddim")), x_T=start().half())
    assert found.dtype == torch.float16
    assert apart(found.double(), drawn(theirs("ddim"), x_T=start().half().double())[0]) < 5e-3


def test_the_noise_may_be_given_as_diffusers_has_it():
    given = {"variance_noise": start((20, *SHAPE))[3], "eta": 1.0}
    expected, _ = drawn(theirs("ddim"), **given)
    assert apart(drawn(ours(theirs("ddim")), **given)[0], expected) <= 1e-5


def test_a_step_is_a_tuple_when_asked_for_one():
    scheduler = ours(theirs("ddim"))
    scheduler.set_timesteps(5)
    step = scheduler.step(bumpy(start(), 801), 801, start())
    found = scheduler.step(bumpy(start(), 801), torch.tensor(801), start(), return_dict=False)
    assert torch.equal(found[0], step.prev_sample)
    assert torch.equal(found[1], step.pred_original_sample)


def test_a_scheduler_without_counterpart_is_told_of_those_with_one(unet):
    with pytest.raises(RecipeError, match=r"PNDMScheduler has no counterpart.*DDIMScheduler, DDPMScheduler, DPMSolver"):
        corrected(diffusers.PNDMScheduler(), unet())
    with pytest.raises(RecipeError, match=r"algorithm_type = 'dpmsolver\+\+', solver_order = 2.*make it so"):
        corrected(diffusers.DPMSolverMultistepScheduler(solver_order=3), unet())


@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        ("euler", {"use_karras_sigmas": True}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("dpmsolver++", {"use_lu_lambdas": True}),
    ],
)
def test_noise_levels_of_another_spacing_are_refused_before_any_step(sampler, config):
    scheduler = ours(theirs(sampler, **config))
    with pytest.raises(QuaverError, match=r"visits timesteps .*leave out sigmas of another spacing"):
        scheduler.set_timesteps(20)


def test_timesteps_of_the_callers_own_are_refused():
    with pytest.raises(QuaverError, match="visits timesteps 900, 500, 100, its counterpart 667, 334, 1"):
        ours(theirs("ddpm")).set_timesteps(timesteps=[900, 500, 100])


def test_other_steps_are_refused_before_the_engine_runs(unet):
    scheduler = fixed(of_bundle("ddim", used := unet()), used)
    with pytest.raises(
        ArtifactError, match=r"steps 20, now 10.*quaver stats RECIPE --sampler ddim --steps 10 --eta 0 --guidance 2'"
    ):
        scheduler.set_timesteps(10)


@pytest.mark.parametrize(
    ("sampler", "config", "shape", "eta", "says"),
    [
        ("ddim", {}, SHAPE, 0.5, "eta 0.0, now 0.5"),
        ("ddim", {}, (2, 2, 8, 4), 0.0, r"latent_shape \(2, 4, 4\), now \(2, 8, 4\)"),
    ],
)
def test_what_a_step_shows_to_be_of_another_run_is_refused(unet, sampler, config, shape, eta, says):
    scheduler = fixed(of_bundle(sampler, used := unet()), used)
    with pytest.raises(ArtifactError, match=says):
        drawn(scheduler, x_T=start(shape), eta=eta)


def test_timesteps_that_were_not_fitted_are_refused_before_the_engine_runs(unet):
    """The other classes of diffusers have linear spacing unless a configuration says otherwise."""
    used = unet("ddpm")
    scheduler = fixed(
        diffusers.DDPMScheduler.from_config(of_bundle("ddpm", used).config, timestep_spacing="trailing"), used
    )
    with pytest.raises(
        ArtifactError, match=r"are of timesteps 951, 901, 851, …, 1, this scheduler visits 999, 949.*spac"
    ):
        scheduler.set_timesteps(20)


@pytest.mark.parametrize("other", [{"beta_schedule": "linear"}, {"beta_end": 0.012}])
def test_another_noise_schedule_is_refused(unet, other):
    used = unet()
    scheduler = fixed(diffusers.DDIMScheduler.from_config(of_bundle("ddim", used).config, **other), used)
    with pytest.raises(ArtifactError, match="other betas than the bundle's"):
        scheduler.set_timesteps(20)


def test_another_prediction_is_refused(unet):
    used = unet()
    other = diffusers.DDIMScheduler.from_config(of_bundle("ddim", used).config, prediction_type="epsilon")
    scheduler = fixed(other, used)
    with pytest.raises(ArtifactError, match="prediction v_prediction, now epsilon"):
        scheduler.set_timesteps(20)


def test_statistics_of_another_guidance_or_sampler_are_refused_when_it_is_made(unet):
    used = unet()
    with pytest.raises(ArtifactError, match=r"of ddim-20-g2, and ddim-20-g3 is asked for"):
        fixed(of_bundle("ddim", used), used, guidance=3.0)
    with pytest.raises(ArtifactError, match=r"of ddim-20-g2, and euler-20-g2 .*RECIPE --sampler euler --steps 20'"):
        fixed(of_bundle("euler", used), used)


def test_statistics_between_the_fitted_timesteps_serve_where_that_is_asked_for(unet):
    used = unet()
    with pytest.raises(ArtifactError, match=r"of ddim-20-g2, and ddim-7-g2 .*interpolate=True"):
        corrected(of_bundle("ddim", used), used, correct="mean", steps=7)
    scheduler = corrected(of_bundle("ddim", used), used, correct="mean", steps=7, interpolate=True)
    x_T = start().float()
    scheduler.set_timesteps(7)
    stats = load_stats(used.session.bundle.error_stats("ort-cpu"))
    x, t = x_T.numpy(), int(scheduler.timesteps[1])
    at = np.argsort(stats.timesteps)
    mean = [np.interp(t, stats.timesteps[at], stats.mean[at, c, 1]) for c in range(2)]
    assert t not in stats.timesteps
    taken = x - scheduler.correction.correct(x, t, x).eps
    np.testing.assert_allclose(taken, np.broadcast_to(np.reshape(mean, (2, 1, 1)), x.shape), atol=1e-5)


def test_an_engine_without_statistics_says_how_to_get_them(made_bundle):
    bare, plain = EngineUNet.from_bundle(made_bundle, threads=1), theirs("ddim")
    with pytest.raises(ArtifactError, match="quaver stats RECIPE"):
        corrected(plain, bare)
    assert corrected(plain, bare, correct="none").correction is None
    bare.close()
    bare.session = None
    with pytest.raises(ArtifactError, match=r"use EngineUNet\.from_bundle"):
        corrected(plain, bare)


def test_an_unknown_correction_names_the_nearest(unet):
    with pytest.raises(RecipeError, match="did you mean 'ptqd'"):
        fixed(of_bundle("ddim", used := unet()), used, correct="ptq")


def test_a_corrected_scheduler_can_be_corrected_anew_and_copied(unet):
    used = unet()
    first = fixed(of_bundle("ddim", used), used, correct="mean")
    second = fixed(first, used, correct="none")
    assert (type(second), second.correction) == (type(first), None)
    x_T = start().float()
    assert torch.equal(drawn(copy.deepcopy(first), x_T=x_T)[0], drawn(first, x_T=x_T)[0])


def test_a_step_out_of_place_is_refused():
    scheduler = ours(theirs("ddim"))
    with pytest.raises(QuaverError, match="call set_timesteps first"):
        scheduler.step(start(), 1, start())
    scheduler.set_timesteps(5)
    with pytest.raises(QuaverError, match=r"timestep 7 is none of this scheduler's 801, 601, 401, …, 1"):
        scheduler.step(start(), 7, start())


def test_options_that_the_step_has_not_are_refused():
    scheduler = ours(theirs("ddim"))
    scheduler.set_timesteps(5)
    scheduler.step(start(), 801, start(), use_clipped_model_output=None)
    with pytest.raises(QuaverError, match="no use_clipped_model_output, it was given True: leave it at False"):
        scheduler.step(start(), 801, start(), use_clipped_model_output=True)
    churning = ours(theirs("euler"))
    churning.set_timesteps(5)
    with pytest.raises(QuaverError, match=r"no s_churn, it was given 0\.5"):
        churning.step(start(), churning.timesteps[0], start(), s_churn=0.5)
