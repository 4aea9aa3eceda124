"""Whether the signature of a tag is good, as Git says: OpenPGP, X.509 or SSH."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dvc_modelver.git.porcelain import Git

_SIGNERS = (
    re.compile(r"^\[GNUPG:\] (?:GOODSIG|BADSIG|EXPKEYSIG|EXPSIG|REVKEYSIG) [0-9A-F]+ (.+)$", re.MULTILINE),
    re.compile(r'^Good "git" signature for (.+?) with ', re.MULTILINE),
)


@dataclass(frozen=True)
class Signature:
    """What Git says of one tag's signature.

    Attributes:
        state: ``good``, ``bad`` (the tag is not what was signed), or ``unknown``: the key is not among those that
            ``gpg.ssh.allowedSignersFile`` or the key ring has, or has expired, or the program is missing.
        signer: Who signed, as the key ring or the allowed signers have it; empty where they do not.
        detail: Git's words; empty for a good one.
    """

    tag: str
    state: str
    signer: str = ""
    detail: str = ""


def verify_tag(git: Git, tag: str) -> Signature:
    """Let Git verify the signature of a tag that has one."""
    code, out, err = git.run_for_all("verify-tag", "--raw", f"refs/tags/{tag}")
    said = out.decode("utf-8", "replace") + err
    signer = next((match[1] for pattern in _SIGNERS if (match := pattern.search(said))), "")
    if code == 0:
        return Signature(tag, "good", signer)
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("[GNUPG:]")]
    is_bad = "[GNUPG:] BADSIG" in said or "incorrect signature" in said
    return Signature(tag, "bad" if is_bad else "unknown", signer, lines[0].removeprefix("error: ") if lines else "")
