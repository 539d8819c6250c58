import pytest

from quaver.exporter.plans.log import compiled_layers, kernel_coverage, memory

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


# as TensorRT 10 and 11 write it: the type among the words of the format, the weights of a convolution among its options
TENSORRT = (
    "Name: w + conv_a, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,64,56,56], "
    "FORMAT }], Outputs: [ { Name: y, Location: Device, Dimensions: [1,64,56,56], Format/Datatype: Row major linear "
    'FP32 }], ParameterType: Convolution, Kernel: [3,3], Weights: {"Type": "Int8", "Count": 36864}, Bias: {"Type": '
    '"Float", "Count": 64}, TacticName: sm80_xmma, StreamId: 0, Metadata: [ONNX Layer: w]\x1e[ONNX Layer: conv_a]'
)


@pytest.mark.parametrize(
    "words",
    [
        "Format/Datatype: Thirty-two wide channel vectorized row major Int8 format",
        "Format: (kCHW32) Thirty-two wide, Datatype: Int8",
        "Format/Datatype: Int8",
    ],
)
def test_tensorrts_own_words_are_read(words):
    (found,) = compiled_layers([TENSORRT.replace("FORMAT", words)])
    assert (found.inputs, found.constants, found.outputs) == (("Int8",), ("Int8",), ("Float",))
    assert found.nodes == ("w", "conv_a") and (found.reads, found.writes) == (("x",), ("y",))
    assert found.integer and str(found) == "CaskConvolution Int8 x Int8"


def test_a_kernel_that_only_reformats_multiplies_nothing():
    (found,) = compiled_layers([TENSORRT.replace("CaskConvolution", "Reformat").replace("FORMAT", "Datatype: Int8")])
    assert not found.multiplies and not found.integer


def test_bytes_are_read():
    lines = ["Total Weights Memory: 16685060 bytes", "Max Scratch Memory: 5 bytes", "Total Activation Memory: 7 bytes"]
    assert memory(lines) == {"weights": 16685060, "activation": 7}
