"""Which weight files a path means: one file, or the shards that the index of a folder lists."""

import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rmtspec._files.reading import bounded_json
from rmtspec._frameworks import SUFFIXES, suffix_of
from rmtspec._text import counted, listed
from rmtspec.errors import FileError

#: Suffixes of files that are read without a framework.
PLAIN = (".safetensors", ".npz", ".npy", ".gguf", ".h5", ".keras", ".msgpack")
INDEX = ".index.json"
#: Formats that a folder is searched for last.
_LAST = (".h5", ".keras", ".msgpack")
#: Files that tell a folder of Orbax.
_ORBAX = ("manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA")
#: "model-00001-of-00008.safetensors"
_NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
#: Weight files of a folder without an index; the first that exists is used.
_USUAL = ("model.safetensors", "pytorch_model.bin")
#: Files of torch.save next to the weights of a model that are not weights.
_STATE = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state|random_states)")


class WeightFiles(NamedTuple):
    """What a path means: the weight files, and the folder of these and the model's other files.

    `names` gives the file of each tensor if there is an index.
    """

    files: tuple[Path, ...]
    folder: Path
    names: dict[str, Path] | None


def weight_files(path: Path) -> WeightFiles:
    """Return the weight files that `path` means, or raise `FileError`."""
    if path.is_dir():
        return _in_folder(_snapshot(path))
    if not path.exists():
        raise FileError(f"{path} does not exist; expected {EXPECTED}. Check the path.")
    if path.name.endswith(INDEX):
        return _indexed(path)
    if suffix_of(path) not in (*PLAIN, *SUFFIXES):
        hint = _HINTS.get(suffix_of(path), "")
        words = f"{path} has the suffix {path.suffix!r}; expected {EXPECTED}. {hint}"
        raise FileError(words.rstrip())
    if not path.is_file():
        raise FileError(f"{path} is not a regular file; expected {EXPECTED}. Save it as one.")
    return WeightFiles(_with_its_shards(path), path.parent, None)


def _with_its_shards(path: Path) -> tuple[Path, ...]:
    """Return a file, or all of a numbered set of GGUF files, which has no index."""
    match = _NUMBERED.match(path.stem) if path.suffix.lower() == ".gguf" else None
    if match is None:
        return (path,)
    pattern = re.compile(rf"{re.escape(match['stem'])}-\d{{5}}-of-{match['count']}\.gguf", re.I)
    names = sorted(file.name for file in path.parent.iterdir() if pattern.fullmatch(file.name))
    _check_numbers(path.parent, names)
    return tuple(path.parent / name for name in names)


EXPECTED = f"a {', '.join(PLAIN)}, {', '.join(SUFFIXES)} file or a folder of them"


#: What to do with files that are not read.
_HINTS = {
    ".onnx": "Name the weights that it was exported from.",
    ".zip": "Unpack it, and name the file or folder in it.",
    ".gz": "Unpack it, and name the file or folder in it.",
    ".tar": "Unpack it, and name the file or folder in it.",
    ".json": "Name the weights beside it, or an index of shards, which ends in .index.json.",
    ".py": "Code is never run: name a file of weights.",
    ".pkl": "Pickled code is never run: save the arrays with numpy.savez or safetensors.",
    ".pickle": "Pickled code is never run: save the arrays with numpy.savez or safetensors.",
}


def _snapshot(folder: Path) -> Path:
    """Return the snapshot that a folder of the Hugging Face cache means; any other as it is."""
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and folder.name.startswith("models--")):
        return folder
    known = sorted(child.name for child in snapshots.iterdir() if child.is_dir())
    main = folder / "refs" / "main"
    named = main.read_text("utf-8").strip() if main.is_file() else ""
    if named in known:
        return snapshots / named
    if len(known) != 1:
        words = listed(known, most=4) if known else "none"
        raise FileError(
            f"{folder} is a folder of the Hugging Face cache with "
            f"{counted(len(known), 'snapshot')}, {words}; expected one, or the one that "
            "refs/main names. Name a folder in snapshots."
        )
    return snapshots / known[0]


def _in_folder(folder: Path) -> WeightFiles:
    # Not `is_file`, so that a broken link is reported as missing.
    names = sorted(child.name for child in folder.iterdir() if not child.is_dir())
    for suffix in (".safetensors", ".bin", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".gguf", *_LAST):
        files = [n for n in names if n.lower().endswith(suffix) and not n.startswith(".")]
        indices = [n for n in names if n.endswith(suffix + INDEX)]
        if suffix in SUFFIXES:
            files = [n for n in files if not _STATE.match(n)]
        if len(indices) > 1:
            usual = [n for n in indices if n.removesuffix(suffix + INDEX).endswith("model")]
            if len(usual) != 1:
                raise FileError(
                    f"{folder} has {len(indices)} indices: {', '.join(indices)}; expected one "
                    "model. Name the index instead of the folder."
                )
            indices = usual
        if indices:
            return _indexed(folder / indices[0])
        files = [name for name in _USUAL if name in files][:1] or files
        if files:
            _check_numbers(folder, files)
            one_model = suffix == ".gguf" and _one_set(files)
            if len(files) > 1 and suffix in (*SUFFIXES, ".npz", ".gguf", *_LAST) and not one_model:
                raise FileError(
                    f"{folder} has {len(files)} {suffix} files and no index: "
                    f"{listed(files, most=4)}. Name one of them."
                )
            return WeightFiles(tuple(folder / name for name in files), folder, None)
    if any((folder / name).exists() for name in _ORBAX):
        raise FileError(
            f"{folder} is a checkpoint of Orbax, which is not read; expected {EXPECTED}. Restore "
            "it, and pass its arrays to rmtspec.analyze_many, or save them as .msgpack."
        )
    inner = sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and any(f.suffix.lower() in (*PLAIN, *SUFFIXES) for f in child.iterdir())
    )
    hint = f" There are some in {listed(inner, most=4)}: name one of those." if inner else ""
    raise FileError(f"{folder} is a folder without weight files; expected {EXPECTED}.{hint}")


def _indexed(index: Path) -> WeightFiles:
    """Return the shards that an index lists; all must exist."""
    try:
        content: Any = bounded_json(index)
    except ValueError as error:
        raise _damaged(index, f"it is not JSON ({error})") from None
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise _damaged(index, "it has no 'weight_map' that names a file for each tensor")
    places: dict[str, str] = {}
    for name, file in mapping.items():
        if not isinstance(file, str) or not file:
            raise _damaged(index, f"it names {file!r} as the file of {name!r}")
        place = PurePosixPath(file)
        if place.is_absolute() or ".." in place.parts or "\\" in file or ":" in file:
            raise FileError(
                f"{index} is refused: it names {file!r} as the file of {name!r}, which is "
                "outside the folder; expected files in it. Do not use it, or correct the index."
            )
        places[name] = str(place)  # one spelling
    folder = index.parent
    files = {file: folder / file for file in sorted(set(places.values()))}
    missing = [file for file, place in files.items() if not place.is_file()]
    if missing:
        raise FileError(
            f"{folder} is incomplete: {index.name} lists {counted(len(files), 'file')}, but "
            f"{listed(missing, most=4)} {'is' if len(missing) == 1 else 'are'} missing. "
            "Download or copy what is missing."
        )
    wrong = [f for f in files if Path(f).suffix.lower() not in (".safetensors", *SUFFIXES)]
    if wrong:
        raise _damaged(index, f"it lists {wrong[0]!r}; expected .safetensors or .bin files")
    names = {name: files[file] for name, file in places.items()}
    return WeightFiles(tuple(files.values()), folder, names)


def _one_set(names: list[str]) -> bool:
    """Tell whether all files are of one numbered set."""
    sets = [_NUMBERED.match(name.rpartition(".")[0]) for name in names]
    return len({match and (match["stem"], match["count"]) for match in sets}) == 1 and all(sets)


def _check_numbers(folder: Path, names: list[str]) -> None:
    """Raise if a shard is missing from a numbered set."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _NUMBERED.match(name.rpartition(".")[0])
        if match:
            key = (match["stem"], int(match["count"]))
            sets.setdefault(key, set()).add(int(match["number"]))
    for (stem, count), numbers in sets.items():
        missing = [number for number in range(1, count + 1) if number not in numbers]
        if missing:
            raise FileError(
                f"{folder} is incomplete: of the {count} files of {stem!r}, {len(missing)} are "
                f"missing, the first of them number {missing[0]}. Download or copy what is missing."
            )


def _damaged(index: Path, what: str) -> FileError:
    return FileError(f"{index} is damaged: {what}. Download or save the checkpoint again.")
