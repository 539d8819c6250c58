import numpy as np
import pytest

from quaver.calib.graph import MODULE_KEY, module_of
from quaver.exporter.passes import group_norm


def group_norm_of(x, scale, bias, groups, epsilon):
    grouped = x.reshape(x.shape[0], groups, -1).astype(np.float64)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + epsilon)
    column = (-1, *[1] * (x.ndim - 2))
    return normal.reshape(x.shape) * scale.reshape(column) + bias.reshape(column)


@pytest.fixture
def norm(make):
    draw = np.random.default_rng(0)
    attributes = {"num_groups": 3, "epsilon": 1e-2}

    def build(shape, **constants):
        return make([("GroupNormalization", ["x", "w", "b"], ["y"], attributes)], {"x": shape}, ["y"], **constants)

    return build, draw.standard_normal(6, np.float32), draw.standard_normal(6, np.float32)


@pytest.mark.parametrize("space", [(5, 4), (7,)])
def test_the_lowered_form_equals_the_definition_for_any_batch(norm, run, space):
    build, scale, bias = norm
    model = build(["batch", 6, *space], w=scale, b=bias)
    model.graph.node[0].metadata_props.add(key=MODULE_KEY, value="block.norm")
    assert group_norm.run(model) and not group_norm.run(model)
    assert "GroupNormalization" not in {n.op_type for n in model.graph.node}
    assert {module_of(n) for n in model.graph.node} == {"block.norm"}
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 6, *space), np.float32)
        assert np.allclose(run(model, x=x)[0], group_norm_of(x, scale, bias, 3, 1e-2), atol=1e-5)


def test_one_open_size_stays_open(norm, run):
    build, scale, bias = norm
    model = build(["batch", 6, "time", 3], w=scale, b=bias)
    assert group_norm.run(model)
    for time in (2, 7):
        x = np.random.default_rng(time).standard_normal((2, 6, time, 3), np.float32)
        assert np.allclose(run(model, x=x)[0], group_norm_of(x, scale, bias, 3, 1e-2), atol=1e-5)


def test_two_open_sizes_are_left_alone(norm):
    build, scale, bias = norm
    assert not group_norm.run(build(["batch", 6, "height", "width"], w=scale, b=bias))


def test_a_norm_of_opset_18_has_one_scale_for_a_whole_group_and_may_leave_epsilon_out(make, run):
    scale, bias = np.array([1, 2, 3], np.float32), np.array([3, 0, -1], np.float32)
    nodes = [("GroupNormalization", ["x", "w", "b"], ["y"], {"num_groups": 3})]
    model = make(nodes, {"x": ["batch", 6, 5]}, ["y"], w=scale, b=bias)
    assert group_norm.run(model)
    x = np.random.default_rng(0).standard_normal((2, 6, 5), np.float32) / 100  # so small that epsilon counts
    expected = group_norm_of(x, scale.repeat(2), bias.repeat(2), 3, 1e-5)
    assert np.allclose(run(model, x=x)[0], expected, atol=1e-5)
