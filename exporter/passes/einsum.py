"""Write attention's Einsum as a product of matrices, which runtimes fuse and quantizers know.

    out[B.., f.., g] = sum_k lhs[B.., f.., k] rhs[B.., k, g]        for example "bhid,bhjd->bhij"

B are the labels of both operands and the result, k the one they are summed over, f and g those of one operand. That is
MatMul between transposed operands, exactly: the same products, summed over the same label. Another Einsum stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaver.calib.graph import MODULE_KEY, module_of
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Product:
    """How each operand is transposed before MatMul, and its result after."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    out: tuple[int, ...]


def run(model: onnx.ModelProto) -> bool:
    """Replace every Einsum of two operands that is one matrix product; True if there was any."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = as_product(_equation(node)) if node.op_type == "Einsum" and len(node.input) == 2 else None
        nodes += _written(node, found) if found else [node]
    changed = any(new is not old for new, old in zip(nodes, model.graph.node, strict=False))
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return changed


def as_product(equation: str) -> Product | None:
    """The transposes that make an equation a MatMul, None when it is none."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    left, comma, right = terms.partition(",")
    labels = (left, right, out)
    if not (arrow and comma) or "," in right or "." in equation or any(len(set(x)) != len(x) for x in labels):
        return None
    batch = [x for x in out if x in left and x in right]
    summed = [x for x in left if x in right and x not in out]
    rows, columns = ([x for x in out if x in side and x not in batch] for side in (left, right))
    whole = len(batch) + 1 + len(rows) == len(left) and len(batch) + 1 + len(columns) == len(right)
    if len(summed) != 1 or len(columns) != 1 or not whole or not (len(rows) == 1 or (rows and not batch)):
        return None
    made = "".join((*batch, *rows, *columns))
    return Product(
        tuple(left.index(x) for x in (*batch, *rows, *summed)),
        tuple(right.index(x) for x in (*batch, *summed, *columns)),
        tuple(made.index(x) for x in out),
    )


def _equation(node: onnx.NodeProto) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == "equation"), "")


def _written(node: onnx.NodeProto, product: Product) -> list[onnx.NodeProto]:
    """The MatMul in place of `node`, with the transposes that are not the identity."""
    make = need("onnx", extra="export").helper.make_node
    result, nodes, edges = node.output[0], [], []
    for side, edge, order in zip("lr", node.input, (product.left, product.right), strict=True):
        turned = f"{result}.{side}"
        nodes += [make("Transpose", [edge], [turned], f"{turned}.transpose", perm=order)] * (not _identity(order))
        edges.append(edge if _identity(order) else turned)
    straight = result if _identity(product.out) else f"{result}.product"
    nodes.append(make("MatMul", edges, [straight], node.name or f"{result}.matmul"))
    if straight != result:
        nodes.append(make("Transpose", [straight], [result], f"{result}.transpose", perm=product.out))
    for new in nodes:
        if module := module_of(node):
            new.metadata_props.add(key=MODULE_KEY, value=module)
    return nodes


def _identity(order: tuple[int, ...]) -> bool:
    return order == tuple(range(len(order)))
