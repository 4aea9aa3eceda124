from __future__ import annotations

import collections
import io
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvc_modelver.errors import BadModelError
from dvc_modelver.formats import pickles
from dvc_modelver.formats.pickles import Call, Global, Machine, Persistent, Source, Span, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def source_of(data: bytes) -> Source:
    return Source(io.BytesIO(data), "m.pkl", 0, len(data))


def root_of(data: bytes) -> Any:
    return load(source_of(data)).root


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)), inner, max_size=4)
    | st.sets(st.text(max_size=3))
    | st.frozensets(st.integers())
    | st.tuples(inner)
    | st.tuples(inner, inner, inner, inner),
    max_leaves=12,
)  # fmt: skip


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_is_what_pickle_reads(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert as_plain(root_of(data)) == pickle.loads(data)


def as_plain(value: Any) -> Any:
    # Tuples that are keys hash in their own way, so that a dict of them is compared by its items.
    if isinstance(value, dict):
        return {tuple(key) if isinstance(key, tuple) else key: as_plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_plain, value))
    return value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_kind_of_container_is_plain(protocol: int) -> None:
    value = [
        collections.OrderedDict(a=1),
        collections.defaultdict(int, b=2),
        collections.Counter("xyx"),
        bytearray(b"ab\xff"),
        b"",
        "\x80\u20ac\n\\",
        -(2**70),
        {(1, "a"): 2, (): 0, 3 + 4j: 5, 2**80: 6, frozenset([7]): 8},
    ]
    found = root_of(pickle.dumps(value, protocol))
    assert found[:-1] == [{"a": 1}, {"b": 2}, {"x": 2, "y": 1}, b"ab\xff", b"", "\x80\u20ac\n\\", -(2**70)]
    assert list(found[-1].items()) == list(value[-1].items())  # type: ignore[attr-defined]


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Listed(list[int]):
    pass


class Mapped(dict[str, int]):
    def __reduce__(self) -> Any:
        return (Mapped, (), {"note": 1}, None, iter(self.items()))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_is_a_record_of_what_would_make_it(protocol: int) -> None:
    point = root_of(pickle.dumps(Point(3), protocol))
    assert isinstance(point, Call)
    assert point.attributes() == {"x": 3}
    assert str(point.function).endswith("Point") or str(point.args[0]).endswith("Point")
    listed = root_of(pickle.dumps(Listed([4, 5]), protocol))
    assert listed.items == [4, 5] or [4, 5] in listed.args
    mapped = root_of(pickle.dumps(Mapped(k=6), protocol))
    assert mapped.pairs == [("k", 6)]
    assert mapped.attributes() == {"note": 1}


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_pickle_would_run_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    owned = tmp_path / "owned"
    found = load(source_of(pickle.dumps({"w": [Harm(owned)]}, protocol)))
    assert found.globals == (Global(os.system.__module__, "system"),)
    assert found.called == set(found.globals)
    assert found.root == {"w": [found.root["w"][0]]}  # type: ignore[index]
    assert not owned.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"(S'1'\ni__builtin__\neval\n.", "builtins.eval"),
        (b"(c__builtin__\neval\nS'1'\no.", "builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)R.", "builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)\x81.", "builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)}\x92.", "builtins.eval"),
        (b"\x80\x02\x82\x07)R.", "copyreg.extension 7"),
        (b"\x80\x02\x84\x07\x00\x01\x00)R.", "copyreg.extension 65543"),
    ],
)
def test_every_way_to_call_is_seen(data: bytes, name: str) -> None:
    found = load(source_of(data))
    assert [str(used) for used in found.called] == [name]
    assert isinstance(found.root, Call)


def test_a_name_computed_by_the_pickle_is_reported_as_such() -> None:
    found = load(source_of(b"\x80\x04]\x8c\x04eval\x93."))
    assert found.globals[0].module == "<computed>"


def test_what_was_imported_before_an_error_is_known() -> None:
    machine = Machine(source_of(b"cos\nsystem\n(S'true'\ntR\xff"))
    with pytest.raises(BadModelError):
        machine.load()
    assert list(machine.globals) == list(machine.called) == [Global("os", "system")]


def test_persistent_ids_are_asked_for() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", "7") if isinstance(obj, Point) else None

    stream = io.BytesIO()
    Pickler(stream).dump([Point(1)])
    (found,) = root_of(stream.getvalue())
    assert isinstance(found, Persistent)
    assert found.pid == ("storage", "7")
    assert load(source_of(stream.getvalue()), find_persistent=lambda pid: pid).root == [("storage", "7")]


def test_buffers_outside_of_the_pickle_are_records() -> None:
    data = pickle.dumps([pickle.PickleBuffer(b"far away")], 5, buffer_callback=lambda _: None)
    assert isinstance(root_of(data)[0], Persistent)


def test_long_bytes_can_stay_in_the_file() -> None:
    value = [b"a" * 5000, bytearray(b"b" * 6000), b"short", "text" * 2000]
    data = pickle.dumps(value, 5)
    found: Any = load(source_of(data), max_inline_bytes=1000).root
    first, second, *rest = found
    assert rest == value[2:]
    for span, raw in ((first, value[0]), (second, value[1])):
        assert isinstance(span, Span)
        assert data[span.start : span.start + span.n_bytes] == raw


def test_a_hook_may_read_what_lies_between_the_opcodes() -> None:
    pickled = pickle.dumps([Point(4), 5], 2)
    at = pickled.index(b"b", pickled.index(b"K\x04")) + 1
    data = pickled[:at] + b"RAW!" + pickled[at:]
    source = source_of(data)
    found = load(source, on_build=lambda made: (made.attributes(), source.read(4)))
    assert found.root == [({"x": 4}, b"RAW!"), 5]


def test_several_pickles_follow_each_other() -> None:
    stream = source_of(b"".join(pickle.dumps(i, i % 6) for i in range(20)) + b"tail")
    assert [load(stream).root for _ in range(20)] == list(range(20))
    assert stream.read(4) == b"tail"


def test_a_stream_of_unknown_length_reads_the_same() -> None:
    value = {"a": "x" * 100_000, "b": b"y" * 200_000}

    class Forward(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._inner = io.BytesIO(data)

        def read(self, size: int = -1) -> bytes:
            return self._inner.read(min(size, 777))

    data = pickle.dumps(value, 4)
    assert load(Source(Forward(data), "z")).root == value  # type: ignore[arg-type]
    with pytest.raises(BadModelError):
        load(Source(Forward(data[:-50_000]), "z"))  # type: ignore[arg-type]
    found: Any = load(Source(Forward(pickle.dumps([b"y" * 200_000])), "z"), max_inline_bytes=9).root  # type: ignore[arg-type]
    assert found[0].n_bytes == 200_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_anywhere_is_one_line(protocol: int) -> None:
    value = [1, 2.5, "text", b"bytes\xff", {"k": (1, 2, 3, 4)}, {5}, Point(6), 2**40, 2**90, None, True]
    data = pickle.dumps(value, protocol)
    for cut in range(len(data)):
        with pytest.raises(BadModelError) as caught:
            root_of(data[:cut])
        assert "\n" not in str(caught.value)


def test_any_byte_changed_is_read_or_refused() -> None:
    value = [1, 2.5, "text", b"bytes\xff", {"k": (1, 2, 3, 4)}, {5}, Point(6), 2**40, 2**90, None, True]
    for protocol in PROTOCOLS:
        data = pickle.dumps(value, protocol)
        for i in range(len(data)):
            for flip in (0x01, 0x20, 0x80, 0xFF):
                broken = data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :]
                try:
                    root_of(broken)
                except BadModelError as err:
                    assert "\n" not in str(err)


BIG = (2**63 - 1).to_bytes(8, "little")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\xff.",
        b"\x80\x06N.",
        b"t.",
        b"0.",
        b"1.",
        b"2.",
        b"b.",
        b"R.",
        b"NNR.",
        b"N)NR.",
        b"(o]R.",
        b"h\x07.",
        b"q\x00.",
        b"Np-1\n.",
        b"Npx\n.",
        b"Ix\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"Fx\n.",
        b"Sx\n.",
        b"S'\\x'\n.",
        b"S\n.",
        b"V\\u12\n.",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"\x8d" + BIG + b"x.",
        b"\x8e" + BIG + b"x.",
        b"\x96" + BIG + b"x.",
        b"\x95" + BIG + b"N.",
        b"\x8b\xff\xff\xff\xff1.",
        b"\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".",
        b"T\xff\xff\xff\xff.",
        b"B\xff\xff\xff\xff.",
        b"NNa.",
        b"NNNs.",
        b"}(Nu.",
        b"}]Ns.",
        b"}(}NNtNs.",
        b"\x8f(]\x90.",
        b"(]\x91.",
        b"c\n",
        b"cos\nsystem",
        b"c" + b"a" * 20_000 + b"\nb\n.",
        b"cos\nsystem\nN\x81.",
        b"cos\nsystem\n)N\x92.",
        b"c\xff\nx\n.",
        b"V" + b"a" * 1000,
    ],
)  # fmt: skip
def test_a_broken_pickle_is_one_line(data: bytes) -> None:
    with pytest.raises(BadModelError) as caught:
        root_of(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.hint


def test_a_length_nobody_can_check_is_not_allocated() -> None:
    with pytest.raises(BadModelError):
        load(Source(io.BytesIO(b"\x8e" + BIG + b"x" * 1000), "z"))
    with pytest.raises(BadModelError):
        load(Source(io.BytesIO(b"\x8e" + (300 << 20).to_bytes(8, "little") + b"x" * 1000), "z"))


def test_an_object_may_contain_itself() -> None:
    ring: list[Any] = [1]
    ring.append({"again": ring})
    found = root_of(pickle.dumps(ring))
    assert found[1]["again"] is found


def test_shared_members_are_shared_not_copied() -> None:
    found = root_of(b"]q\x00" + b"](h\x00h\x00eq\x00" * 200 + b".")
    for _ in range(200):
        assert found[0] is found[1]
        found = found[0]


def test_deep_nesting_is_read_without_recursion() -> None:
    depth = 200_000
    found = root_of(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []
    made = root_of(b"cx\ny\nq\x00" + b"h\x00" * depth + b")" + b"\x85R" * depth + b".")
    assert repr(made) == "Call(x.y)"


def test_a_key_with_exponential_hash_is_refused() -> None:
    data = b"}Nq\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"0}h\x00Ns."
    with pytest.raises(BadModelError, match="key"):
        root_of(data)


def test_a_deeply_nested_key_is_refused() -> None:
    with pytest.raises(BadModelError, match="key"):
        root_of(b"}N" + b"\x85" * 1_000_000 + b"Ns.")


def test_keys_with_one_hash_are_refused_before_they_slow_the_dict() -> None:
    modulus = 2**61 - 1
    keys = b"".join(pickle.dumps(i * modulus, 2)[2:-1] + b"N" for i in range(1, 20_000))
    with pytest.raises(BadModelError, match="keys"):
        root_of(b"}(" + keys + b"u.")


BOMBS: dict[str, Callable[[int], bytes]] = {
    "lists": lambda n: b"]" * n,
    "dicts": lambda n: b"}" * n,
    "sets": lambda n: b"\x8f" * n,
    "marks": lambda n: b"(" * n,
    "memo": lambda n: b"N" + b"\x94" * n,
    "sparse memo": lambda n: b"N" + b"".join(b"r" + (i * 4099 % 2**32).to_bytes(4, "little") for i in range(n)),
    "nested tuples": lambda n: b"N" + b"\x85" * n,
    "calls": lambda n: b"cx\ny\nq\x00" + b"h\x00)R" * n,
    "nested calls": lambda n: b"cx\ny\nq\x00" + b"h\x00" * n + b")" + b"\x85R" * n,
    "calls of containers": lambda n: b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R" * n,
    "integers": lambda n: b"J\x00\x00\x00\x01" * n,
    "large integers": lambda n: (b"\x8b\x00\x04\x00\x00" + b"a" * 1024) * n,
    "floats": lambda n: b"G\x00\x00\x00\x00\x00\x00\x00\x00" * n,
    "globals": lambda n: b"".join(b"ca%d\nb\n" % i for i in range(n)),
    "entries": lambda n: b"}" + b"".join(b"J%sNs" % i.to_bytes(4, "little") for i in range(n)),
    "set entries": lambda n: b"\x8f(" + b"".join(b"J%s" % i.to_bytes(4, "little") for i in range(n)) + b"\x90",
    "keys of tuples": lambda n: b"}" + b"".join(b"J%s\x85Ns" % i.to_bytes(4, "little") for i in range(n)),
    "copies of a set": lambda n: (
        b"\x8f(" + b"".join(b"M%s" % i.to_bytes(2, "little") for i in range(20_000)) + b"\x90q\x00"
        b"c__builtin__\nset\nq\x01" + b"h\x01h\x00\x85R" * n
    ),
    "items": lambda n: b"]" + b"Na" * n,
    "attributes": lambda n: b"cx\ny\n)R" + b"Nb" * n,
    "pairs of an object": lambda n: b"cx\ny\n)R" + b"NNs" * n,
    "persistent ids": lambda n: b"NQ" * n,
    "wide text": lambda n: (b"X\x04\x00\x04\x00" + b"a" * (1 << 18) + "\U0001f600".encode()) * min(n, 100),
    "old text": lambda n: (b"S'" + b"a" * (1 << 18) + b"'\n") * min(n, 100),
    "bytes": lambda n: (b"B\x00\x00\x10\x00" + b"\xff" * (1 << 20)) * min(n, 32),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_within_the_limit(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    limit = 8 << 20
    monkeypatch.setattr(pickles, "MAX_MEMORY_BYTES", limit)
    source = source_of(BOMBS[bomb](limit // 60))
    tracemalloc.start()
    try:
        with pytest.raises(BadModelError, match="expected less"):
            load(source)
        assert tracemalloc.get_traced_memory()[1] < limit + (2 << 20)
    finally:
        tracemalloc.stop()


def test_the_limit_itself_leaves_room_in_half_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS["entries"](2_500_000))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dvc_modelver.errors import BadModelError\n"
        "from dvc_modelver.formats.pickles import Source, load\n"
        "path = Path(sys.argv[1])\n"
        "try:\n"
        "    load(Source(path.open('rb'), 'bomb', 0, path.stat().st_size))\n"
        "except BadModelError as err:\n"
        "    print(err)\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)),
    )
    assert done.returncode == 3, done.stderr[-500:]


def test_the_module_loads_nothing_but_the_standard_library() -> None:
    code = f"import sys, {pickles.__name__}; print(sorted({{'numpy', 'torch', 'pickle'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
