"""A graph of any ONNX version as one of the version the exporter writes.

Up, onnx's own converter rewrites operators whose form has changed; it sees constants of SMALL bytes at most and
stand-ins for all others, so weights stay where they are. Down, most newer versions of an operator differ in the types
they take only: where the older schema has all the attributes in use, the graph is of the older version already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaver.calib.graph import MODULE_KEY, module_of
from quaver.runtime.errors import RecipeError, first_line
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx

OPSET = 21
IR = 10  # the IR version that came with it
SMALL = 1 << 16  # bytes of a constant that is data to a rewrite; larger ones are weights


def to_opset(model: onnx.ModelProto, *, opset: int = OPSET) -> onnx.ModelProto:
    """The same network at `opset`; nodes keep their module path.

    Raises: RecipeError naming an operator that has no form at that version.
    """
    found = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    model = _older(model, opset) if found > opset else _newer(model, opset) if found < opset else model
    del model.opset_import[:]
    model.opset_import.add(domain="", version=opset)
    model.ir_version = IR
    return model


def stand_ins(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with inputs in the place of its weights, for what reads or rewrites graphs; and the weights."""
    onnx = need("onnx", extra="export")
    held = [t for t in model.graph.initializer if t.external_data or t.ByteSize() > SMALL]
    names = {tensor.name for tensor in held}
    light = onnx.ModelProto(ir_version=max(model.ir_version, 8), opset_import=model.opset_import)
    light.graph.name = model.graph.name or "denoiser"
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    light.graph.initializer.extend(t for t in model.graph.initializer if t.name not in names)
    light.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in held)
    return light, held


def _newer(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    onnx = need("onnx", extra="export")
    modules = {out: module_of(node) for node in model.graph.node for out in node.output}
    light, held = stand_ins(model)
    try:
        made = onnx.version_converter.convert_version(light, opset)
    except Exception as error:  # the converter's class lies in its C++ module
        raise RecipeError(
            f"the graph does not convert to opset {opset} ({first_line(error)}): export it at that opset"
        ) from error
    inputs = made.graph.input[: len(model.graph.input)]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(held)
    for node in made.graph.node:
        if module := next((modules[out] for out in node.output if modules.get(out)), ""):
            node.metadata_props.add(key=MODULE_KEY, value=module)
    return made


def _older(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    onnx = need("onnx", extra="export")
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except Exception as error:  # onnx.defs.SchemaError, of the C++ module
            raise RecipeError(
                f"the operator {node.op_type} ({node.name}) is newer than opset {opset}: export it at that opset"
            ) from error
        if unknown := {a.name for a in node.attribute} - set(schema.attributes):
            raise RecipeError(
                f"{node.op_type} ({node.name}) sets {', '.join(sorted(unknown))}, newer than opset {opset}: export it "
                "at that opset"
            )
    return model
