"""The user's cache folder, and files in it that can be made again: damaged or unwritable ones never stop a program.

Every file begins with a checksum and is written aside and moved into place. So a damaged one is known as such and
replaced, and processes that write at once, or are killed in the middle, never leave half of one under its name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

_CHECKSUM = hashlib.sha256().digest_size


def root() -> Path:
    """The folder of this package where the platform keeps caches; RuntimeError if the user has no home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "untuned"


def read(folder: str, name: str) -> bytes | None:
    """What was written under a name, None if nothing was or it cannot be used, which a warning says."""
    try:
        path = _private(folder) / name
        held = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        return _warn(folder, error)
    if held[:_CHECKSUM] == hashlib.sha256(held[_CHECKSUM:]).digest():
        return held[_CHECKSUM:]
    return _warn(folder, ValueError(f"the file {name} is damaged"))


def write(folder: str, name: str, content: bytes) -> None:
    """Keep bytes under a name, in place of what is there; a warning says if that cannot be."""
    try:
        path = _private(folder) / name
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", ignore_cleanup_errors=True) as aside:
            written = Path(aside, name)
            written.write_bytes(hashlib.sha256(content).digest() + content)
            written.replace(path)
    except (OSError, RuntimeError) as error:
        _warn(folder, error)


def _private(name: str) -> Path:
    """A folder that nobody else can write to: what Numba keeps is machine code, and runs as this user."""
    folder = root() / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if os.name == "posix" and (found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022):
        raise PermissionError("another user can write to it")
    return folder


def _warn(folder: str, error: Exception) -> None:
    try:
        where = root() / folder
    except RuntimeError:
        where = folder
    _say(
        f"untuned: cache folder {where}: {getattr(error, 'strerror', None) or error}, so what it was to give is made "
        "again in this process; if this comes back, remove the folder or set XDG_CACHE_HOME to one that is yours alone."
    )


@functools.cache  # each once
def _say(text: str) -> None:
    warnings.warn(text, stacklevel=4)
