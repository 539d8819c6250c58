import pytest

from quaver.calib.quant import INT4
from quaver.calib.reconstruct.adaround import hard_codes, rectified, regularizer, soft_codes, start, temperature

torch = pytest.importorskip("torch")


def test_learning_starts_at_the_float_weight():
    ratio = torch.linspace(-6.9, 6.9, 50)
    assert torch.allclose(soft_codes(ratio.floor(), start(ratio), INT4), ratio, atol=1e-5)


def test_hard_codes_at_the_start_are_those_rounded_to_nearest():
    ratio = torch.tensor([-7.6, -0.4, 0.4, 0.6, 2.51, 7.4])
    assert hard_codes(ratio.floor(), start(ratio), INT4).tolist() == [-8, 0, 0, 1, 3, 7]


def test_codes_stay_in_their_format():
    v = torch.full((2,), 9.0)
    assert hard_codes(torch.tensor([7.0, 9.0]), v, INT4).tolist() == [7, 7]
    assert soft_codes(torch.tensor([-12.0, 7.0]), v, INT4).tolist() == [-8.0, 7.0]


def test_the_regularizer_counts_the_undecided():
    assert float(regularizer(torch.tensor([-9.0, 9.0]), 2.0)) == 0.0
    assert float(regularizer(torch.zeros(3), 20.0)) == pytest.approx(3.0)
    quarter = start(torch.tensor([0.25]))  # 1 - |2 / 4 - 1|^2
    assert float(regularizer(quarter, 2.0)) == pytest.approx(0.75, abs=1e-5)


def test_the_stretched_sigmoid_reaches_both_ends():
    assert rectified(torch.tensor([-4.0, 4.0])).tolist() == [0.0, 1.0]


def test_the_temperature_waits_then_falls_linearly_from_20_to_2():
    assert temperature(19, 100, 0.2) is None
    assert temperature(20, 100, 0.2) == 20.0
    assert temperature(60, 100, 0.2) == pytest.approx(11.0)
    assert temperature(100, 100, 0.2) == pytest.approx(2.0)
