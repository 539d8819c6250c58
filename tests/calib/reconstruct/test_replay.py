import numpy as np
import pytest

from quaver.calib.reconstruct.prefix import Prefix, advance
from quaver.calib.reconstruct.replay import needed, read_graph, run

torch = pytest.importorskip("torch")


def test_a_part_run_from_its_inputs_gives_what_the_whole_gives(model, feeds):
    graph, x = read_graph(model), torch.from_numpy(feeds[0]["x"])
    whole = run(graph, {"x": x}, ["h1", "h2", "out"])
    part = run(graph, {"h1": whole["h1"]}, ["h2"])
    assert torch.equal(part["h2"], whole["h2"])
    assert [node.name for node in needed(graph, ["out"], ["h2"])] == ["n_out"]


def test_a_replay_can_be_differentiated(model, feeds):
    graph = read_graph(model)
    x = torch.from_numpy(feeds[0]["x"]).requires_grad_()
    run(graph, {"x": x}, ["out"])["out"].sum().backward()
    assert float(x.grad.abs().min()) > 0


@pytest.mark.parametrize("hold", [0, 1 << 30])
def test_a_prefix_gives_the_same_values_whether_it_remembers_or_not(model, codings, feeds, hold):
    graph = read_graph(model)
    prefix = Prefix(graph, feeds, hold)
    for edges in ({"h0"}, {"h1_a", "h1"}, {"h2"}, {"h0", "h1"}, {"out"}):
        found = advance(prefix, edges, codings)
        anew = advance(Prefix(graph, feeds, 0), edges, codings)
        assert all(np.array_equal(found[edge], anew[edge]) and len(found[edge]) == 12 for edge in edges)


def test_a_prefix_runs_no_node_twice(model, feeds):
    graph = read_graph(model)
    prefix = Prefix(graph, feeds, 1 << 30)
    advance(prefix, {"h1"}, {})
    assert set(prefix.alive[0]) == {"h1"} and "n_h1" in prefix.done
    assert [node.name for node in needed(graph, {"h2_1"}, prefix.alive[0])] == ["n_h2_1"]
