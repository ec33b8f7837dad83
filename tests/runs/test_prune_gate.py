"""The gate on files, from Python and the command: what is left, what passes, what it costs."""

import json

import numpy as np
import pytest
from checkpoints import planted, write_safetensors, write_sharded
from click.testing import CliRunner
from safetensors.numpy import load_file

from rmtspec import cli
from rmtspec.checkpoint.manifest import WEIGHTS
from rmtspec.errors import FileError, InvalidValueError
from rmtspec.report import matrix_report
from rmtspec.report.report import Report
from rmtspec.runs.prune import prune_checkpoint

ADVICE = "let data decide with calibration= and budget=, or gate=None"
RNG = np.random.default_rng(4)


def orthogonal(rows=120, columns=90):
    return np.linalg.qr(RNG.standard_normal((rows, columns)))[0].astype(np.float32)


def low_rank(rank, dtype=np.float32):
    outer, inner = RNG.standard_normal((120, rank)), RNG.standard_normal((rank, 90))
    return (outer.astype(dtype).astype(float) @ inner.astype(dtype).astype(float)).astype("float32")


TENSORS = {
    "planted.weight": planted(),
    "orthogonal.weight": orthogonal(),
    "identity.weight": np.eye(90, dtype=np.float32),
    "low.weight": low_rank(5),
    "half.weight": low_rank(4, np.float16),
    "constant.weight": np.full((120, 90), 0.25, np.float32),  # what is left of it is exactly 0
    "heavy.weight": RNG.standard_t(3, (120, 90)).astype(np.float32),
    "rows.weight": (
        RNG.standard_normal((120, 90)) * np.exp(RNG.normal(size=(120, 1)))
    ).astype(np.float32),
    "tok_embeddings.weight": planted(100, 80, seed=1),
    "conv.weight": planted(60, 48, seed=3).reshape(60, 16, 3),
    "head.weight": RNG.standard_normal((10, 120)).astype(np.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gate") / "m.safetensors"
    write_safetensors(path, TENSORS)
    return path


def reasons(report):
    return {row["name"].removesuffix(".weight"): row["reason"] for row in report.rows}


def ranks(report):
    return {row["name"].removesuffix(".weight"): (row["rule"], row["rank"]) for row in report.cut}


def test_what_is_cut_and_why_the_others_are_left(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out")
    why = reasons(done)
    assert why["orthogonal"] == f"no noise-like bulk: {ADVICE}"
    assert why["identity"] == f"cannot tell: {ADVICE}"
    assert why["head"] == "smaller side 10 is below 16"
    count = {name: done.row(f"{name}.weight")["n_components"] for name in ("heavy", "rows")}
    assert max(count.values()) <= 2  # both are noise
    assert ranks(done) == {
        "planted": ("noise", 2 + int(0.45 * 88)),
        "low": ("exact", 5),
        "half": ("exact", 4),
        "constant": ("exact", 1),
        **{name: ("noise", k + int(0.45 * (90 - k))) for name, k in count.items()},
    }
    written = load_file(tmp_path / "out" / WEIGHTS)
    for name in ("orthogonal", "identity"):
        assert written[f"{name}.weight"].tobytes() == TENSORS[f"{name}.weight"].tobytes()
    for name in ("low", "half", "constant"):  # nothing is lost but rounding
        W = TENSORS[f"{name}.weight"]
        product = written[f"{name}.outer.weight"] @ written[f"{name}.inner.weight"]
        assert np.abs(product - W).max() < 4e-6 * np.abs(W).max()
    assert done.settings["gate"] == "noise"


def test_without_a_gate_all_of_them_are_cut(model):
    for spelling in ({"gate": None}, {"fit_cutoff": None}):
        done = prune_checkpoint(model, None, dry_run=True, **spelling)
        assert {"orthogonal", "identity"} < set(ranks(done))
        assert done.row("orthogonal.weight")["weight_error"] == pytest.approx(0.74, abs=0.01)
        assert ranks(done)["low"] == ("exact", 5)  # at no loss, whatever the share of the bulk


def test_a_number_in_either_spelling(model):
    one = prune_checkpoint(model, None, dry_run=True, gate=0.1)
    other = prune_checkpoint(model, None, dry_run=True, fit_cutoff=0.1)
    for row in (*one.rows, *other.rows):
        del row["seconds"]
    assert one.to_dict() == other.to_dict()
    assert reasons(one)["orthogonal"].startswith("fit rejected: statistic")
    assert ranks(one)["low"] == ("exact", 5)  # passes every gate
    with pytest.raises(InvalidValueError, match="two spellings of the same option"):
        prune_checkpoint(model, None, dry_run=True, gate=0.1, fit_cutoff=0.1)


def test_dense_truncation_is_gated_too(model):
    done = prune_checkpoint(model, None, dry_run=True, mode="truncate")
    assert reasons(done)["orthogonal"] == f"no noise-like bulk: {ADVICE}"
    # A truncation of what has low rank already changes nothing, and saves nothing.
    assert reasons(done)["low"] == "no bulk; only rounding is left beyond rank 5"


def test_budget_alone_does_not_lift_it(model):
    options = {"dry_run": True, "budget": 0.5, "include": "orthogonal"}
    done = prune_checkpoint(model, None, **options)
    assert reasons(done)["orthogonal"] == f"no noise-like bulk: {ADVICE}"
    done = prune_checkpoint(model, None, gate=None, **options)
    assert ranks(done) == {"orthogonal": ("budget", int(0.5 * 120 * 90 / 210))}


def test_ranks_lift_it_for_what_they_name(model):
    done = prune_checkpoint(model, None, dry_run=True, ranks={"orthogonal": 9})
    assert ranks(done)["orthogonal"] == ("given", 9)
    assert reasons(done)["identity"] == f"cannot tell: {ADVICE}"


def test_an_edited_plan_lifts_it(model, tmp_path):
    plan = prune_checkpoint(model, None, dry_run=True, include="orthogonal|planted")
    plan.row("orthogonal.weight").update(action="split", rank=9)
    done = prune_checkpoint(model, tmp_path / "out", plan=plan)
    assert load_file(tmp_path / "out" / WEIGHTS)["orthogonal.inner.weight"].shape == (9, 90)
    assert done.row("orthogonal.weight")["rank"] == 9
    with pytest.raises(InvalidValueError, match="`plan` and `gate` are both given"):
        prune_checkpoint(model, None, dry_run=True, plan=plan, gate=0.1)


def test_where_nothing_passes_nothing_is_written(model, tmp_path):
    with pytest.raises(InvalidValueError, match=rf"no noise-like bulk: {ADVICE}: 1 \(orth"):
        prune_checkpoint(model, tmp_path / "out", include="orthogonal")
    assert not (tmp_path / "out").exists()


def test_only_what_may_be_cut_is_tested(model, monkeypatch):
    fitted = []
    real = matrix_report.noise_of

    def note(array, *rest):
        fitted.append(array.shape)
        return real(array, *rest)

    monkeypatch.setattr(matrix_report, "noise_of", note)
    done = prune_checkpoint(model, None, dry_run=True, ranks={"heavy": 8})
    models = {row["name"].removesuffix(".weight"): row["noise_model"] for row in done.rows}
    plain = {name for name, noise in models.items() if noise == "mp"}
    assert plain == {"tok_embeddings", "conv", "head", "heavy"}
    assert len(fitted) == len(TENSORS) - len(plain)
    fitted.clear()
    for options in ({"gate": None}, {"gate": 0.1}, {"gate": None, "budget": 0.4}):
        assert prune_checkpoint(model, None, dry_run=True, **options).settings["noise"] == "mp"
    assert fitted == []
    prune_checkpoint(model, None, dry_run=True, gate=None, rule="noise", include="planted")
    assert fitted == [(120, 90)]


def test_a_prune_that_was_stopped_goes_on_to_the_same_report(model, tmp_path, monkeypatch):
    expected = prune_checkpoint(model, tmp_path / "whole").to_dict()
    real, analysed = matrix_report.noise_of, []

    def stop(array, *rest):
        analysed.append(array.shape)
        if len(analysed) == 4:
            raise KeyboardInterrupt
        return real(array, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(matrix_report, "noise_of", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(model, tmp_path / "out")
    with pytest.raises(FileError, match=r"other options \(cutoff was None, is now 0\.1\)"):
        prune_checkpoint(model, tmp_path / "out", gate=0.1)
    done = prune_checkpoint(model, tmp_path / "out").to_dict()
    for row in (*expected["rows"], *done["rows"]):
        row.pop("seconds")
    assert done == expected
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


# -- the command


def run(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    names = ("planted", "orthogonal", "low")
    tensors = {f"{name}.weight": TENSORS[f"{name}.weight"] for name in names}
    return write_sharded(tmp_path / "model", {"model-00001-of-00001.safetensors": tensors})


@pytest.mark.parametrize(
    ("words", "cut", "gate"),
    [
        ([], ["low", "planted"], "noise"),
        (["--gate", "noise"], ["low", "planted"], "noise"),
        (["--gate", "none"], ["low", "orthogonal", "planted"], None),
        (["--gate", 0.1], ["low", "planted"], 0.1),
        (["--gate", 0.0001], ["low"], 0.0001),
        (["--fit-cutoff", 0.0001], ["low"], 0.0001),
    ],
    ids=str,
)
def test_the_command(folder, tmp_path, words, cut, gate):
    file = tmp_path / "plan.json"
    done = run("prune", folder, tmp_path / "out", "--report", file, "--threads", 1, *words)
    assert (done.exit_code, done.stderr) == (0, "")
    report = Report.from_json(file)
    names = [row["name"] for row in report.rows if row["action"] != "keep"]
    assert sorted(name.removesuffix(".weight") for name in names) == cut
    assert report.settings["gate"] == gate
    why = report.row("orthogonal.weight")["reason"]
    left = f"no noise-like bulk: {ADVICE}" if gate == "noise" else "fit rejected: statistic"
    assert why.startswith("" if gate is None else left)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gate", "maybe"], "expected noise, none, or a number in (0, 1)"),
        (["--gate", "0"], "(0, 1)"),
        (["--gate", "0.1", "--fit-cutoff", "0.1"], "two spellings of the same option"),
        (["--gate", "none", "--fit-cutoff", "0.1"], "two spellings of the same option"),
    ],
    ids=str,
)
def test_wrong_gates_at_the_command(folder, tmp_path, words, message):
    done = run("prune", folder, tmp_path / "out", *words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_commands_plan_by_hand(folder, tmp_path):
    run("prune", folder, tmp_path / "no", "--dry-run", "--report", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    for row in plan["rows"]:
        row.update(action="split", rank=6)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = run("prune", folder, tmp_path / "out", "--plan", tmp_path / "plan.json")
    assert done.exit_code == 0, done.stderr
    assert load_file(tmp_path / "out" / WEIGHTS)["orthogonal.inner.weight"].shape == (6, 90)
