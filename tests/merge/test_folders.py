"""Merging folders: tensors by name over all files, other files as a whole, the index of shards as it must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dvc_modelver.errors import UsageError
from dvc_modelver.formats import open_reader
from dvc_modelver.merge.models import Merged, Side, merge_models
from dvc_modelver.metadata import describe_tensors
from dvc_modelver.store.cache import ObjectFolder
from dvc_modelver.store.folders import iter_files
from dvc_modelver.strategy import Rules, parse_strategy

Arrays = dict[str, NDArray[Any]]
INDEX = "model.safetensors.index.json"


def weights() -> Arrays:
    rng = np.random.default_rng(0)
    return {f"layers.{i}.weight": rng.standard_normal((8, 6)).astype(np.float32) for i in range(6)}


def write(folder: Path, tensors: Arrays, n_shards: int = 2, **config: Any) -> Path:
    folder.mkdir()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate(np.array_split(np.array(names), n_shards)):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        save_file({str(name): tensors[str(name)] for name in part}, folder / shard, {"format": "pt"})
        weight_map |= {str(name): shard for name in part}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 6} | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub/.hidden").write_text("kept")
    return folder


def merge(paths: Sequence[Path | None], strategy: str = "conflict", *rules: tuple[str, str]) -> Merged:
    chosen = Rules(parse_strategy(strategy))
    for pattern, text in rules:
        chosen = chosen.with_rule(pattern, parse_strategy(text))
    base, ours, theirs = (Side(str(path), path) if path else None for path in paths)
    assert ours is not None and theirs is not None
    return merge_models(base, ours, theirs, Path(ours.name).with_name("merged"), chosen)


def done(found: Merged) -> Path:
    assert found.output is not None, [f"{d.name}: {d.why}" for d in found.plan.conflicts]
    return found.output


def conflicts(found: Merged) -> dict[str, str]:
    assert found.output is None
    return {d.name: d.why for d in found.plan.conflicts}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name, _ in iter_files(folder)}


def tensors_of(folder: Path) -> Arrays:
    """Give the tensors as a program does that follows the index."""
    index = json.loads((folder / INDEX).read_text())
    return {name: load_file(folder / shard)[name] for name, shard in index["weight_map"].items()}


def test_shards_and_other_files_that_one_side_changed_are_taken(tmp_path: Path) -> None:
    base = weights()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1, "layers.4.weight": base["layers.4.weight"] + 1}
    theirs = base | {"layers.1.weight": base["layers.1.weight"] + 2}
    paths = [
        write(tmp_path / "base", base),
        write(tmp_path / "ours", ours, dropout=0.1),
        write(tmp_path / "theirs", theirs),
    ]
    (paths[2] / "tokenizer.json").write_text('{"new": 1}')
    (paths[2] / "README.md").write_text("read me")
    found = merge(paths)
    merged = ours | {"layers.1.weight": theirs["layers.1.weight"]}
    expected = write(tmp_path / "expected", merged, dropout=0.1)
    (expected / "tokenizer.json").write_text('{"new": 1}')
    (expected / "README.md").write_text("read me")
    assert contents(done(found)) == contents(expected)
    assert (tmp_path / "merged").stat().st_mode & 0o777 == 0o755
    assert {f.name: str(f.take) for f in found.plan.facts} == {
        "config.json": "ours", "tokenizer.json": "theirs", "README.md": "theirs"
    }  # fmt: skip


def test_another_number_of_shards_on_one_side_is_followed(tmp_path: Path) -> None:
    base = weights()
    ours = base | {"layers.5.weight": base["layers.5.weight"] * 2}
    paths = [write(tmp_path / "base", base), write(tmp_path / "ours", ours), write(tmp_path / "theirs", base, 3)]
    assert contents(done(merge(paths))) == contents(write(tmp_path / "expected", ours, 3))
    shutil.rmtree(tmp_path / "merged")
    assert contents(done(merge([paths[0], paths[2], paths[1]]))) == contents(tmp_path / "expected")


def test_tensors_that_both_sides_added_are_in_the_index(tmp_path: Path) -> None:
    base = weights()
    paths = [
        write(tmp_path / "base", base),
        write(tmp_path / "ours", base | {"layers.6.weight": np.ones((2, 2), np.float32)}),
        write(tmp_path / "theirs", base | {"a.weight": np.zeros(5, np.float32)}),
    ]
    path = done(merge(paths))
    found = tensors_of(path)
    assert set(found) == {*base, "layers.6.weight", "a.weight"}
    index = json.loads((path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert (path / INDEX).read_text() == json.dumps(index, indent=2, sort_keys=True) + "\n"
    with open_reader(path) as reader:  # type: ignore[union-attr]
        assert {spec.name for spec in reader.specs} == set(found)


def test_values_are_combined_across_shards(tmp_path: Path) -> None:
    base = weights()
    ours, theirs = ({name: values + i for name, values in base.items()} for i in (1, 3))
    paths = [write(tmp_path / "base", base), write(tmp_path / "ours", ours), write(tmp_path / "theirs", theirs, 3)]
    found = tensors_of(done(merge(paths, "mean")))
    assert all(np.allclose(found[name], base[name] + 2, atol=1e-6) for name in base)


def test_a_file_that_both_sides_changed_is_a_conflict_until_a_rule_decides(tmp_path: Path) -> None:
    base = weights()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    paths = [
        write(tmp_path / "base", base), write(tmp_path / "ours", ours, lr=1), write(tmp_path / "theirs", base, lr=2)
    ]  # fmt: skip
    assert conflicts(merge(paths)) == {"config.json": "changed on both sides"}
    assert not (tmp_path / "merged").exists()
    path = done(merge(paths, "conflict", ("config.json", "theirs")))
    assert json.loads((path / "config.json").read_text())["lr"] == 2
    assert np.array_equal(tensors_of(path)["layers.0.weight"], ours["layers.0.weight"])


def test_the_same_weights_in_a_second_container_are_no_silent_leftover(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = []
    for i, name in enumerate(("base", "ours", "theirs")):
        arrays = weights()
        if i:
            arrays[f"layers.{i}.weight"] += i
        folder = tmp_path / name
        folder.mkdir()
        save_file(arrays, folder / "model.safetensors")
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, folder / "pytorch_model.bin")
        paths.append(folder)
    assert conflicts(merge(paths)) == {"pytorch_model.bin": "changed on both sides"}


def test_checkpoints_with_an_optimiser_in_a_file_of_its_own(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    paths = []
    for i, name in enumerate(("base", "ours", "theirs")):
        torch.manual_seed(i)
        net = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.randn(1, 3)).sum().backward()
        optimizer.step()
        folder = tmp_path / name
        folder.mkdir()
        save_file({k: v.numpy() for k, v in net.state_dict().items()}, folder / "model.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "config.json").write_text("{}")
        paths.append(folder)
    found = merge(paths, "mean")
    assert (done(found) / "optimizer.pt").read_bytes() == (paths[1] / "optimizer.pt").read_bytes()
    assert found.notes == ("optimiser state is that of ours: it was not trained on the merged weights",)


def test_files_without_a_writer_are_taken_whole(tmp_path: Path) -> None:
    from tests.formats.checkpoints import write_checkpoint

    paths = []
    for i, name in enumerate(("base", "ours", "theirs")):
        folder = tmp_path / name
        folder.mkdir()
        write_checkpoint(folder / "model.index", {"a": np.full(4, i == 1, np.float32), "b": np.full(4, i, np.float32)})
        (folder / "config.json").write_text("{}")
        paths.append(folder)
    assert "b" in conflicts(merge(paths))
    assert conflicts(merge(paths, "mean"))
    shutil.rmtree(paths[1])
    shutil.copytree(paths[0], paths[1])
    assert contents(done(merge(paths))) == contents(paths[2])


def test_folders_in_the_cache_are_merged_where_they_lie(tmp_path: Path) -> None:
    base = weights()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.5.weight": base["layers.5.weight"] + 1}
    sides = []
    for name, arrays in (("base", base), ("ours", ours), ("theirs", theirs)):
        path = write(tmp_path / name, arrays)
        entries = {}
        for n, (file_name, _) in enumerate(iter_files(path)):
            entries[file_name] = f"{name}{n}"
            shutil.move(path / file_name, tmp_path / f"{name}{n}")
        folder = ObjectFolder(entries, lambda oid: (tmp_path / oid).open("rb", buffering=0))
        with open_reader_of(folder) as reader:
            sides.append(Side("models/llama", folder, describe_tensors(reader, "0" * 32)))
    found = merge_models(sides[0], sides[1], sides[2], tmp_path / "merged")
    expected = write(tmp_path / "expected", ours | {"layers.5.weight": theirs["layers.5.weight"]})
    assert contents(done(found)) == contents(expected)
    assert found.table is not None
    with open_reader(expected) as reader:  # type: ignore[union-attr]
        assert found.table.rows == describe_tensors(reader, "").rows


def open_reader_of(folder: ObjectFolder) -> Any:
    from dvc_modelver.formats import open_folder

    return open_folder(folder, "models/llama")


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    (tmp_path / "merged").mkdir()
    with pytest.raises(UsageError, match="is there already, expected a new folder"):
        merge([base, base, base])


def test_nothing_is_left_where_a_merge_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights()
    ours = base | {"layers.0.weight": base["layers.0.weight"] + 1}
    theirs = base | {"layers.5.weight": base["layers.5.weight"] + 1}
    paths = [write(tmp_path / n, a) for n, a in (("base", base), ("ours", ours), ("theirs", theirs))]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    from dvc_modelver.errors import EnvironmentFailed

    with pytest.raises(EnvironmentFailed, match="the disk is full"):
        merge(paths)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "ours", "theirs"]
