"""What is installed, what is missing and what does not fit, without importing more than torch and, where there, torchvision."""

import json
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from stimg._core.settings import MIRROR_VARIABLE, settings

DEVELOPER_EXTRAS = ("bench", "dev", "doc", "test")


@dataclass
class Report:
    """What was found. ``problems`` are faults of the installation, ``notes`` are things a user may want to know."""

    system: dict[str, str] = field(default_factory=dict)
    required: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    device: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_packages(report: Report, requirements: list[str]) -> None:
    """Compare ``requirements`` (lines of the package's metadata) with what is installed."""
    for line in requirements:
        need = Requirement(line)
        named = re.search(r"extra == [\"'](.+?)[\"']", str(need.marker or ""))
        extra = named.group(1) if named else None
        if extra in DEVELOPER_EXTRAS or (need.marker and not need.marker.evaluate({"extra": extra or ""})):
            continue
        found = _installed(need.name)
        fits = found is not None and need.specifier.contains(found, prereleases=True)
        if extra is None:
            report.required[need.name] = found or "missing"
            if not fits:
                report.problems.append(
                    f"{need.name} {found or 'is missing'}: stimg needs {need}. Run `pip install '{need.name}{need.specifier}'`."
                )
        else:
            report.optional[need.name] = found or f"not installed (extra {extra})"
            if found and not fits:
                report.problems.append(
                    f"{need.name} {found}: the extra {extra} needs {need.name}{need.specifier}. Run `pip install 'stimg[{extra}]'`."
                )


def check_torch(report: Report) -> None:
    """Import torch, and torchvision where it is installed, and say which device there is."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        report.problems.append(f"torch cannot be imported: {error}. Install it again, for this machine.")
        return
    report.device["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            report.device[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
    elif torch.backends.mps.is_available():
        report.device["mps"] = "Apple GPU"
    else:
        report.device["cpu"] = f"no GPU that torch can use; {torch.get_num_threads()} threads"
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            report.notes.append(
                "The NVIDIA driver is installed but this torch is a CPU build. For the GPU, install the CUDA build of torch."
            )
    if _installed("torchvision") is None:
        return
    try:
        import torchvision

        report.device["torchvision"] = torchvision.__version__
    except (ImportError, OSError, RuntimeError) as error:
        report.device["torchvision"] = f"{_installed('torchvision')}, broken"
        report.problems.append(
            f"torchvision {_installed('torchvision')} does not match torch {torch.__version__} ({error}); scvi-tools cannot be imported beside it. "
            "Install both from the same channel (both CPU builds or both CUDA builds), or run `pip uninstall torchvision`: stimg does not need it."
        )


def _memory() -> str:
    """Return the machine's memory in GiB as text; unknown where the system does not say."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _existing(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_data(report: Report) -> None:
    """Say where data sets are looked for and kept, and whether that works."""
    mirror = settings.mirror()
    if mirror is None:
        report.data["mirror"] = f"not set ({MIRROR_VARIABLE})"
    elif mirror.is_dir():
        report.data["mirror"] = f"{mirror} ({sum(1 for _ in mirror.iterdir())} entries)"
    else:
        report.data["mirror"] = f"{mirror}, not a folder"
        report.problems.append(f"{MIRROR_VARIABLE}={mirror} is not a folder. Correct the variable, or unset it to use the network.")
    cache = settings.cache_dir()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
    place = _existing(cache)
    report.data["cache"] = f"{cache} ({size / 2**20:.0f} MiB used, {shutil.disk_usage(place).free / 2**30:.0f} GiB free)"
    if not os.access(place, os.W_OK):
        report.problems.append(f"Downloads cannot be kept: {place} is not writable. Set STIMG_DATA_DIR to a folder that is.")


def examine() -> Report:
    """Return the report of this interpreter and machine."""
    report = Report()
    report.system = {
        "stimg": _installed("stimg") or "not installed",
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "processors": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
    }
    check_packages(report, requires("stimg") or [])
    check_torch(report)
    check_data(report)
    return report


def render(report: Report) -> str:
    """Return the report as text."""
    lines = []
    for title in ("system", "device", "data", "required", "optional"):
        lines.append(title)
        lines += [f"  {name:<18} {value}" for name, value in getattr(report, title).items()]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"problem: {problem}" for problem in report.problems]
    lines.append(f"{len(report.problems)} problem(s) found." if report.problems else "No problem found.")
    return "\n".join(lines)


def doctor(*, as_json: bool = False) -> int:
    """Print the report and return 0 where there is no problem, else 1."""
    report = examine()
    print(json.dumps(asdict(report), indent=2) if as_json else render(report))
    return 1 if report.problems else 0
