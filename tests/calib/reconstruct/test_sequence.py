import numpy as np
import pytest

from quaver.calib.reconstruct import ReconstructSettings, objective_of, reconstruct, sequence
from quaver.calib.reconstruct.coding import hard_layers, regridded
from quaver.calib.reconstruct.replay import read_graph, run
from quaver.runtime.artifact import Stamp
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import quiet

torch = pytest.importorskip("torch")


def learn(model, codings, feeds, folder, *, stamp="a", **settings):
    chosen = ReconstructSettings(**{"method": "brecq", "iterations": 20, "batch": 4, "rate": 0.05, **settings})
    stamp = Stamp("reconstruct", settings=stamp)
    part = "{:02}.safetensors".format
    made = reconstruct(model, codings, feeds, chosen, part=lambda i: folder / part(i), stamp=stamp, progress=quiet())
    return {name: coding.codes for name, coding in made.items()}


def same(first, second):
    return all(np.array_equal(codes, second[name]) for name, codes in first.items())


def test_a_run_that_was_killed_goes_on_at_its_block_and_ends_the_same(model, codings, feeds, tmp_path, monkeypatch):
    whole = learn(model, codings, feeds, tmp_path / "whole")
    real, calls = sequence.learn, []

    def dies_in_the_third(*args, **given):
        calls.append(given["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **given)

    monkeypatch.setattr(sequence, "learn", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        learn(model, codings, feeds, tmp_path / "killed")
    assert len(list((tmp_path / "killed").iterdir())) == 2
    again = learn(model, codings, feeds, tmp_path / "killed")
    assert calls == [(0, 0), (0, 1), (0, 2), (0, 2), (0, 3)]
    assert same(whole, again) and not same(whole, {name: c.codes for name, c in codings.items()})
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_a_block_reads_the_quantized_model_with_the_codes_learned_before_it(
    model, codings, feeds, tmp_path, monkeypatch
):
    graph, batches = read_graph(model), [{"x": torch.from_numpy(feed["x"])} for feed in feeds]
    real, known, compared = sequence.learn, dict(codings), []

    def values(edge, codings):
        layers = hard_layers(codings, graph.nodes, "cpu")
        return torch.cat([run(graph, batch, [edge], layers=layers)[edge] for batch in batches])

    def watched(graph, block, codings_given, seen, *args, **given):
        (read,), (made,) = block.inputs, block.outputs
        assert torch.allclose(seen.coded_in[read], values(read, known), atol=1e-5)
        assert torch.allclose(seen.outputs[made], values(made, {}), atol=1e-5)
        others = (values(read, {}), values(read, codings))  # the float model, and the codes rounded to nearest
        compared.append([float((seen.coded_in[read] - other).abs().max()) > 0.01 for other in others])
        learned = real(graph, block, codings_given, seen, *args, **given)
        known.update(regridded(known, learned.codes, learned.steps))
        return learned

    monkeypatch.setattr(sequence, "learn", watched)
    learn(model, codings, feeds, tmp_path)
    assert compared == [[False, False], [True, True], [True, True], [True, True]]


def test_blocks_learned_with_other_settings_are_learned_anew(model, codings, feeds, tmp_path, monkeypatch):
    learn(model, codings, feeds, tmp_path)
    monkeypatch.setattr(sequence, "learn", lambda *a, **k: pytest.fail("learned again"))
    learn(model, codings, feeds, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        learn(model, codings, feeds, tmp_path, stamp="b")


def test_a_damaged_part_is_learned_anew(model, codings, feeds, tmp_path):
    whole = learn(model, codings, feeds, tmp_path)
    part = tmp_path / "01.safetensors"
    part.write_bytes(part.read_bytes()[:-40])
    assert same(whole, learn(model, codings, feeds, tmp_path))


def test_nearest_learns_nothing(model, codings, feeds, tmp_path):
    assert same(learn(model, codings, feeds, tmp_path, method="nearest"), {n: c.codes for n, c in codings.items()})
    assert not list(tmp_path.iterdir())


def test_each_method_has_the_inputs_of_its_paper():
    drops = {m: objective_of(ReconstructSettings(method=m)) for m in ("adaround", "brecq", "qdrop")}
    assert {m: (o.input_drop, o.drop) for m, o in drops.items()} == {
        "adaround": (0.0, 0.0),
        "brecq": (0.0, 0.0),
        "qdrop": (0.5, 0.5),
    }
    assert objective_of(ReconstructSettings(method="brecq", inputs="float")).input_drop == 1.0


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(RecipeError, match=r"reconstruct.iterations is 0, expected 1 or more"):
        ReconstructSettings(iterations=0)
    with pytest.raises(RecipeError, match=r"reconstruct.drop is 2, expected from 0 to 1"):
        ReconstructSettings(drop=2)
