"""The network as a graph, in the form that VisualDL shows.

VisualDL's own ``add_graph`` reads the program file that Paddle 2 wrote, which Paddle 3 writes no more, and leaves hooks
on every layer, with which the CPU operator would never run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from paddle import nn

from .files import write_text
from .model import ConvMixer, MixConv, Residual
from .zoo import InputSpec

FILE = "vdlgraph.run.log"
"""VisualDL knows a graph by the first word."""
_SETTINGS = ("_stride", "_padding", "_groups", "_epsilon", "_momentum")


def write(folder: Path, network: ConvMixer, spec: InputSpec) -> None:
    """Write the graph of ``network`` for pictures of ``spec`` to the folder of its curves."""
    write_text(folder / FILE, json.dumps(to_dict(network, spec)))


def to_dict(network: ConvMixer, spec: InputSpec) -> dict[str, Any]:
    """Return the graph: ``nodes``, which are operations and the groups of the layers they belong to, and ``vars``."""
    graph = _Graph()
    x = graph.add("/images", "feed", {}, [-1, network.in_chans, spec.size, spec.size])
    side = spec.size // network.patch_size
    maps = [-1, network.dim, side, side]
    for name in ("stem", "blocks"):
        x = graph.walk(getattr(network, name), f"/{name}", x, maps)
    x = graph.add("/mean", "mean", {"X": [x]}, [-1, network.dim])
    x = graph.walk(network.head, "/head", x, [-1, network.num_classes or network.dim])
    graph.add("/logits", "fetch", {"X": [x]}, [])
    return graph.to_dict()


class _Graph:
    """Operations as they are added, each with one output; groups and what crosses their borders follow from names."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.vars: dict[str, dict[str, Any]] = {}

    def walk(self, layer: nn.Layer, name: str, x: str, shape: list[int]) -> str:
        """Add a layer with all that is in it; returns the name of its output, of the shape ``shape``."""
        if isinstance(layer, Residual):
            return self.add(f"{name}/add", "add", {"X": [self.walk(layer.fn, f"{name}/fn", x, shape)], "Y": [x]}, shape)
        if isinstance(layer, MixConv):
            split = self.add(f"{name}/split", "split", {"X": [x]}, shape)
            parts = [
                self.walk(conv, f"{name}/{i}", split, [shape[0], conv.weight.shape[0], *shape[2:]])
                for i, conv in enumerate(layer)
            ]
            return self.add(f"{name}/concat", "concat", {"X": parts}, shape)
        parts = list(layer.named_children())
        for part, child in parts:
            x = self.walk(child, f"{name}/{part}", x, shape)
        if parts:
            return x
        inputs = {"X": [x]}
        for part, parameter in layer.named_parameters(include_sublayers=False):
            inputs[part] = [self.variable(f"{name}/{part}", list(parameter.shape), persistable=True)]
        settings = {key.strip("_"): str(getattr(layer, key)) for key in _SETTINGS if hasattr(layer, key)}
        return self.add(name, type(layer).__name__, inputs, shape, settings)

    def variable(self, name: str, shape: list[int], persistable: bool = False) -> str:
        """Add a tensor; returns its name."""
        self.vars[name] = {
            **{"name": name, "shape": shape, "type": "LOD_TENSOR", "dtype": "float32", "value": [], "attrs": {}},
            **{"persistable": persistable, "from_node": "", "to_nodes": []},
        }
        return name

    def add(
        self, name: str, kind: str, inputs: dict[str, Any], shape: list[int], settings: Optional[dict[str, str]] = None
    ) -> str:
        """Add an operation; returns the name of its output."""
        out = self.variable(f"{name}:out", shape)
        self.nodes[name] = _node(name, kind, inputs, {"Out": [out]}, leaf=True)
        self.nodes[name]["attrs"] = settings or {}
        self.nodes[name]["attr_types"] = dict.fromkeys(settings or {}, "STRING")
        self.vars[out]["from_node"] = name
        for variable in (v for some in inputs.values() for v in some):
            self.vars[variable]["to_nodes"].append(name)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, the groups made."""
        groups: dict[str, dict[str, Any]] = {}
        for name in list(self.nodes):
            while name != "/":
                parent = name.rpartition("/")[0] or "/"
                if parent in groups:
                    break
                name = parent
                groups[name] = _node(name, name.rpartition("/")[2] or "/", {"X": []}, {"Out": []}, leaf=False)
        for name, node in {**groups, **self.nodes}.items():
            if name != "/":
                node["parent_node"] = name.rpartition("/")[0] or "/"
                groups[node["parent_node"]]["children_node"].append(name)
        for name, variable in self.vars.items():
            ends = variable["to_nodes"]
            for group, node in groups.items():
                inside = [_is_in(end, group) for end in ends]
                if _is_in(variable["from_node"] or name, group):
                    if not all(inside):
                        node["output_vars"]["Out"].append(name)
                elif any(inside):
                    node["input_vars"]["X"].append(name)
        nodes = list({**groups, **self.nodes}.values())
        return {"version": "1.0.0", "nodes": nodes, "vars": list(self.vars.values()), "edges": []}


def _node(name: str, kind: str, inputs: dict[str, Any], outputs: dict[str, Any], leaf: bool) -> dict[str, Any]:
    return {
        **{"name": name, "show_name": name, "type": kind, "is_leaf_node": leaf, "attrs": {}, "attr_types": {}},
        **{"input_vars": inputs, "output_vars": outputs, "parent_node": "", "children_node": []},
        **{"input_nodes": [], "output_nodes": [], "edge_input_nodes": [], "edge_output_nodes": []},
    }


def _is_in(name: str, group: str) -> bool:
    return name.startswith(group if group == "/" else f"{group}/")
