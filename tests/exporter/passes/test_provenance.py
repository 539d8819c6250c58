from quaver.calib.graph import MODULE_KEY
from quaver.exporter.passes import provenance


def test_module_paths_stay_and_stack_traces_go(make):
    model = make([("Relu", ["x"], ["h"], {}), ("Neg", ["h"], ["y"], {})], {"x": [2]}, ["y"])
    relu, neg = model.graph.node
    relu.metadata_props.add(key=provenance.SCOPES, value="['', 'net', 'net.mid.act', 'relu']")
    relu.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/somewhere/model.py", line 1')
    neg.metadata_props.add(key=provenance.SCOPES, value="['', 'net', 'neg']")
    neg.doc_string = "made in /somewhere"
    model.graph.metadata_props.add(key="signature", value="x")
    assert provenance.run(model) and not provenance.run(model)
    assert [(p.key, p.value) for p in relu.metadata_props] == [(MODULE_KEY, "mid.act")]
    assert not neg.metadata_props and b"somewhere" not in model.SerializeToString()
