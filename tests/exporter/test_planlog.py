import pytest

from quaver.exporter.planlog import compiled_layers, kernel_coverage

TENSOR = "{{ Name: {0}, Dimensions: [-1,64], Strides: [64,1], Datatype: {1}, Format: (Linear) Row major }}"


def line(name, kernel, inputs, constants, nodes):
    def many(kinds):
        return ", ".join(TENSOR.format(f"t{i}", kind) for i, kind in enumerate(kinds))

    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kernel}, Inputs: [ {many(inputs)}], Constants: [ {many(constants)}], "
        f"Outputs: [ {many(['Float'])}], TacticName: , StreamId: 0, Metadata: {metadata}"
    )


LOG = [
    "Registering layer: conv_a for ONNX node: conv_a",
    line("conv_a_myl0_1", "correlation", ["Int8"], ["Int8", "Float"], ["conv_a", "conv_a.weight.dq"]),
    line("__myl_MulAdd_myl0_2", "kgen", ["Float", "Float"], ["Float"], ["conv_a", "add"]),
    line("lin_b+lin_c_myl0_3", "gemm", ["Int8"], ["Int8"], ["lin_b", "lin_c"]),
    line("conv_d_myl0_4", "correlation", ["Half"], ["Half"], ["conv_d"]),
    "Name: __mye1_myl0_5, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: ",
]


def test_compiled_layers_are_read_from_the_log():
    plan = list(compiled_layers(LOG))
    assert [(c.kernel, c.inputs, c.nodes) for c in plan[:3]] == [
        ("correlation", ("Int8",), ("conv_a", "conv_a.weight.dq")),
        ("kgen", ("Float", "Float"), ("conv_a", "add")),
        ("gemm", ("Int8",), ("lin_b", "lin_c")),
    ]
    assert [c.integer for c in plan] == [True, False, True, False, False]


def test_a_fused_kernel_covers_all_its_layers_and_a_float_one_is_named():
    meant = [
        {"name": n, "node": n, "macs": m} for n, m in (("conv_a", 60), ("lin_b", 10), ("lin_c", 10), ("conv_d", 20))
    ]
    covered = kernel_coverage(list(compiled_layers(LOG)), meant)
    assert (covered["integer"], covered["meant"]) == (3, 4)
    assert covered["by_count"] == pytest.approx(0.75) and covered["by_macs"] == pytest.approx(0.8)
    assert covered["missed"] == [{"layer": "conv_d", "kernels": ["correlation Half x Half"]}]


def test_four_bit_weights_reach_the_kernel_as_its_second_input():
    log = [line("u", "kgen", [], ["Int4"], ["c"]), line("c_1", "correlation", ["Int8", "Int8"], ["Float"], ["c"])]
    assert [c.integer for c in compiled_layers(log)] == [False, True]


def test_a_layer_that_only_a_mover_names_is_missed():
    covered = kernel_coverage(list(compiled_layers(LOG[2:3])), [{"name": "conv_a", "node": "conv_a", "macs": None}])
    assert covered["by_count"] == 0 and covered["missed"][0]["kernels"] == ["kgen Float x Float"]
