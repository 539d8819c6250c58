import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from quaver.runtime.artifact import (
    TEMPORARY,
    Stamp,
    atomic,
    digest_bytes,
    digest_file,
    digest_folder,
    digest_json,
    dump_stamp,
    load_json,
    load_lines,
    load_tensors,
    read_stamp,
    save_json,
    save_lines,
    save_tensors,
    staging,
    sweep,
)
from quaver.runtime.errors import ArtifactError

STAMP = Stamp("ranges", settings="sha256:aa", inputs={"unet.float.onnx": "sha256:bb"})


def test_digest_is_sha256_of_the_bytes(tmp_path):
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "a").write_bytes(b"")
    assert digest_bytes(b"") == digest_file(tmp_path / "a") == empty


def test_digest_of_json_ignores_the_order_of_keys_and_not_the_values():
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5})


def test_digest_of_an_onnx_file_covers_its_external_data(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    alone = digest_file(model)
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    assert digest_file(model) == digest_bytes(b"graphweights") != alone


def test_digest_of_a_folder_sees_names_and_content_but_no_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    before = digest_folder(tmp_path)
    (tmp_path / ".lock").write_text("7")
    assert digest_folder(tmp_path) == before
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    assert digest_folder(tmp_path) != before


def test_tensors_come_back_with_shapes_dtypes_and_meta(tmp_path):
    tensors = {"mean": np.arange(6.0).reshape(2, 3).T, "count": np.array(7), "codes": np.array([-8, 7], np.int8)}
    path = save_tensors(tmp_path / "r.safetensors", tensors, STAMP, meta={"edges": ["a", "b"], "n": np.int64(2)})
    found, meta = load_tensors(path, "ranges")
    assert meta == {"edges": ["a", "b"], "n": 2}
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert read_stamp(path) == STAMP


def test_the_same_tensors_give_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from quaver.runtime.artifact import *;"
        "save_tensors(Path(sys.argv[1]), {'b': np.ones(2), 'a': np.zeros(3)}, Stamp('k'), meta={'y': 1, 'x': 2})"
    )
    for name in ("1", "2"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert digest_file(tmp_path / "1") == digest_file(tmp_path / "2")


def test_json_and_lines_keep_their_stamp_first(tmp_path):
    rows = [{"id": 1, "text": "a soft low cello note, très doux"}, {"id": 2, "text": "x"}]
    lines = save_lines(tmp_path / "p.jsonl", iter(rows), STAMP)
    assert load_lines(lines, "ranges") == rows
    assert "très" in lines.read_text(encoding="utf-8")
    body = save_json(tmp_path / "c.json", {"name": "demo"}, STAMP)
    assert list(json.loads(body.read_text())) == ["stamp", "name"]
    assert load_json(body, "ranges")["name"] == "demo"
    assert read_stamp(lines) == read_stamp(body) == STAMP


def test_a_plan_carries_its_stamp_in_the_json_beside_it(tmp_path):
    (tmp_path / "u.plan").write_bytes(b"engine")
    assert read_stamp(tmp_path / "u.plan") is None
    save_json(tmp_path / "u.plan.json", {}, STAMP)
    assert read_stamp(tmp_path / "u.plan") == STAMP


def test_the_stamp_of_an_onnx_file_is_found_with_and_without_a_large_graph(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.zeros(100_000, np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[weight])
    model = onnx.helper.make_model(graph, producer_name="quaver")
    onnx.helper.set_model_props(model, {"other": "x", "quaver.stamp": dump_stamp(STAMP)})
    onnx.save(model, tmp_path / "m.onnx")
    assert read_stamp(tmp_path / "m.onnx") == STAMP
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:1000])
    assert read_stamp(tmp_path / "cut.onnx") is None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.safetensors", "a.onnx", "a.plan"])
def test_a_file_without_a_stamp_has_none(tmp_path, name):
    assert read_stamp(tmp_path / name) is None
    for content in (b"", b"[]", b"{}", b"\xff\x00garbage"):
        (tmp_path / name).write_bytes(content)
        assert read_stamp(tmp_path / name) is None


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"quaver": "{}"}, {"quaver": "[]"}, {"quaver": "1"}])
def test_somebody_elses_tensors_have_no_stamp(tmp_path, metadata):
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "a.safetensors", metadata=metadata)
    assert read_stamp(tmp_path / "a.safetensors") is None
    with pytest.raises(ArtifactError, match=r"a\.safetensors (carries no stamp|is damaged)"):
        load_tensors(tmp_path / "a.safetensors", "ranges")


@pytest.mark.parametrize(
    ("load", "name"), [(load_json, "a.json"), (load_lines, "a.jsonl"), (load_tensors, "a.safetensors")]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"does not exist: 'quaver run RECIPE' writes it"),
        (b"", r"(is damaged|carries no stamp).*'quaver run RECIPE' writes it anew"),
        (b"\x93 not this", r"is damaged .*remove it, and 'quaver run RECIPE' writes it anew"),
    ],
)
def test_missing_and_damaged_files_say_what_to_type(tmp_path, load, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / name, "ranges")


def test_truncated_tensors_are_refused(tmp_path):
    path = save_tensors(tmp_path / "r.safetensors", {"a": np.zeros(1000)}, STAMP)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        load_tensors(path, "ranges")


def test_a_file_of_another_kind_or_a_later_schema_is_refused(tmp_path):
    path = save_json(tmp_path / "a.json", {}, STAMP)
    with pytest.raises(ArtifactError, match=r"holds ranges, expected prompts"):
        load_json(path, "prompts")
    save_json(path, {}, Stamp("ranges", schema=99))
    with pytest.raises(ArtifactError, match=r"has schema 99, this quaver reads up to 1: pip install -U quaver"):
        load_json(path, "ranges")


def test_an_atomic_write_makes_its_folder_and_leaves_nothing_beside(tmp_path):
    with atomic(tmp_path / "new" / "a.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        temporary.write_text("whole")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run again"),
        (errno.EACCES, "the folder is not writable"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_write_that_cannot_end_is_one_line_and_the_old_file_stays(tmp_path, code, message):
    path = save_json(tmp_path / "a.json", {"old": 1}, STAMP)

    def rows():
        yield {"half": "a row"}
        raise OSError(code, os.strerror(code))

    with pytest.raises(ArtifactError, match=rf"cannot write .*a\.json: {message}") as caught:
        save_lines(path, rows(), STAMP)
    assert "\n" not in str(caught.value)
    assert load_json(path, "ranges")["old"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_real_file_size_limit_is_one_line(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np; from pathlib import Path; from quaver.runtime.artifact import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "save_tensors(Path(sys.argv[1]), {'a': np.zeros(10_000)}, Stamp('k'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert "ArtifactError: cannot write" in done.stderr and "too large for this file system" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_passes_through_and_the_old_file_stays(tmp_path):
    path = save_json(tmp_path / "a.json", {"old": 1}, STAMP)
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert load_json(path, "ranges")["old"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_where_the_file_should_be_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ArtifactError, match="there is a folder of that name"):
        save_json(tmp_path / "a.json", {}, STAMP)


def test_a_staging_folder_is_beside_and_goes_whatever_happens(tmp_path):
    full = pytest.raises(ArtifactError, match=r"cannot write .*m\.onnx: the disk is full")
    with full, staging(tmp_path / "m.onnx") as folder:
        (folder / "m.onnx").write_text("half")
        assert folder.parent == tmp_path and folder.name.startswith(TEMPORARY)
        raise OSError(errno.ENOSPC, "")
    assert list(tmp_path.iterdir()) == []


def test_staging_folders_of_killed_writers_are_swept(tmp_path):
    (tmp_path / "sub" / f"{TEMPORARY}dead").mkdir(parents=True)
    (tmp_path / "sub" / f"{TEMPORARY}dead" / "m.onnx.data").write_text("half")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["sub"]


def test_a_killed_writer_leaves_the_old_file_and_a_remainder_that_sweep_removes(tmp_path):
    path = save_json(tmp_path / "sub" / "a.json", {"old": 1}, STAMP)
    code = (
        "import sys, time; from pathlib import Path; from quaver.runtime.artifact import atomic\n"
        "with atomic(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
    assert load_json(path, "ranges")["old"] == 1
    assert [p.name.startswith(TEMPORARY) for p in sorted(path.parent.iterdir())] == [True, False]
    sweep(tmp_path)
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_readers_see_the_old_or_the_new_file_and_never_a_part(tmp_path):
    path = save_json(tmp_path / "a.json", {"n": 0, "filler": "x" * 100_000}, STAMP)
    code = (
        "import sys; from pathlib import Path; from quaver.runtime.artifact import *\n"
        "while True: save_json(Path(sys.argv[1]), {'n': 1, 'filler': 'y' * 100_000}, Stamp('ranges'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        end, seen = time.monotonic() + 1.5, set()
        while time.monotonic() < end or len(seen) < 2:
            body = load_json(path, "ranges")
            assert set(body["filler"]) == {"x" if body["n"] == 0 else "y"} and len(body["filler"]) == 100_000
            seen.add(body["n"])
        writer.kill()
    assert seen == {0, 1}
