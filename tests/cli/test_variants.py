"""A quantised or converted copy of a version is recognised by its values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.sandbox import Sandbox, make_weights


def write_gguf(path: Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    for i, (_, values) in enumerate(sorted(make_weights(1, width=64).items())):
        name = f"blk.{i}.weight"  # other names, as converters give them
        if values.ndim == 2:
            qtype = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(name, gguf.quants.quantize(values, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantised_file_is_named_a_variant(sandbox: Sandbox, kind: str) -> None:
    save_file(make_weights(1, width=64), sandbox.path / "net.safetensors")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    write_gguf(sandbox.path / "net-small.gguf", kind)
    said = sandbox.modelver("add", "net-small.gguf", ok=False)
    assert "net-small.gguf: a variant of net@1 by its values (cosine 0.99" in said
    assert kind in said
    sandbox.git("commit", "-q", "-m", "quantised")
    ranked = json.loads(sandbox.modelver("similar", "net-small", "--json"))["versions"]
    assert ranked[0]["name"] == "net"
    assert ranked[0]["distance"] < 0.2


def test_another_model_is_no_variant(sandbox: Sandbox) -> None:
    save_file(make_weights(1), sandbox.path / "net.safetensors")
    sandbox.git("add", ".")
    sandbox.git("commit", "-q", "-m", "one")
    other = {name: np.ascontiguousarray(values) for name, values in make_weights(2).items()}
    save_file(other, sandbox.path / "other.safetensors")
    assert "variant" not in sandbox.modelver("add", "other.safetensors", ok=False)
