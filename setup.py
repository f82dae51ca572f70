"""Compiles the kernels (worker/merging/native) when the project is built or installed.

With the compiler that the build requirement `ziglang` brings, so that nothing but a package
registry is needed. AFLUENTE_CC names another: clang, or gcc from 12 on. (Not CC: many environments
set that, to compilers that are too old.)
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

_NATIVE = Path("worker/merging/native")
_MACHINE = platform.machine()
# One build for each level of x86-64's instructions (the System V psABI's); a worker takes the best
# that its processor runs.
_LEVELS = ("v2", "v3", "v4") if _MACHINE == "x86_64" else ()
_FLAGS = (
    "-std=gnu17", "-O3", "-D_FILE_OFFSET_BITS=64", "-Wall", "-Wextra",
    "-fPIC", "-shared", "-fvisibility=hidden", "-s",
    # Each operation is rounded by itself, wherever it is run.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_GLIBC = "2.28"
"""The oldest that a build runs with; torch's wheels ask for the same."""
_ZIG_KNOWS = ("x86_64", "aarch64")


class CompileKernels(build_ext):
    """Builds plain shared libraries, which are loaded by ctypes: no interpreter's headers."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return where a library goes: its name says nothing of a Python version."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile all sources into one library."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        _, _, level = ext.name.partition(f"{_MACHINE}_")
        sources = f'-DSOURCES="{_digest()}"'
        command = [*_compiler(level), *_FLAGS, sources, *ext.sources, "-lm", "-o", str(target)]
        cache = str(Path(self.build_temp).absolute() / "zig")
        environment = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache, **os.environ}
        if subprocess.run(command, check=False, env=environment).returncode:
            raise SystemExit(
                f"The kernels could not be compiled by {' '.join(command[:3])}. Needed is the "
                "build requirement ziglang (pip brings it), or AFLUENTE_CC naming clang or gcc 12."
            )


def _compiler(level: str) -> list[str]:
    chosen = os.environ.get("AFLUENTE_CC")
    wide = ["-mprefer-vector-width=512"] if level else []
    if not chosen and find_spec("ziglang") and _MACHINE in _ZIG_KNOWS:
        march = [f"-march=x86_64_{level}"] if level else []
        target = f"{_MACHINE}-linux-gnu.{_GLIBC}"
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", target]
        return [*zig, *march, *wide, "-fno-sanitize=all"]
    march = [f"-march=x86-64-{level}"] if level else []
    return [*shlex.split(chosen or "cc"), *march, *wide]


def _digest() -> str:
    """Return the digest of the sources: `binding.py` refuses a build of others."""
    whole = hashlib.sha256()
    for path in sorted(_NATIVE.glob("*.[ch]")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


setup(
    ext_modules=[
        Extension(
            f"worker.merging.native.native_{suffix}",
            sources=sorted(map(str, _NATIVE.glob("*.c"))),
            depends=sorted(map(str, _NATIVE.glob("*.h"))),
        )
        for suffix in ([f"{_MACHINE}_{level}" for level in _LEVELS] or [_MACHINE])
    ],
    cmdclass={"build_ext": CompileKernels},
)
