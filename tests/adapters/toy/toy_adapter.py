"""An adapter for a toy framework: all that rmtspec needs to analyse, prune and save its nets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from toy_framework import Dense, Net

from rmtspec import adapting
from rmtspec.adapting import Action, AnalysisOptions, PlanOptions, Selection, Subject, Task
from rmtspec.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Weight(adapting.Target):
    """A weight of a net: what may be done to it, and its array (outputs x inputs) when called."""

    array: NDArray[np.floating]

    def __call__(self):
        return self.array


@dataclass
class SplitDense:
    """A `Dense` layer as two thinner ones, with nothing between; the bias is the outer one's."""

    inner: Dense
    outer: Dense

    def __call__(self, inputs):
        return self.outer(self.inner(inputs))

    def arrays(self):
        inner, outer = self.inner.arrays(), self.outer.arrays()
        found = {f"inner.{name}": array for name, array in inner.items()}
        return found | {f"outer.{name}": array for name, array in outer.items()}

    def merged(self):
        """Return the two as one layer."""
        return Dense(self.outer.weight @ self.inner.weight, self.outer.bias)


# The weights: what there is, and what must not be done to it.


def weight_matrices(net):
    """Yield the name and the weight of each layer."""
    for name, layer in net.layers.items():
        done = isinstance(layer, SplitDense)
        array = layer.merged().weight if done else layer.weight
        yield name, Weight(
            layer=name, kind="linear", shape=array.shape, itemsize=array.itemsize, array=array,
            reason="split already: merge the net first" if done else "",
        )  # fmt: skip


def analyze(net, *, include=None, exclude=None, **options):
    """Report on the weights of a net."""
    return _subject(net, Selection(include, exclude)).analyze(AnalysisOptions.of(options))


def _subject(net, selection):
    """Return the weights that a user means; predicates are given (name, layer)."""
    weights = dict(weight_matrices(net))
    return Subject(weights, selection, "this net", owner_of=lambda weight: net.layers[weight.layer])


# Planning, and carrying out a plan.


def plan(net, **options):
    """Plan what `prune` would do; the rows may be edited before `apply_plan`."""
    asked = PlanOptions.of(options)
    task = Task(_subject(net, asked.selection()), asked)
    return task.plan(task.analyze())


def prune(net, **options):
    """Return a smaller net, and the plan that was carried out."""
    return apply_plan(net, plan(net, **options))


def apply_plan(net, plan):
    """Carry out a plan, edited or read from a file; the net that is given stays as it is."""
    made = adapting.adopt(plan, _subject(net, Selection()).targets, owner="this net")
    layers = dict(net.layers)
    for row in made.cut:
        dense = layers[row["layer"]]
        if row["action"] == Action.TRUNCATE:
            found = adapting.truncate(dense.weight, row["rank"])
            layers[row["layer"]] = Dense(found.matrix, dense.bias)
        else:
            found = adapting.split(dense.weight, row["rank"])
            layers[row["layer"]] = SplitDense(Dense(found.inner), Dense(found.outer, dense.bias))
        row["weight_error"] = found.error
    return Net(layers), made


def merge(net):
    """Return the net with the factors multiplied back into one layer each."""
    layers = net.layers.items()
    return Net({name: x.merged() if isinstance(x, SplitDense) else x for name, x in layers})


# Saving and loading.


def save(net, folder):
    """Save a net, split layers included, into a new folder."""
    tensors = [adapting.Outgoing.of(name, array) for name, array in net.arrays().items()]
    splits = [
        adapting.SplitEntry(name, "linear", len(layer.inner.weight), layer.merged().weight.shape)
        for name, layer in net.layers.items()
        if isinstance(layer, SplitDense)
    ]
    with adapting.model_folder(folder, tensors, splits):
        pass  # here a framework writes files of its own beside them: a configuration


def load(net, folder):
    """Return what was saved, on a net of the same layers as before the split, which is filled."""
    manifest = adapting.Manifest.read(folder)
    manifest.check_files(folder)
    layers = dict(net.layers)
    for entry in manifest.splits:
        dense = layers.get(entry.name)
        if dense is None or dense.weight.shape != entry.shape:
            raise InvalidValueError(
                f"{entry.name!r} was split and is {entry.shape}; the net has no such layer. Build "
                "the net that was pruned."
            )
        inner = np.empty((entry.rank, entry.shape[1]), dense.weight.dtype)
        outer = np.empty((entry.shape[0], entry.rank), dense.weight.dtype)
        layers[entry.name] = SplitDense(Dense(inner), Dense(outer, dense.bias))
    loaded, stored = Net(layers), manifest.tensors(folder)
    shapes = {name: array.shape for name, array in loaded.arrays().items()}
    if shapes != {name: tensor.shape for name, tensor in stored.items()}:
        raise InvalidValueError(f"{folder} holds other arrays than the net: {', '.join(stored)}.")
    for name, array in loaded.arrays().items():
        array[...] = stored[name]()
    return loaded
