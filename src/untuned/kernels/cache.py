"""Sources of kernels as modules in a folder of the user, where Numba and Triton find what they compiled before."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

_POINTERS = Path(__file__).with_name("pointers.py").read_text()  # inlined into every kernel, so part of its identity


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "untuned" / "kernels"


@functools.cache
def compile_source(source: str) -> Any:
    """The compiled function of a source text, from the cache on disk if it was compiled before."""
    name = "untuned_kernel_" + hashlib.sha256((source + _POINTERS).encode()).hexdigest()[:24]
    try:
        return _load(_written(_cache_folder(), name, source), name)
    except (OSError, RuntimeError):  # no home, a folder of somebody else, a full disk: a folder of this process
        return _load(_written(Path(tempfile.mkdtemp(prefix="untuned-")), name, source), name)


def _written(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    if not path.exists():
        temporary = path.with_suffix(f".{uuid.uuid4()}.tmp")
        temporary.write_text(source)
        os.replace(temporary, path)
    return path


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba's cache looks its functions up by the name of their module
    spec.loader.exec_module(module)
    return module.sweep
