import pytest

from quaver.calib.reconstruct.qdrop import mix

torch = pytest.importorskip("torch")


def test_half_of_the_elements_stay_float():
    generator = torch.Generator().manual_seed(0)
    mixed = mix(torch.ones(100, 100), torch.zeros(100, 100), 0.5, generator)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.02)


def test_without_dropping_nothing_is_drawn():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    x, coded = torch.ones(3), torch.zeros(3)
    assert mix(x, coded, 0.0, generator) is coded and mix(x, coded, 1.0, generator) is x
    assert torch.equal(generator.get_state(), state)
