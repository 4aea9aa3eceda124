"""Asks with a few stat calls whether any model, metadata file or pointer moved since we last looked.

Run as ``python -I -S probe.py fsmonitor|check``: the standard library only, since Git waits for it at every
``git status``. Only when something moved does it start the program proper.
"""

import os
import sys

Row = list[str]


def find_git_dir() -> str:
    """Give this work tree's Git folder; the current folder is the top of the work tree."""
    found = os.environ.get("GIT_DIR", ".git")
    if os.path.isfile(found):
        with open(found, encoding="utf-8", errors="surrogateescape") as file:
            found = file.read().removeprefix("gitdir:").strip()
    return found


def stamp(path: str) -> str:
    """Give size, modification, change time (ns) and inode of a file; ``-`` when it is absent, or no file."""
    try:
        st = os.stat(path)
    except OSError:
        return "-"
    kind = st.st_mode & 0o170000
    if kind == 0o040000:
        return stamp_folder(path)
    if kind != 0o100000:
        return "-"
    return f"{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}:{st.st_ino}"


def stamp_folder(top: str) -> str:
    """Give the same for all files of a folder together, as `dvc_modelver.store.folders.stamp_folder` does."""
    import binascii

    found = []
    for folder, below, names in os.walk(top):
        below[:] = [name for name in below if name not in (".git", ".hg", ".dvc")]
        for name in names:
            try:
                st = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            if st.st_mode & 0o170000 == 0o100000:
                found.append((os.path.relpath(os.path.join(folder, name), top), st))
    size = modified = changed = crc = 0
    for name, st in sorted(found, key=lambda item: item[0]):
        size += st.st_size
        modified, changed = max(modified, st.st_mtime_ns), max(changed, st.st_ctime_ns)
        line = f"{name}:{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}:{st.st_ino}\n"
        crc = binascii.crc32(line.encode("utf-8", "surrogateescape"), crc)
    return f"{size}:{modified}:{changed}:{crc}"


def decode_path(text: str) -> str:
    """Undo the escapes of a path in the state file."""
    return text.replace("%09", "\t").replace("%0A", "\n").replace("%25", "%")


def has_moved(state: str) -> bool:
    """Whether any row of the state file differs from what is on disk; True without a state file."""
    try:
        with open(state, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
    except OSError:
        return True
    for row in rows[1:]:
        if len(row) != 7:
            return True
        _, _, model, metadata, pointer, pointer_path, path = row
        path, pointer_path = decode_path(path), decode_path(pointer_path)
        if stamp(path) != model or stamp(path + ".modelver.json") != metadata or stamp(pointer_path) != pointer:
            return True
    return False


def main(argv: list[str]) -> int:
    """``check``: exit 1 when something moved. ``fsmonitor``: the answer of Git's fsmonitor protocol, version 2."""
    git_dir = find_git_dir()
    skip = os.environ.get("MODELVER_SKIP") == "1"
    moved = not skip and has_moved(os.path.join(git_dir, "modelver", "state"))
    if argv[:1] == ["check"]:
        return int(moved)
    if moved:
        sys.stdout.flush()
        out = os.dup(1)
        os.dup2(2, 1)  # whatever the program prints must not enter the answer
        os.spawnv(  # noqa: S606 - our own interpreter, no shell
            os.P_WAIT,
            sys.executable,
            [sys.executable, "-P", "-m", "dvc_modelver.drivers.hooks", "fsmonitor", str(os.getppid())],
        )
        os.dup2(out, 1)
    os.write(1, b"modelver\0/\0")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
