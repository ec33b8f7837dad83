"""The command line: `rmtspec analyze`, `prune`, `compare`, `merge`, `demo`, ...

Exit status: 0 for success; 1 if the input cannot be used or nothing in it can be analysed; 2 for
wrong usage; 130 if interrupted.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rmtspec import __version__
from rmtspec._text import counted, printable
from rmtspec.cli import compare_command, graph_files, lora_commands
from rmtspec.cli.completion import completion
from rmtspec.cli.display import display_options
from rmtspec.cli.memory import return_freed_memory
from rmtspec.cli.output import after, complete, say, say_lines
from rmtspec.cli.parameters import FilePath, Gate, Multiple, ranks_of
from rmtspec.cli.places import check_report, force_option, target
from rmtspec.cli.progress import interruptible, progress_bar
from rmtspec.cli.tables import show
from rmtspec.cli.unfreezing import check_unfreeze, chosen_by, show_unfrozen
from rmtspec.cli.wording import Group, in_flags
from rmtspec.errors import OptionError

_RULES = ("bema", "noise", "gavish-donoho", "screenot", "energy", "fraction", "exact")
#: Those of `rmtspec.fit_noise`.
_MODELS = ("auto", "mp", "equalized", "signflip")
_METHODS = ("auto", "gram", "svd", "stochastic")
_FIGURES = ("example-3.3", "fig-2", "fig-3a", "fig-3b")


_PATH = FilePath(path_type=Path)
_CALIBRATION_HELP = (
    "A text to run the model in the folder IN on, block by block if it can be, or a .safetensors "
    "file that Calibration.save wrote: with --budget, rank goes where the loss falls most."
)
_OBJECTIVE_HELP = "What the cut preserves with --calibration: the loss, or the layers' outputs."
_MULTIPLE_HELP = "Ranks that a budget or rule chooses are multiples of it; auto: of 16, or 8."
_NOISE_HELP = "Model of the noise: one variance, or any variances of rows, columns and entries."
_GATE_HELP = "Cut only noise-like bulks (noise), fits below a NUMBER, or any matrix (none)."
_METHOD_HELP = "How spectra are found; stochastic: large ones are estimated, the errors stated."
_RULE_HELP = "What decides the rank: the noise edge, least error, a share, rounding."
_BY_NOISE = "bema with the noise model mp, else noise"
_BULK_KEEP_HELP = "Share of the bulk to keep (rules bema and noise)."
_ALPHA_HELP, _BETA_HELP = "Share left out on each side.", "Chance of a spike in pure noise."
_REPORT_HELP = "Write the {} to this file too, in the format of its suffix: .html, .csv or .json."
_UNFREEZE_HELP = "Write to --out FILE.yaml which weights to train: this share of each kind."
_FOLDER_HELP = "Folder to write into; made if its parent exists."
_LEVELS_HELP = "Levels matched with the eigenvalues: (k - 1/2) / p, or k / p."
_MODE_HELP = "Write two factors for each matrix, or their product in its place."

_default = functools.partial(click.option, show_default=True)  # the help shows the default

#: Options that two commands share.
_keep = click.option("--keep", type=float, help="Share to keep (rules energy and fraction).")
_include = click.option("--include", metavar="RE", help="Only names that match this expression.")
_exclude = click.option("--exclude", metavar="RE", help="No names that match this expression.")
_key = click.option(
    "--key", help="Where in a training checkpoint the weights are (model, ema.state_dict)."
)
_rng = click.option("--rng", type=int, show_default="0", help="Seed of the sign flips.")
_jobs = _default("--jobs", "n_jobs", type=int, default=1, help="Processes; -1: all cores.")
_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="BLAS threads of each; default: cores shared out."
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rmtspec")
def main() -> None:
    """Random-matrix spectra of weight matrices: where the noise ends, what is signal."""


@main.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATH)
@click.option("--out", type=_PATH, help=_REPORT_HELP.format("report"))
@force_option
@click.option(
    "--resume", "journal", metavar="FILE", type=_PATH, help="Keep a journal here, or resume it."
)
@click.option("--dry-run", is_flag=True, help="Show what it would cost, from the headers alone.")
@_jobs
@_threads
@click.option("--device", help="Compute on this torch device, such as cuda.")
@_default("--method", type=click.Choice(_METHODS), default="auto", help=_METHOD_HELP)
@_default("--alpha", default=0.2, help=_ALPHA_HELP)
@_default("--beta", default=0.1, help=_BETA_HELP)
@click.option("--rule", type=click.Choice(_RULES), show_default=_BY_NOISE, help=_RULE_HELP)
@_default("--bulk-keep", default=0.0, help=_BULK_KEEP_HELP)
@_keep
@_default(
    "--quantiles", type=click.Choice(["midpoint", "paper"]), default="midpoint", help=_LEVELS_HELP
)
@click.option("--no-refine", is_flag=True, help="Fit once, spikes included.")
@click.option("--fit-cutoff", "cutoff", type=float, help="Accept a fit by the paper's gamma.")
@_default("--level", default=0.05, help="Accept a fit at this p-value.")
@_default("--noise", type=click.Choice(_MODELS), default="mp", help=_NOISE_HELP)
@_rng
@click.option("--metrics", is_flag=True, help="Norms, ranks, power law and more, as columns.")
@click.option("--init", type=_PATH, help="With --metrics: the weights before training.")
@click.option("--unfreeze", type=float, metavar="SHARE", help=_UNFREEZE_HELP)
@_include
@_exclude
@_key
@display_options
def analyze(
    paths: tuple[Path, ...], out: Path | None, force: bool, journal: Path | None, dry_run: bool,
    n_jobs: int,
    key: str | None, threads: int | None, device: str | None, no_refine: bool, include: str | None,
    exclude: str | None, unfreeze: float | None, **numbers: Any,
) -> None:  # fmt: skip
    """Analyse the matrices in PATH: a weight file, or a folder of them of any size.

    PATH is a .safetensors, .npz, .npy, .gguf, .pt, .pth, .bin, .ckpt or .onnx file, or a folder
    that holds an index and its shards, a single file, or .npy files. Only one matrix is in memory
    at a time; quantised weights are dequantised as they are read.
    Several paths make one report, with the name of its file before that of each matrix.
    """
    options = {name: value for name, value in numbers.items() if value is not None}
    options["refine"] = not no_refine
    from rmtspec.cli.scan import labels_of, refuse_unread, scan, show_cost
    from rmtspec.planning.selection import Selection
    from rmtspec.report.joined import joined
    from rmtspec.report.options import AnalysisOptions, check_jobs

    AnalysisOptions.of(options)
    check_jobs(n_jobs)
    Selection(include, exclude)
    check_report(out, "--out", paths, force=force, yaml=unfreeze is not None)
    check_unfreeze(unfreeze, out, paths)
    labels = labels_of(paths)
    if out is not None and journal is not None and out.resolve() == journal.resolve():
        raise click.UsageError(
            f"--out and --resume are both {printable(str(out))}; expected two files."
        )
    if len(paths) > 1 and journal is not None:
        raise click.UsageError("--resume keeps the journal of one PATH; expected one.")
    if dry_run and out is not None:
        raise click.UsageError("--dry-run does not analyse, so there is no report for --out.")
    if device is not None and numbers["method"] == "stochastic":
        raise click.UsageError("--device does not estimate spectra; leave out one of the two.")
    if device is not None and n_jobs != 1:
        raise click.UsageError("--device works in one process; leave out --jobs.")
    how: dict[str, Any] = {
        "include": include, "exclude": exclude, "key": key, "journal": journal, "n_jobs": n_jobs,
        "threads": threads, "device": device if dry_run else _usable(device),
    }  # fmt: skip
    if dry_run:
        for path in paths:
            show_cost(path, how, AnalysisOptions.of(options))
        return
    runs = [scan(path, how, options) for path in paths]
    reports = {label: run() for label, run in zip(labels, runs, strict=True)}
    report = joined(reports) if len(paths) > 1 else reports[labels[0]]
    unfrozen = None if unfreeze is None else chosen_by(report, unfreeze, out)
    if out is not None and unfrozen is None:
        report.save(out)
    done = complete(out) if unfrozen is not None or out is None else f"The report is in {out}."
    with after(done):
        show(report)
        if unfrozen is not None:
            show_unfrozen(unfrozen, out)
        elif out is not None:
            say(f"Report written to {out}")
    refuse_unread(report)


@main.command()
@click.argument("path", metavar="IN", type=_PATH)
@click.argument("out", required=False, type=_PATH)
@_default(
    "--as", "mode", type=click.Choice(["factors", "dense"]), default="factors", help=_MODE_HELP
)
@click.option("--rule", type=click.Choice(_RULES), show_default=_BY_NOISE, help=_RULE_HELP)
@click.option("--bulk-keep", type=float, show_default="0.45", help=_BULK_KEEP_HELP)
@_keep
@click.option(
    "--gate",
    type=Gate(),
    metavar=Gate.name,
    show_default="noise, without a plan",
    help=_GATE_HELP,
)
@click.option("--fit-cutoff", type=float, help="Another spelling of --gate NUMBER.")
@_include
@_exclude
@_default("--min-saving", default=0.0, help="Keep matrices that save less than this share.")
@click.option("--budget", type=float, help="Share of parameters to keep, instead of a rule.")
@click.option("--calibration", type=_PATH, help=_CALIBRATION_HELP)
@_default(
    "--sequences",
    type=click.IntRange(min=1),
    default=32,
    help="Sequences of 512 tokens to take from such a text.",
)
@click.option("--objective", type=click.Choice(["loss", "outputs"]), help=_OBJECTIVE_HELP)
@click.option("--rank-multiple", type=Multiple(), metavar=Multiple.name, help=_MULTIPLE_HELP)
@click.option("--rank", "ranks", metavar="NAME=K", multiple=True, help="This rank for this name.")
@click.option("--plan", type=_PATH, help="Carry out the plan in this .json file.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing; OUT is optional.")
@_jobs
@_threads
@click.option(
    "--noise",
    type=click.Choice(_MODELS),
    show_default="auto if the gate is noise",
    help=_NOISE_HELP,
)
@_rng
@click.option("--alpha", type=float, show_default="0.2", help=_ALPHA_HELP)
@click.option("--beta", type=float, show_default="0.1", help=_BETA_HELP)
@click.option("--report", "report_file", type=_PATH, help=_REPORT_HELP.format("plan"))
@force_option
@_key
@display_options
def prune(
    path: Path, out: Path | None, key: str | None, ranks: tuple[str, ...], plan: Path | None,
    dry_run: bool, threads: int | None, report_file: Path | None, force: bool,
    calibration: Path | None,
    sequences: int, **request: Any,
) -> None:  # fmt: skip
    """Prune the matrices of IN, a weight file or folder, into OUT, a new or empty folder.

    If it is killed at any point, the same command resumes where it stopped. From an
    .onnx file a new .onnx file is made, in one go.
    """
    if out is None and not dry_run:
        raise click.UsageError("Missing argument 'OUT'; only --dry-run works without it.")
    from rmtspec import checkpoint
    from rmtspec._files.writing import empty_folder
    from rmtspec.checkpoint.companions import companions
    from rmtspec.planning.options import PlanOptions
    from rmtspec.report.report import Report
    from rmtspec.runs.dry_run import operations_of
    from rmtspec.runs.prune import prune_checkpoint
    from rmtspec.runs.work_folder import is_finished, work_path

    given = {name: value for name, value in request.items() if value is not None}
    if click.get_current_context().get_parameter_source("gate") is not ParameterSource.DEFAULT:
        given["gate"] = request["gate"]  # None, for none, is a value
    given["ranks"] = ranks_of(ranks)
    given["mode"] = {"factors": "split", "dense": "truncate"}[given["mode"]]
    if plan is not None:
        given["plan"] = Report.from_json(plan)
    more = {
        name: given[name] for name in given if name in ("alpha", "beta", "keep", "noise", "rng")
    }
    apart = (*more, "objective")
    asked = {name: value for name, value in given.items() if name not in apart}
    asked["calibrated"] = calibration is not None
    selection = PlanOptions(**asked, more=more).selection()
    check_report(report_file, "--report", (path, plan, calibration), force=force)
    if graph_files.takes(path):
        made = None if dry_run else out
        graph_files.prune(
            path, made, calibration, report_file,
            unfit={"--threads": threads, "--key": key}, options=given,
        )  # fmt: skip
        return
    if out is not None and not is_finished(out):
        with target("OUT"):
            empty_folder(out)
    listed = checkpoint.matrices_in(path, parts=given["mode"] == "truncate", key=key)
    if calibration is None and "objective" in given:
        raise click.UsageError("--objective is given without --calibration; expected both.")
    operations = operations_of(selection.choose(listed.matrices)[0].values())
    hint = "" if dry_run or out is None else f"Kept in {work_path(out)}: the same command resumes."
    beside = None if dry_run else out
    how = {"sequences": sequences, "objective": given.get("objective")}
    with _calibrated(listed, calibration, beside, **how) as stats:
        if stats is not None:
            given["calibration"] = stats
        with interruptible(hint), progress_bar(operations, ("analysing", "writing")) as progress:
            done = prune_checkpoint(
                listed, out, dry_run=dry_run, report=report_file, threads=threads,
                progress=progress, **given,
            )  # fmt: skip
    if dry_run and report_file is not None:
        done.save(report_file)
    with after(complete(None if dry_run else out, report_file)):
        show(done)
        if report_file is not None:
            say(f"Report written to {report_file}")
        old, new = done.totals["bytes_before"], done.totals["bytes_after"]
        say(f"{old:,} bytes of tensors become {new:,} ({new / old:.1%})")
        left = companions(listed.path, listed.files)[1]
        if left:
            say(f"Not copied: {', '.join(left)}")
        say("Nothing written (--dry-run)" if dry_run else f"Written to {out}")


@contextlib.contextmanager
def _calibrated(listed: Any, source: Path | None, out: Path | None, **how: Any) -> Iterator[Any]:
    """Give the calibration in a file, or that of the model in a folder on a text; None without."""
    from rmtspec.planning.calibration import Calibration
    from rmtspec.runs.calibrate import calibrated_on

    if source is None:
        yield None
        return
    return_freed_memory()
    if source.suffix.lower() == ".safetensors":
        yield Calibration.load(source)
        return
    if not listed.path.is_dir():
        name = printable(str(listed.path))
        raise click.UsageError(
            f"--calibration is a text, and {name} is a file; expected the folder of the model, "
            "with its config and tokenizer."
        )

    with contextlib.ExitStack() as stack:
        with progress_bar(steps=("calibrating",), noun="steps") as progress:
            how |= {"say": functools.partial(say, err=True), "progress": progress}
            stats = stack.enter_context(calibrated_on(listed, source, out, **how))
        yield stats


@main.command()
@click.argument("folder", metavar="IN", type=_PATH)
@click.argument("out", type=_PATH)
def merge(folder: Path, out: Path) -> None:
    """Write the weights of IN as plain numbers in OUT, a new folder or .onnx file.

    Factors in IN, which prune wrote, are multiplied out; a .gguf file, or .safetensors files of
    fp8, GPTQ, AWQ, bitsandbytes, MXFP4 or compressed-tensors, are dequantised.
    """
    from rmtspec._files.writing import empty_folder
    from rmtspec.checkpoint.manifest import MANIFEST
    from rmtspec.runs.merge import merge_checkpoint

    if graph_files.takes(folder):
        graph_files.merge(folder, out)
        return
    with target("OUT"):
        empty_folder(out)
    merged = merge_checkpoint(folder, out)
    count = counted(len(merged), "matrix", "matrices")
    done = "multiplied out" if (folder / MANIFEST).exists() else "dequantised"
    with after(complete(out)):
        say(f"{count} {done}. Written to {out}")


main.add_command(compare_command.compare)
main.add_command(lora_commands.extract_lora)
main.add_command(lora_commands.resize_lora)
main.add_command(completion)


@main.command()
@click.argument("figure", type=click.Choice(_FIGURES))
@_default("--n", type=int, default=1000, help="Side of the matrix.")
@click.option("--out", type=_PATH, default=Path(), show_default="this folder", help=_FOLDER_HELP)
@click.option("--seeds", type=int, help="Repeat over this many seeds: mean and spread.")
@_default("--seed", type=int, default=0, help="First seed of the noise.")
def reproduce(figure: str, n: int, out: Path, seeds: int | None, seed: int) -> None:
    """Draw a figure of the paper and write its numbers next to it."""
    from rmtspec.reproduce import reproduce_figure as draw

    with target("--out"):
        written = draw(figure, n=n, out=out, seed=seed, seeds=seeds)
    with after(complete(out)):
        for file in written:
            say(str(file))


@main.command()
@_default("--out", type=_PATH, default=Path("rmtspec-demo"), help=_FOLDER_HELP)
def demo(out: Path) -> None:
    """Show on two matrices what this package does, in under a minute."""
    from rmtspec.demo.tour import run_demo

    with target("--out"):
        run_demo(out, say=say_lines)


def _usable(device: str | None) -> str | None:
    """Return the device if it can be used; otherwise say so and return None, for the CPU."""
    if device is None:
        return None
    from rmtspec._frameworks import usable_device

    try:
        return usable_device(device)
    except OptionError as error:
        left = OptionError(f"{error.problem}.", hint="Computing on the CPU.")
        say(in_flags(left, analyze), err=True)
        return None
