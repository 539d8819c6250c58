import json

import pytest

from quaver.exporter.doctor import gpu_lines, plan_lines
from quaver.exporter.plans.text import describe_plan, summary
from quaver.exporter.show import describe
from quaver.runtime.artifact import Stamp, save_json
from quaver.runtime.errors import ArtifactError

RECORD = {
    "target": "tensorrt-rtx",
    "built": True,
    "compute_capabilities": ["SM86", "SM89"],
    "shapes": {"x": [[1, 4], [2, 4], [16, 4]]},
    "options": ["WEIGHT_STREAMING"],
    "seconds": 3.5,
    "plan": {"bytes": 2_500_000},
    "memory": {"weights": 1_000_000},
    "coverage": {
        "meant": 4,
        "integer": 3,
        "by_count": 0.75,
        "by_macs": 0.9,
        "missed": [{"layer": "conv_d", "kernels": ["correlation Half x Half"]}],
    },
    "unpacked": [{"layer": "attn.to_q", "from": "Int4", "to": "Half"}],
    "islands": [{"within": "mid.attn", "kernels": ["gemm Half x Half"] * 3, "layers": []}],
    "lint": {
        "products": 5,
        "agree": 4,
        "disagreements": [{"layer": "conv_d", "node": "n", "predicted": "INT8", "compiled": "FP16"}],
        "refused": ["conv_e: blocks"],
    },
    "layers": [
        {"kernel": "correlation", "inputs": ["Int8"], "constants": ["Int8"], "outputs": ["Float"]},
        {"kernel": "correlation", "inputs": ["Int8"], "constants": ["Int8"], "outputs": ["Float"]},
        {"kernel": "kgen", "inputs": [], "constants": [], "outputs": ["Half"]},
    ],
}


def test_the_summary_is_one_line_of_what_counts():
    assert summary(RECORD) == (
        "tensorrt-rtx plan for SM86, SM89, 2.5 MB: 3 of 4 layers meant for INT8 run in INT8 kernels (90.0% of their "
        "multiply-accumulates); 1 weights unpacked by their own kernels; lint was right on 4 of 5"
    )


def test_show_names_what_is_not_as_meant(tmp_path):
    (tmp_path / "unet.tensorrt-rtx.plan").write_bytes(b"plan")
    sidecar = save_json(tmp_path / "unet.tensorrt-rtx.plan.json", RECORD, Stamp("build"))
    text = describe(sidecar)
    for line in (
        "      2  correlation Int8 x Int8",
        "      1  kgen -> Half",
        "meant for INT8, and not run in it (1)\n  conv_d: correlation Half x Half",
        "weights unpacked by a kernel of their own (1)\n  attn.to_q: Int4 to Half",
        "floats between integer layers (1)\n  mid.attn: 3 kernels",
        "refused by lint, and built (1)\n  conv_e: blocks",
        "where lint was wrong (1)\n  conv_d: predicted INT8, compiled FP16",
        "  x  [1, 4] .. [2, 4] .. [16, 4]",
        "options WEIGHT_STREAMING",
    ):
        assert line in text
    assert text.splitlines()[-10:] == describe(tmp_path / "unet.tensorrt-rtx.plan").splitlines()[-10:]


def test_a_long_list_is_cut_with_its_length():
    many = RECORD | {"unpacked": [{"layer": f"l{i}", "from": "Int8", "to": "Float"} for i in range(25)]}
    lines = list(describe_plan(many))
    assert "weights unpacked by a kernel of their own (25)" in lines and "  and 5 more" in lines


def test_a_plan_left_out_says_why():
    assert list(describe_plan({"target": "tensorrt-10", "built": False, "reason": "no GPU"})) == [
        "no tensorrt-10 plan: no GPU"
    ]


def test_a_damaged_sidecar_is_one_line(tmp_path):
    (tmp_path / "unet.tensorrt-rtx.plan.json").write_text(json.dumps({"built": True}))
    with pytest.raises(ArtifactError, match="cannot be shown"):
        describe(tmp_path / "unet.tensorrt-rtx.plan.json")


def test_the_doctor_says_which_plans_can_be_built_and_for_what(monkeypatch):
    monkeypatch.setattr("quaver.exporter.doctor.left_out", lambda name: "" if name == "tensorrt-rtx" else "no tensorrt")
    rtx, others = plan_lines()
    assert "SM75 (floats)" in rtx and "SM86 (int8, int4)" in rtx and "SM89 (int8, int4, float8)" in rtx
    assert others == "plans      no tensorrt-10 or tensorrt-11: no tensorrt"


@pytest.mark.parametrize(
    ("said", "words"), [("RTX 4090, 580.1, 8.9", "plans for SM89"), ("H100, 580.1, 9.0", "no tensorrt-rtx plans")]
)
def test_the_doctor_says_what_a_gpu_runs(monkeypatch, said, words):
    class Done:
        stdout = f"{said}\n"

    monkeypatch.setattr("subprocess.run", lambda *_, **__: Done)
    assert [line for line in gpu_lines() if words in line and said in line]
