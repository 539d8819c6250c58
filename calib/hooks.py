"""Looking inside a torch denoiser while it runs: the second way to the moments that `taps` takes from an ONNX graph.

Forward hooks see the input of every convolution and linear layer and keep, per call of the network,

    n,  mean = sum x / n,  m2 = sum (x - mean)^2,  min x,  max x         over all elements, sums in float64

under the names `taps` uses, so that `capture.observe` runs on a network that was never traced. Activations are looked
at where they are and not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from quaver.calib.taps import COUNT, SUMMARY, Run
from quaver.runtime.errors import EngineError
from quaver.runtime.lazy import need

if TYPE_CHECKING:
    import torch

Call = Callable[[Mapping[str, Any]], Any]  # tensors by name -> the network's answer, a tensor


def layer_names(network: torch.nn.Module) -> list[str]:
    """The paths of the convolutions and linear layers of a network, as the layers of its traced graph are called."""
    nn = need("torch", extra="export").nn
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


@contextmanager
def open_hooked(network: torch.nn.Module, call: Call, names: Sequence[str], *, output: str = "out") -> Iterator[Run]:
    """Run `network` through `call` as `open_tapped` runs a graph: feeds -> its answer, SUMMARY and COUNT of `names`.

    A layer that runs more than once in a call is called "name", "name#2", ..., as in the graph. The hooks go when the
    block ends. Raises: EngineError for a name that is no layer, or that a call does not reach.
    """
    torch = need("torch", extra="export")
    seen: dict[str, list[float]] = {}
    times: Counter[str] = Counter()
    modules = dict(network.named_modules())
    wanted = list(dict.fromkeys(name.partition("#")[0] for name in names))
    if missing := [name for name in wanted if name not in modules]:
        raise EngineError(f"the network has no layer {missing[0]!r} ({len(missing)} missing): name layers of its own")

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            times[name] += 1
            seen[name if times[name] == 1 else f"{name}#{times[name]}"] = summarise(inputs[0])

        return hook

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.clear()
        times.clear()
        with torch.no_grad():
            answer = call({name: torch.as_tensor(value) for name, value in feeds.items()})
        if unseen := [name for name in names if name not in seen]:
            raise EngineError(f"{unseen[0]!r} did not run ({len(unseen)} layers did not): leave it out of the layers")
        table = np.array([seen[name] for name in names])
        return {output: answer.numpy(), COUNT: table[:, 0].astype(np.int64), SUMMARY: table[:, 1:].ravel()}

    with ExitStack() as stack:
        for name in wanted:
            stack.enter_context(modules[name].register_forward_pre_hook(look(name)))
        yield run


def summarise(x: torch.Tensor) -> list[float]:
    """Count, mean, m2, min and max of a tensor."""
    torch = need("torch", extra="export")
    wide = x.detach().double()
    variance, mean = torch.var_mean(wide, correction=0)
    low, high = torch.aminmax(wide)
    return [wide.numel(), mean.item(), variance.item() * wide.numel(), low.item(), high.item()]
