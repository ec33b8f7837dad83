"""Example 4.1 of the paper: one hidden layer, and what is left of it at each rank (Fig. 4 and 5).

    python benchmarks/paper/example_4_1.py --seeds 0 1 2

Trains [784, 1000, 10] for 10 epochs, then replaces the first layer by the split one at each of a
list of ranks and measures the test accuracy: without data, and with the inputs' second moment.
"""

import json
from typing import Any

import torch
from command import Example, images, parser, print_table
from methods import rounded
from training import Images, Setup, terminal_line, train, write_whole

import rmtspec
from rmtspec.adapters import torch as rt

EXAMPLE = Example("4.1", (784, 1000, 10), paper_epochs=10, fit_cutoff=0.1)
RANKS = (1, 2, 3, 5, 7, 10, 13, 16, 20, 25, 30, 35, 40, 50, 60, 70, 80, 100, 150, 200, 400, 784)
#: Of BEMA, as the paper has them for this example.
PAPER = {"alpha": 0.25, "beta": 0.1, "refine": False}


def main() -> None:
    """Train, cut at each rank, write the curve beside the run's record."""
    given = parser(__doc__.splitlines()[0]).parse_args()
    loaded = images(given)
    records = []
    for seed in given.seeds:
        setup = Setup(
            EXAMPLE.number, EXAMPLE.dims, given.epochs or EXAMPLE.paper_epochs, seed=seed,
            output_relu=given.output_relu, device=given.device, threads=given.threads,
            keep_weights=True,
        )  # fmt: skip
        record = train(setup, loaded, given.results, given.states, say=terminal_line)
        file = given.results / f"{setup.name}.json"
        if "ranks" not in record:
            model = rt.MLP(setup.dims, output_relu=setup.output_relu).to(setup.device)
            weights = given.states / f"{setup.name}.weights.pt"
            model.load_state_dict(torch.load(weights, weights_only=True))
            record |= _curve(model, loaded)
            write_whole(file, json.dumps(record, indent=1) + "\n")
        records.append(record)
    print_table(records)
    for record in records:
        print(f"seed {record['setup']['seed']}: {record['edge']}")
        for rank, plain, aware in zip(
            record["ranks"], record["accuracy"], record["accuracy_with_data"], strict=True
        ):
            print(f"  rank {rank:4}: {plain:6.2f} %, with data {aware:6.2f} %")


def _curve(model: torch.nn.Module, loaded: Images) -> dict[str, Any]:
    """Return accuracies by rank, where the edge lies, and the spectrum of the first layer."""
    weight: Any = model.layers[0].weight.detach().cpu().numpy()
    spec = rmtspec.spectrum(weight)
    sample = loaded.train[:10_000].double()
    moment = (sample.mT @ sample / len(sample)).cpu().numpy()
    plain, aware = [], []
    for rank in RANKS:
        for curve, known in ((plain, None), (aware, moment)):
            layer = rt.SplitLinear.from_layer(model.layers[0], rank, input_moment=known)
            curve.append(_accuracy(model, layer, loaded))
    fits = {
        "paper's settings": rmtspec.analyze(spec, **PAPER),
        "defaults": rmtspec.analyze(spec),
    }
    return {
        "ranks": RANKS,
        "accuracy": plain,
        "accuracy_with_data": aware,
        "edge": {
            name: {"n_spikes": found.fit.n_spikes, "fit_statistic": found.test.statistic,
                   "threshold": found.fit.threshold}
            for name, found in fits.items()
        },
        "spectrum": {"n": spec.n, "eigenvalues": rounded(spec.eigenvalues)},
    }  # fmt: skip


@torch.no_grad()
def _accuracy(model: torch.nn.Module, first: torch.nn.Module, loaded: Images) -> float:
    values = loaded.test
    for layer in (first, *list(model.layers)[1:]):
        last = layer is model.layers[-1]
        values = layer(values)
        values = values if last and not model.output_relu else torch.relu(values)
    return 100 * float((values.argmax(1) == loaded.test_labels).double().mean())


if __name__ == "__main__":
    main()
