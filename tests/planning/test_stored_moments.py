"""Moments in a file: mapped when they are asked for, and only then."""

import copy
import gc
import pickle
from pathlib import Path

import numpy as np
import pytest

from rmtspec.planning.calibration import Calibration

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def stats():
    rng = np.random.default_rng(0)
    moments = {}
    for name in NAMES:
        x = rng.standard_normal((40, 20))
        moments[name] = [x.T @ x / 40]
    return Calibration(
        objective="loss", gradient="g", inputs={name: name for name in NAMES},
        input_moments=moments, input_rows=dict.fromkeys(NAMES, 40),
        held_out={name: [of[0].astype(np.float32)] for name, of in moments.items()},
        held_out_rows=dict.fromkeys(NAMES, 4),
        output_weights={name: [np.ones(7)] for name in NAMES}, losses=3,
    )  # fmt: skip


@pytest.fixture
def loaded(stats, tmp_path):
    stats.save(tmp_path / "stats.safetensors")
    return Calibration.load(tmp_path / "stats.safetensors")


def assert_same(one, other):
    for part in ("input_moments", "held_out", "output_weights"):
        ours, theirs = getattr(one, part), getattr(other, part)
        assert sorted(ours) == sorted(theirs)
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert one.digest() == other.digest()
    assert one.nbytes == other.nbytes


def test_they_are_those_that_were_saved(stats, loaded):
    assert_same(loaded, stats)
    assert list(loaded.input_moments) == list(NAMES)
    assert len(loaded.input_moments) == 5
    assert not loaded.input_moments["a"][0].flags.writeable
    with pytest.raises(KeyError):
        loaded.input_moments["f"]


def test_layers_in_a_row_are_given_the_same_array(loaded):
    assert loaded.input_moments["a"][0] is loaded.input_moments["a"][0]


def test_the_file_may_be_deleted_and_what_was_read_can_be_copied(stats, loaded, tmp_path):
    (tmp_path / "stats.safetensors").unlink()
    assert_same(loaded, stats)
    assert_same(copy.deepcopy(loaded), stats)
    assert_same(pickle.loads(pickle.dumps(loaded)), stats)
    loaded.save(tmp_path / "again.safetensors")
    assert_same(Calibration.load(tmp_path / "again.safetensors"), stats)


def mapped(file):
    """Return how many pieces of a file are mapped; 0 on systems that do not say."""
    maps = Path("/proc/self/maps")
    return maps.read_text().count(str(file)) if maps.exists() else 0


def test_few_stay_mapped(loaded, tmp_path):
    file = (tmp_path / "stats.safetensors").resolve()
    assert mapped(file) == 0
    for name in NAMES:
        loaded.weights(name, (7, 20))
        loaded.digest()
    assert mapped(file) <= 3


def test_parts_of_a_model_are_joined_where_they_are(stats, tmp_path):
    parts = []
    for number, name in enumerate(NAMES):
        part = Calibration(
            objective="loss", gradient="g", inputs={name: name},
            input_moments={name: stats.input_moments[name]}, input_rows={name: 40},
            held_out={name: stats.held_out[name]}, held_out_rows={name: 4},
            output_weights={name: stats.output_weights[name]}, losses=3,
        )  # fmt: skip
        part.save(tmp_path / f"{number}.safetensors")
        parts.append(Calibration.load(tmp_path / f"{number}.safetensors"))
    whole = Calibration.joined(parts)
    assert list(whole.input_moments) == list(NAMES)
    assert_same(whole, stats)
    gc.collect()
    assert sum(mapped(tmp_path.resolve() / f"{n}.safetensors") for n in range(5)) <= 3
