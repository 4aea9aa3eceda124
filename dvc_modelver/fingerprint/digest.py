"""Digests of tensors, and of all parameters of a model; each says how to recompute it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc_modelver.fingerprint.row import TensorRow

PARAMETERS_PREFIX = "params-blake3-1:"

_PREFIX = "blake3:"
_HEX_DIGITS = 32


class TensorDigest:
    """The digest of one tensor, fed piece by piece.

    Definition: ``blake3:`` and the first 32 hex digits (128 bits) of BLAKE3 over the values, little-endian,
    in C order of the logical shape, in the stored dtype. Name, dtype and shape do not enter, so a renamed
    or reshaped tensor keeps its digest.

    Source: https://github.com/BLAKE3-team/BLAKE3-specs

    Args:
        n_threads: Threads that work on one buffer; 0 for as many as there are processors. 1 where several files are
            hashed at once: then they only wait for one another.
    """

    def __init__(self, n_threads: int = 0) -> None:
        from blake3 import blake3

        self._hash = blake3(max_threads=n_threads or blake3.AUTO)

    def update(self, buffer: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes."""
        self._hash.update(buffer)

    def finish(self) -> str:
        """Give the digest of all bytes so far."""
        return _PREFIX + self._hash.hexdigest(length=_HEX_DIGITS // 2)


def parameters_digest(rows: Iterable[TensorRow]) -> str:
    r"""Give the digest of all parameters of a model, whatever file they are in.

    Definition: ``params-blake3-1:`` and the 64 hex digits of BLAKE3 over one line per tensor whose role is
    not ``optimizer``, sorted by the UTF-8 bytes of the name. A line is the compact JSON list
    ``[name,dtype,[axis,...],digest]``, no spaces, non-ASCII characters as they are, in UTF-8, ended by one
    line feed. Everything in it stands in the tensor table, so anybody can recompute it from there.
    """
    from blake3 import blake3

    own = [(row.name.encode(), row) for row in rows if row.role != "optimizer"]
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    total = blake3()
    for _, row in sorted(own, key=lambda item: item[0]):
        total.update((dump([row.name, row.dtype, list(row.shape), row.digest]) + "\n").encode())
    return PARAMETERS_PREFIX + total.hexdigest()
