"""The verb `parity`: an engine held against its graph and the float graph, edge by edge."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from quaver.exporter.verbs.output import say
from quaver.runtime.errors import EngineError


def add(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """`quaver parity BUNDLE_OR_GRAPH`, whose table goes to stdout; status 1 when a layer is bad."""
    verb = verbs.add_parser("parity", parents=[shared], help="engine against fake-quant against float: the bad layer")
    verb.add_argument("source", metavar="BUNDLE_OR_QDQ.onnx", type=Path)
    verb.add_argument("--target", metavar="NAME", default="", help="of a bundle (default: ort-cpu)")
    verb.add_argument("--float", metavar="FLOAT.onnx", type=Path, dest="floats", help="default: the bundle's")
    verb.add_argument(
        "--inputs", metavar="FILE", type=Path, help=".npz or .safetensors (default: the bundle's records)"
    )
    verb.add_argument("--records", metavar="N", type=int, default=4, help="of a bundle, over its timesteps (default 4)")
    verb.add_argument(
        "--no-engine", action="store_true", help="the graph is not for onnxruntime (default: unet.tensorrt*)"
    )
    verb.add_argument("--memory", metavar="MIB", type=float, default=512, help="for activations (default 512)")
    verb.add_argument(
        "--tolerance", metavar="NAME=VALUE", action="append", default=[], help="steps, moved, snr, loose, weight, cost"
    )
    verb.add_argument("--json", action="store_true", help="every edge, instead of the table")
    verb.set_defaults(verb=do_parity)


def do_parity(arguments: argparse.Namespace) -> str:
    """Compare, say so, and fail when a layer is bad."""
    from quaver.exporter.parity import measure
    from quaver.exporter.parity.difference import read_tolerance
    from quaver.exporter.parity.files import find_calls, find_files
    from quaver.exporter.parity.table import table, text
    from quaver.exporter.parity.verdict import judge

    tolerance = read_tolerance(arguments.tolerance)
    quantized, floats = find_files(arguments.source, target=arguments.target, floats=arguments.floats)
    calls = find_calls(quantized, inputs=arguments.inputs, records=arguments.records)
    engine = not (arguments.no_engine or quantized.name.startswith("unet.tensorrt"))
    report = measure(quantized, floats, calls, engine=engine, memory=arguments.memory, progress=arguments.progress)
    findings = judge(report, tolerance)
    shown_text = json.dumps(table(report, findings), indent=1) if arguments.json else text(report, findings)
    if not findings:
        return shown_text
    say(shown_text)
    raise EngineError(f"{quantized.name}: first bad layer: {findings[0].layer} ({findings[0].kind})")
