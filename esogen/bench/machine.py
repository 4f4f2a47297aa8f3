"""What figures were measured on: processor, GPU and its clocks, versions, commit."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[2]
_PROCESSOR = Path("/proc/cpuinfo")
_NO_TAGS = ("--abbrev=40", "--exclude=*")
_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
"""What `nvidia-smi` calls them, in MHz and watts."""


def machine() -> dict[str, object]:
    """Versions, processor and threads; `commit` where esogen runs from a checkout, else None."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "esogen": version("esogen"),
        "commit": commit(_ROOT),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def device_facts(device: torch.device) -> dict[str, object]:
    """What the device is and how fast its clocks run now; None for what it does not tell."""
    if device.type != "cuda":
        return {
            "device": str(device),
            "name": _processor(),
            "clocks": {"cpu MHz": _of_processor("cpu MHz")},
        }
    gpu = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": gpu.name,
        "memory_bytes": gpu.total_memory,
        "driver": _asked_of_gpu(device, ("driver_version",))["driver_version"],
        "clocks": _asked_of_gpu(device, _CLOCKS),
    }


def commit(root: Path) -> str | None:
    """The commit of the checkout at `root`, with `-dirty` where files differ from it.

    None where `root` is no checkout, or git does not say.
    """
    if not (root / ".git").exists():
        return None
    return _output("git", "-C", str(root), "describe", "--always", "--dirty", *_NO_TAGS)


def _asked_of_gpu(device: torch.device, names: tuple[str, ...]) -> dict[str, str | None]:
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = f"--query-gpu={','.join(names)}"
    answer = _output("nvidia-smi", "-i", uuid, query, "--format=csv,noheader,nounits")
    values = [None] * len(names) if answer is None else answer.split(", ")
    return dict(zip(names, values, strict=True))


def _processor() -> str:
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(name: str) -> str | None:
    if not _PROCESSOR.exists():
        return None
    text = _PROCESSOR.read_text(encoding="utf-8")
    found = re.search(rf"^{name}\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else None


def _output(*command: str) -> str | None:
    """What a program says, None where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
