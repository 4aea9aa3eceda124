"""Asks with a few stat calls whether any model, metadata file or pointer moved since we last looked.

Run as ``python -I -S probe.py fsmonitor|check|concerned``: the standard library only, since Git waits for it at every
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


def read_rows(state: str) -> list[Row] | None:
    """Give the rows of the state file; None without one."""
    try:
        with open(state, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n").split("\t") for line in file][1:]
    except OSError:
        return None


def named_md5(metadata: str) -> str:
    """Give the md5 that a metadata file on disk names, as we write it; empty where there is none."""
    try:
        with open(metadata, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 16).partition('\n    "md5": "')[2].partition('"')[0]
    except OSError:
        return ""


def is_behind(state: str, metadata: list[str]) -> bool:
    """Whether a metadata file on disk names other weights than those that were last seen or agreed on."""
    seen = {decode_path(row[-1]) + ".modelver.json": row[:2] for row in read_rows(state) or ()}
    return any(named_md5(path) not in ("", *seen.get(path, ())) for path in metadata)


def has_moved(state: str) -> bool:
    """Whether any row of the state file differs from what is on disk; True without a state file."""
    rows = read_rows(state)
    if rows is None:
        return True
    for row in rows:
        if len(row) != 7:
            return True
        _, _, model, metadata, pointer, pointer_path, path = row
        path, pointer_path = decode_path(path), decode_path(pointer_path)
        if stamp(path) != model or stamp(path + ".modelver.json") != metadata or stamp(pointer_path) != pointer:
            return True
    return False


def main(argv: list[str]) -> int:
    """Ask; ``fsmonitor`` prints the answer of Git's fsmonitor protocol, version 2.

    Returns:
        Of ``check``: 1 when something moved. Of ``concerned``: 1 also when standard input, paths ended by NUL, names
        metadata of other weights than those on disk.
    """
    state = os.path.join(find_git_dir(), "modelver", "state")
    skip = os.environ.get("MODELVER_SKIP") == "1"
    moved = not skip and has_moved(state)
    if argv[:1] == ["concerned"]:
        named = [os.fsdecode(path) for path in sys.stdin.buffer.read().split(b"\0")]
        return int(moved or is_behind(state, named))
    if argv[:1] == ["check"]:
        return int(moved)
    if moved:
        sys.stdout.flush()
        out = os.dup(1)
        start = os.path.join(os.path.dirname(__file__), "start.py")
        os.dup2(2, 1)  # whatever the program prints must not enter the answer
        os.spawnv(  # noqa: S606 - our own interpreter, no shell
            os.P_WAIT,
            sys.executable,
            [sys.executable, "-P", start, "hooks", "fsmonitor", str(os.getppid())],
        )
        os.dup2(out, 1)
    os.write(1, b"modelver\0/\0")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
