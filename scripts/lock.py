"""Writes requirements/lock.txt: pip's choice for pyproject.toml in a clean environment."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_LOCK = _ROOT / "requirements" / "lock.txt"
# Pinned by hand, since merges have the same bytes only with one build of torch.
_PINS = ("torch==2.13.0",)
# Dependencies of torch's CUDA builds; other builds need others, or none.
_OF_ONE_BUILD = re.compile(r"(nvidia|cuda|triton|pytorch-triton)[-_a-z0-9]*==", re.IGNORECASE)
_HEADER = """\
# The exact versions that Afluente is tested with; `make install` uses them as constraints:
#
#     pip install -c requirements/lock.txt -e '.[worker,ctranslate2,vad,embedded,dev]'
#
# `make lock` renews this file: it installs the project into a clean environment and writes down
# what pip chose. Run `make check` on the result before committing it. torch is pinned in
# scripts/lock.py, without a local version (+cpu, +cu130): any build of that release will do.
"""


def main() -> int:
    """Install all dependencies into a temporary environment, and freeze it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *_PINS, *_requirements()], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    _LOCK.parent.mkdir(exist_ok=True)
    _LOCK.write_text(_HEADER + "".join(f"{line}\n" for line in _lines(frozen)))
    return 0


def _requirements() -> list[str]:
    """Return the project's dependencies with those of all extras."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(need for extra in extras for need in extra)]


def _lines(frozen: str) -> list[str]:
    """Return `name==version` lines, without local versions and dependencies of CUDA builds."""
    lines = []
    for line in frozen.splitlines():
        name, found, version = line.partition("==")
        if not found:  # `torch @ file:///...`, a wheel from a folder
            name, _, address = line.partition(" @ ")
            version = _version_in(address)
        if not _OF_ONE_BUILD.match(f"{name}=="):
            lines.append(f"{name}=={version.partition('+')[0]}")
    return sorted(lines, key=str.lower)


def _version_in(address: str) -> str:
    return address.rsplit("/", 1)[-1].split("-")[1].replace("%2B", "+")


if __name__ == "__main__":
    sys.exit(main())
