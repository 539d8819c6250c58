import numpy as np
import pytest

from quaver.exporter.memory import MachineSettings, Need, alive, available, require, weights
from quaver.runtime.errors import RecipeError

onnx = pytest.importorskip("onnx")
GROUP = {"memory.max": "5000", "memory.current": "4000", "memory.stat": "anon 1\ninactive_file 700\n"}


def graph():
    """x [B, 4] -> y = x W [B, 8] -> z = relu(y) [B, 8] -> out = concat(z, x) [B, 12]; sizes of y and z are not told."""
    helper = onnx.helper
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Concat", ["z", "x"], ["out"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", size]) for name, size in (("x", 4), ("out", 12))]
    weight = onnx.numpy_helper.from_array(np.ones((4, 8), np.float32), "w")
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]))


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_alive_at_each_node_of_a_row_is_what_is_made_and_still_to_be_read():
    assert alive(graph()) == [4 * (4 + 8), 4 * (4 + 8 + 8), 4 * (4 + 8 + 12)]


def test_weights_are_the_bytes_of_the_constants():
    assert weights(graph()) == 4 * 4 * 8


def test_the_system_says_what_is_available(tmp_path):
    root = machine(tmp_path, {"proc/meminfo": "MemTotal: 90 kB\nMemAvailable:   7 kB\nSwapFree: 1 kB\n"})
    assert available(root) == 7 * 1024


@pytest.mark.parametrize("place", ["run/job", "run", ""])
def test_a_limit_of_any_group_around_the_process_counts_without_the_files_it_can_drop(tmp_path, place):
    files = {f"sys/fs/cgroup/{place}/{name}": text for name, text in GROUP.items()}
    files |= {"proc/meminfo": "MemAvailable: 9 kB\n", "proc/self/cgroup": "0::/run/job\n"}
    assert available(machine(tmp_path, files)) == 5000 - 4000 + 700


def test_older_groups_are_read_too_and_no_limit_is_none(tmp_path):
    files = {"proc/self/cgroup": "3:cpu:/a\n2:memory:/b\n0::/\n", "proc/meminfo": "MemAvailable: 9 kB\n"}
    files |= {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "1"}
    root = machine(tmp_path, files)
    assert available(root) == 9 * 1024
    b = "sys/fs/cgroup/memory/b/memory."
    machine(root, {f"{b}limit_in_bytes": "600", f"{b}usage_in_bytes": "500", f"{b}stat": "total_inactive_file 30"})
    assert available(root) == 130


def test_a_machine_that_tells_nothing_is_asked_for_its_pages(tmp_path):
    assert (available(tmp_path) or 1) > 0


def test_what_does_not_fit_is_refused_with_what_to_type():
    wanted = Need(12_340_000_000, "set capture.batch below 8")
    require("capture", wanted, wanted.bytes)
    require("capture", wanted, None)
    said = (
        r"^capture needs about 12\.3 GB of memory and 9\.0 GB are free: close other programs, set capture\.batch below "
        r"8, or go on all the same with --set machine\.memory=13$"
    )
    with pytest.raises(RecipeError, match=said):
        require("capture", wanted, 9_000_000_000)
    with pytest.raises(RecipeError, match=r"close other programs, or go on"):
        require("export", Need(2), 1)


def test_a_machine_of_negative_memory_is_refused():
    with pytest.raises(RecipeError, match=r"machine\.memory is -1, expected 0 or more"):
        MachineSettings(memory=-1)
