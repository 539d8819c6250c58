"""Bytes on disk and where the figures were taken: what needs no timing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("quaver", "onnxruntime", "numpy")


def file_bytes(path: Path) -> int:
    """Size of a file, with the external data of an ONNX graph beside it."""
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def environment() -> dict[str, str]:
    """Processor, cores this process may use, system, Python, and the libraries that decide a latency."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = {"processor": processor(), "cores": str(cores), "system": f"{platform.system()} {platform.machine()}"}
    return place | {"python": platform.python_version()} | {name: installed(name) for name in LIBRARIES}


def processor() -> str:
    """The name of the processor, as far as the system says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def installed(name: str) -> str:
    """The version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
