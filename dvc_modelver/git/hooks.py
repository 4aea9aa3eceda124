"""Our hooks in Git's hooks folder: each keeps and runs the one that was there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dvc_modelver.errors import UsageError
from dvc_modelver.git.layout import Layout
from dvc_modelver.resources import find_data_folder

HOOKS = (
    "pre-commit", "pre-merge-commit", "post-commit", "post-checkout", "post-merge", "post-rewrite",
    "post-index-change", "pre-push",
)  # fmt: skip
MARK = "# dvc-modelver hook"
KEPT = ".before-modelver"


def shell_quoted(text: str) -> str:
    """Quote a text for a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def render_hook(name: str, python: str, probe: str) -> bytes:
    """Give the text of one hook: the common preamble, then its own lines."""
    folder = find_data_folder("git-hooks")
    text = (folder / "preamble.sh").read_text() + (folder / name).read_text()
    return text.replace("@PYTHON@", shell_quoted(python)).replace("@PROBE@", shell_quoted(probe)).encode()


def is_ours(path: Path) -> bool:
    """Whether a hook file was written by us (any version)."""
    try:
        return MARK.encode() in path.read_bytes()[:512]
    except OSError:
        return False


def check_hooks_folder(layout: Layout) -> None:
    """Refuse a hooks folder that is not this clone's own.

    Raises:
        UsageError: ``core.hooksPath`` points into the work tree or elsewhere.
    """
    if not layout.hooks_dir.is_relative_to(layout.common_dir.resolve()):
        raise UsageError(
            f"core.hooksPath is {layout.hooks_dir}: our hooks would be written outside this clone's Git folder",
            hint="git config core.hooksPath .git/hooks, then the same again; or modelver install --no-hooks",
        )


def install_hooks(layout: Layout, python: str, probe: str) -> list[Path]:
    """Write every hook of ours; give the files that changed.

    A hook that was there is renamed to ``<name>.before-modelver`` and runs first, with the same arguments
    and input; when it fails, ours does not run.
    """
    layout.hooks_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for name in HOOKS:
        path, content = layout.hooks_dir / name, render_hook(name, python, probe)
        if is_ours(path):
            if path.read_bytes() == content and os.access(path, os.X_OK):
                continue
        elif path.exists() or path.is_symlink():
            kept = path.with_name(name + KEPT)
            if kept.exists():
                raise UsageError(
                    f"{path}: not ours, and {kept.name} is there too; expected one of them",
                    hint=f"merge the two by hand into {path.name}, delete {kept.name}, then modelver install",
                )
            path.rename(kept)
        _write_executable(path, content)
        written.append(path)
    return written


def uninstall_hooks(layout: Layout) -> dict[Path, bool]:
    """Remove our hooks and put back those that were there; give path -> whether one was there."""
    changed = {}
    for name in HOOKS:
        path = layout.hooks_dir / name
        kept = path.with_name(name + KEPT)
        if is_ours(path):
            changed[path] = kept.exists() or kept.is_symlink()
            if changed[path]:
                kept.replace(path)
            else:
                path.unlink()
    return changed


def _write_executable(path: Path, content: bytes) -> None:
    fd, temp = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(temp).chmod(0o755)
    Path(temp).replace(path)
