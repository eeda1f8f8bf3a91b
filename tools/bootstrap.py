"""Make the virtual environment ``.venv`` beside this folder and install stimg into it, editable, with the extras that are asked for.

Standard library only, and readable by old interpreters, so that they can say what is wrong. Nothing is done when the environment is
up to date: a stamp in it holds a hash of ``pyproject.toml``, of this file, and the extras that were installed.

    python3 tools/bootstrap.py [extra ...] [--python PATH]

Where Linux has no NVIDIA GPU, the CPU build of torch is taken if there is one to be had (0.2 GB in place of about 3 GB).
``STIMG_TORCH=cpu`` and ``STIMG_TORCH=default`` overrule what was found out about the machine.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "stimg-bootstrap.json"
OLDEST = (3, 11)
TORCH = "2.13.0"
"""The version whose CPU build is looked for; any torch that pyproject.toml allows works."""


def say(text):
    """Print one line at once, so that it stands above what the child processes print."""
    print("[bootstrap] " + text, flush=True)


def venv_python():
    """Return the interpreter of the environment, whether it exists or not."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def version_of(python):
    """Return (major, minor) of an interpreter, or None where it does not run."""
    try:
        text = subprocess.run(
            [str(python), "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
        major, minor = text.split()
        return int(major), int(minor)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def choose_python(wanted):
    """Return an interpreter that is new enough: the one asked for, this one, or another one on the path."""
    found = []
    candidates = [wanted] if wanted else [sys.executable] + [shutil.which("python3." + str(minor)) for minor in (13, 12, 11)]
    for candidate in candidates:
        version = version_of(candidate) if candidate else None
        if version and version >= OLDEST:
            return str(candidate)
        if candidate:
            found.append("{} ({})".format(candidate, ".".join(map(str, version)) if version else "does not run"))
    sys.exit(
        "stimg needs Python {}.{} or newer; found {}. Install one and run this again, or name it: make PYTHON=/path/to/python3.12 ...".format(
            OLDEST[0], OLDEST[1], ", ".join(found) or "none"
        )
    )


def make_venv(wanted):
    """Make the environment where it is missing or its interpreter no longer runs."""
    version = version_of(venv_python())
    if (
        version
        and version >= OLDEST
        and subprocess.run([str(venv_python()), "-m", "pip", "--version"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    ):
        return
    python = choose_python(wanted)
    say(f"making {VENV} with {python}")
    if VENV.exists():
        shutil.rmtree(str(VENV))
    if subprocess.run([python, "-m", "venv", str(VENV)], check=False).returncode:
        shutil.rmtree(str(VENV), ignore_errors=True)
        sys.exit(f"{python} cannot make a virtual environment. On Debian and Ubuntu install the package python3-venv first.")


def has_nvidia_gpu():
    """Say whether the NVIDIA driver lists a device."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    listed = subprocess.run([tool, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return listed.returncode == 0 and b"GPU" in listed.stdout


def wants_cpu_torch():
    """Say whether the CPU build of torch is to be looked for."""
    choice = os.environ.get("STIMG_TORCH", "auto")
    if choice not in ("auto", "cpu", "default"):
        sys.exit(f"STIMG_TORCH={choice!r} is not known; wanted auto, cpu or default.")
    if choice != "auto":
        return choice == "cpu"
    return platform.system() == "Linux" and not has_nvidia_gpu()


def pip(*arguments, **options):
    """Run pip of the environment; ``capture=True`` returns its output, or None where it fails."""
    command = [str(venv_python()), "-m", "pip", *arguments]
    if options.get("capture"):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return done.stdout.decode() if done.returncode == 0 else None
    return subprocess.run(command, check=False).returncode


def installed_torch():
    """Return the version of torch in the environment, or None."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([str(venv_python()), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else None


def torch_requirement():
    """Return what to name in the install command so that the CPU build is taken, or nothing where pip's own choice is right."""
    if installed_torch() or not wants_cpu_torch():
        return []
    pinned = "torch==" + TORCH
    report = pip("install", "--dry-run", "--no-deps", "--quiet", "--report", "-", pinned, capture=True)
    if report and json.loads(report)["install"][0]["metadata"]["version"].endswith("+cpu"):
        say("no NVIDIA GPU here: pip knows the CPU build of torch " + TORCH)
        return [pinned]
    say("no NVIDIA GPU here: asking uv for the CPU build of torch " + TORCH)
    if pip("install", "--quiet", "uv") == 0:
        command = [str(venv_python()), "-m", "uv", "pip", "install", "--python", str(venv_python()), "--torch-backend=cpu", pinned]
        if subprocess.run(command, check=False).returncode == 0:
            return []
    say(
        "no CPU build of torch could be had; pip takes the default one, with CUDA libraries: about 3 GB to download. It runs on the CPU as well."
    )
    return []


def digest():
    """Return the hash of everything that decides what is installed, but the extras."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp():
    """Return the stamp of the last complete installation, empty where there is none."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main(arguments=None):
    """Bring the environment up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml, such as test or dev")
    parser.add_argument("--python", help="interpreter to make the environment with")
    options = parser.parse_args(arguments)
    stamp = read_stamp()
    known = set(stamp.get("extras", []))
    if version_of(venv_python()) and stamp.get("digest") == digest() and known.issuperset(options.extras):
        return
    make_venv(options.python)
    extras = sorted(known.union(options.extras))
    target = str(ROOT) + ("[{}]".format(",".join(extras)) if extras else "")
    say("installing stimg" + (" with " + ", ".join(extras) if extras else "") + "; the first time this takes a few minutes")
    if pip("install", "--quiet", *torch_requirement(), "-e", target):
        sys.exit("pip could not install stimg; its message stands above. Nothing was marked as installed: run the same command again.")
    STAMP.write_text(json.dumps({"digest": digest(), "extras": extras}), encoding="utf-8")
    say("ready: " + str(VENV))


if __name__ == "__main__":
    main()
