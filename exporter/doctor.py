"""What this installation and this machine can do.

The processor decides how INT8 runs: with VNNI (or Arm's dot product) products of uint8 and int8 are summed exactly in
32 bits; with AVX2 alone they are summed in pairs in saturating 16 bits, so that weights must be kept small. A plan is
built for the compute capabilities of GPUs, and each multiplies some of the narrow formats (capability).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from quaver.exporter.build import left_out
from quaver.exporter.plans.capability import runs
from quaver.exporter.targets import ISAS, TENSORRT_RTX, detect_isa

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
RTX = TENSORRT_RTX.capabilities


def examine() -> str:
    """Versions, extras, processor and GPU, as text."""
    return "\n".join([*install_lines(), *extra_lines(), *processor_lines(), *plan_lines(), *gpu_lines()])


def install_lines() -> Iterator[str]:
    """The base install."""
    yield f"quaver     {version('quaver')}"
    yield f"python     {platform.python_version()} on {platform.platform()}"
    yield f"base       {', '.join(f'{name} {installed(name)}' for name in requirements(''))}"


def extra_lines() -> Iterator[str]:
    """Each extra, and what it lacks."""
    for extra in metadata("quaver").get_all("Provides-Extra") or []:
        found = {name: installed(name) for name in requirements(extra) if name != "quaver"}
        missing = [name for name, number in found.items() if number is None]
        there = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
        advice = f"missing {', '.join(missing)}: pip install 'quaver[{extra}]'" if missing else there
        if found:
            yield f"{extra:<10} {advice}"


def processor_lines() -> Iterator[str]:
    """Cores, memory, and the instructions that INT8 needs."""
    there = [name for name in FEATURES if name in cpu_flags()]
    listed = ", ".join(there) or "no known vector instructions"
    yield f"processor  {os.cpu_count()} cores, {memory_gib():.1f} GiB, {listed}"
    pairs = "saturating pairs: weights are kept to where they cannot"
    yield f"int8       {pairs if ISAS[detect_isa()] else 'exact dot products'}"


def requirements(extra: str) -> list[str]:
    """The distributions an extra names, or the base install for ""."""
    wanted = []
    for line in requires("quaver") or []:
        name, _, marker = line.partition(";")
        of = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if (of.group(1) if of else "") == extra and "python_version" not in marker:
            wanted.append(re.split(r"[\s\[<>=!~]", name.strip())[0])
    return wanted


def installed(name: str) -> str | None:
    """The version of a distribution, None when it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_flags() -> set[str]:
    """The features the processor reports."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    return {flag for line in text.splitlines() if re.match(r"flags|Features", line) for flag in line.split()}


def memory_gib() -> float:
    """Physical memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def plan_lines() -> Iterator[str]:
    """Which plans can be built here, and for which GPUs."""
    for module, names in (("tensorrt_rtx", ["tensorrt-rtx"]), ("tensorrt", ["tensorrt-10", "tensorrt-11"])):
        reasons = {name: left_out(name) for name in names}
        if there := [name for name in names if not reasons[name]]:
            where = f"for {capability_words()}, with or without a GPU" if module == "tensorrt_rtx" else "on its GPU"
            yield f"plans      {', '.join(there)} {where}"
        else:
            yield f"plans      no {' or '.join(names)}: {reasons[names[0]]}"


def capability_words() -> str:
    """The capabilities of RTX GPUs with what they multiply: "SM89 (int8, int4, float8)"."""
    return ", ".join(f"{name} ({', '.join(runs(name)) or 'floats'})" for name in RTX)


def gpu_lines() -> Iterator[str]:
    """Name, driver and compute capability of each NVIDIA GPU, as its driver's tool says, and the plans it runs."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        yield "gpu        none found: TensorRT-RTX plans can be built here, and not run"
        return
    for line in done.stdout.strip().splitlines():
        *_, number = line.split(",")
        name = f"SM{number.strip().replace('.', '')}"
        known = f"runs tensorrt-rtx plans for {name}" if name in RTX else "runs no tensorrt-rtx plans"
        yield f"gpu        {line}: {known}"
