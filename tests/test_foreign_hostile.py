"""Whatever the bytes, a reader answers or raises an error of ours: at once, and in little memory.

Files are cut at every byte and changed at random; checkpoints are also changed before their
checksums are taken, as somebody who means harm would do it.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
from foreign_writers import (
    FLOAT,
    HALF_PLUS_TWO,
    Saved,
    block,
    floats,
    message,
    meta_graph,
    stored,
    table_of,
    tensor_info,
    v1_table,
    write_saved_model,
    write_session_bundle,
    write_v2,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from mserve.commands import _foreign
from mserve.errors import InputError, MserveError
from mserve.foreign import table
from mserve.foreign.detect import detect

# Reading these small files takes a few megabytes; nobody should need this much.
ADDRESS_SPACE_BYTES = 512 << 20


def use(path: Path) -> str:
    """`mserve inspect --weights --graph`, for people and as JSON; the error's name, or "fine"."""
    try:
        found = detect(path)
        for as_json in (False, True):
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
                _foreign.inspect(found, _foreign.Options(True, found.format == "onnx", as_json))
        json.loads(out.getvalue(), parse_constant=pytest.fail)
        out.getvalue().encode()
    except MserveError as error:
        return type(error).__name__
    return "fine"


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A wild allocation fails here, as MemoryError, which is no error of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def onnx_bytes() -> bytes:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "then", [], [])
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["x"], ["y"], to=1, name="cast"),
    ]
    weights = [builders.weight("w", builders.floats(3))]
    return builders.model(nodes, [("x", 1, ["N", 3])], [("y", 1, None)], weights).SerializeToString()


def write(directory: Path, kind: str) -> tuple[Path, Path]:
    """A small model of a kind: what to open, and the file of it to spoil."""
    if kind == "saved_model.pb":
        path = write_saved_model(directory / "m")
        return path, path / "saved_model.pb"
    if kind == "export.meta":
        path = write_session_bundle(directory / "b")
        return path, path / "export.meta"
    if kind == "V1":
        path = write_session_bundle(directory / "b")
        return path, path / "export-00001-of-00002"
    if kind == "V2":
        prefix = write_v2(directory / "c", {**HALF_PLUS_TWO, "w": PARTS})
        return prefix, directory / "c.index"
    (directory / "m.onnx").write_bytes(onnx_bytes())
    return directory / "m.onnx", directory / "m.onnx"


PARTS = Saved(FLOAT, (2, 1), parts=((((0, 1), (0, -1)), floats(1)), (((1, 1), (0, -1)), floats(2))))
KINDS = ["saved_model.pb", "export.meta", "V1", "V2", "onnx"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_byte_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    path, spoiled = write(tmp_path, kind)
    whole = spoiled.read_bytes()
    assert use(path) == "fine"
    ends = set()
    for length in range(len(whole)):
        spoiled.write_bytes(whole[:length])
        if use(path) == "fine":
            ends.add(length)
    if kind in ("V1", "V2"):
        # An index that is cut is no table, so what is left is some other path, of no format.
        assert ends in (set(), set(range(len(whole))))
        for length in range(len(whole)):
            spoiled.write_bytes(whole[:length])
            with pytest.raises(InputError):
                table.open_table(spoiled)
    else:
        # Protobuf has no end mark: what is cut between two records reads as a shorter message.
        assert len(ends) < 20


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    directory = tmp_path / kind
    if not directory.exists():
        directory.mkdir()
        write(directory, kind)
        for path in directory.rglob("*"):
            if path.is_file():
                path.with_name(f"{path.name}.good").write_bytes(path.read_bytes())
    spoiled = next(p for p in directory.rglob("*") if p.name == NAMES[kind])
    spoiled.write_bytes(mutated(data, spoiled.with_name(f"{spoiled.name}.good").read_bytes()))
    target = {"V2": directory / "c", "onnx": spoiled}.get(kind, spoiled.parent)
    use(target)


NAMES = {
    "saved_model.pb": "saved_model.pb",
    "export.meta": "export.meta",
    "V1": "export-00001-of-00002",
    "V2": "c.index",
    "onnx": "m.onnx",
}


def mutated(data: st.DataObject, good: bytes) -> bytes:
    """A few bytes replaced, inserted, taken out or repeated."""
    out = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(out) - 1)))
        taken = data.draw(st.integers(0, 3))
        out[at : at + taken] = data.draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 9 + b"\1", bytes(out[at : at + 20])]))
        )
    return bytes(out)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compress=st.booleans())
def test_changed_entries_with_proper_checksums(tmp_path: Path, data: st.DataObject, compress: bool) -> None:
    """One key or value of an index is changed, and the table around it is whole."""
    write_v2(tmp_path / "c", {**HALF_PLUS_TWO, "w": PARTS})
    rows = dict(table.entries(table.open_table(tmp_path / "c.index")))
    key = data.draw(st.sampled_from(sorted(rows)))
    if data.draw(st.booleans()):
        rows[key] = mutated(data, rows[key])
    else:
        rows[mutated(data, key)] = rows.pop(key)
    (tmp_path / "c.index").write_bytes(table_of(rows, snappy=compress))
    use(tmp_path / "c")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_values_of_v1_with_proper_checksums(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "c").write_bytes(v1_table({**HALF_PLUS_TWO, "w": PARTS}))
    rows = dict(table.entries(table.open_table(tmp_path / "c")))
    key = data.draw(st.sampled_from(sorted(rows)))
    rows[key] = mutated(data, rows[key])
    (tmp_path / "c").write_bytes(table_of(rows))
    use(tmp_path / "c")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from([0, 1]))
def test_changed_blocks_with_proper_checksums(tmp_path: Path, data: st.DataObject, kind: int) -> None:
    """The bytes of a block, as they are or as snappy, are anything."""
    body = mutated(data, block([(b"", message((1, 1))), (b"a", b"x" * 30), (b"ab", b"y")]))
    index = block([(b"\xff", b"\0" + bytes([len(body)]))]) if len(body) < 128 else block([])
    whole = stored(body, kind)
    path = tmp_path / "c"
    footer = (b"\0\0" + bytes([len(whole)]) + bytes([len(index)])).ljust(40, b"\0") + table.MAGIC
    path.write_bytes(whole + stored(index) + footer)
    use(path)


def nested(depth: int, number: int) -> bytes:
    """A message in itself, `depth` times, each level as long as it says."""
    out = b""
    for _ in range(depth):
        out = message((number, out))
    return out


def test_deep_nesting_is_not_followed(tmp_path: Path) -> None:
    """A component of a composite tensor may be one again, and a subgraph holds nodes with subgraphs."""
    deep = message((5, message((2, nested(3000, 5)))))
    signatures = {"s": message((1, message((1, "x"), (2, deep))), (3, "m"))}
    (tmp_path / "saved_model.pb").write_bytes(message((1, 1), (2, meta_graph(signatures=signatures))))
    assert use(tmp_path) in ("fine", "InputError")
    graph = b""
    for _ in range(3000):
        graph = message((1, message((4, "If"), (5, message((1, "g"), (6, graph))))))
    (tmp_path / "deep.onnx").write_bytes(message((1, 8), (7, graph), (8, message((2, 21)))))
    assert use(tmp_path / "deep.onnx") == "fine"


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (message((5, message((1, 2**60), (2, 1), (8, "w"), (9, b"1234")))), "2^60 values"),
        (message((5, message((1, -1), (2, 1), (8, "w"), (9, b"1234")))), "-1 values"),
        (message((5, message((1, 2), (2, 1), (8, "w"), (9, b"1234567")))), "bytes of one and a half"),
        (message((5, message((1, 1), (2, 1), (8, "w"), (4, 5)))), "an integer for floats"),
        (message((5, message((1, 1), (2, 1), (8, "w")))), "nothing"),
        (message((5, message((2, 1), (8, "w"), (14, 1)))), "in no file"),
    ],
)
def test_lies_about_onnx_weights(tmp_path: Path, graph: bytes, why: str) -> None:
    (tmp_path / "m").write_bytes(message((1, 8), (7, graph), (8, message((2, 21)))))
    assert use(tmp_path / "m") == "InputError", why


def test_a_variable_of_an_exabyte_is_a_short_file(tmp_path: Path) -> None:
    write_v2(tmp_path / "c", {"w": Saved(FLOAT, (4,), floats(*range(4)))})
    rows = dict(table.entries(table.open_table(tmp_path / "c.index")))
    rows[b"w"] += message((2, message((2, message((1, 2**58))))), (5, 2**60))
    (tmp_path / "c.index").write_bytes(table_of(rows))
    assert use(tmp_path / "c") in ("BundleIncomplete", "InputError")


def test_many_signatures_are_refused(tmp_path: Path) -> None:
    many = {f"s{i}": message((1, message((1, "x"), (2, tensor_info("x"))))) for i in range(10_001)}
    (tmp_path / "saved_model.pb").write_bytes(message((1, 1), (2, meta_graph(signatures=many))))
    assert use(tmp_path) == "InputError"


def test_no_name_moves_the_cursor(tmp_path: Path) -> None:
    """Names come from the file; escape sequences in them are shown, not obeyed."""
    signatures = {"s\x1b[2J": message((1, message((1, "x\r"), (2, tensor_info("t\x07")))))}
    (tmp_path / "saved_model.pb").write_bytes(message((1, 1), (2, meta_graph(signatures=signatures))))
    done = subprocess.run(
        [sys.executable, "-m", "mserve", "inspect", tmp_path], capture_output=True, check=True, timeout=60
    )
    assert not set(done.stdout) & set(b"\x1b\r\x07")
    assert b"s\\x1b[2J" in done.stdout
