"""MNIST and Fashion-MNIST for the benchmarks: found on this machine, or fetched when asked to.

    python benchmarks/datasets.py mnist [--download] [--folder F]

prints the folder the set was read from and the shapes. Another idx set of 28 x 28 images may lie in
the place of one: what a file says of itself is always checked, the SHA-256 sum of its content only
when it is fetched.
"""

import argparse
import contextlib
import gzip
import hashlib
import http.client
import logging
import math
import os
import secrets
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmtspec.errors import FileError, InvalidValueError, RmtspecError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SIDE = 28
TIMEOUT = 20.0  # seconds without a byte after which a mirror is given up
PATIENCE = 1800.0  # seconds one file may take in all
LARGEST = 2**26  # bytes a mirror may send for one file, and bytes that may unpack to
_CHUNK = 2**16
_CURE = "Delete it and fetch it again, or take it from its source once more."
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where a set comes from; the SHA-256 sums of its unpacked files, in the order of `FILES`."""

    mirrors: tuple[str, ...]
    sums: tuple[str, ...]


SOURCES = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


class Dataset(NamedTuple):
    """Images, uint8 of shape (n, 28, 28), and their labels, uint8 of shape (n,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class _MirrorError(Exception):
    """An answer that cannot be used: the next mirror is asked."""


def load(
    name: str = "mnist",
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """Return a set from the first place that has its four files, plain or as .gz.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist"}
        Which set.
    folder : path, optional
        The only place looked into. Otherwise these are, in this order: ``$RMTSPEC_DATA/<name>``,
        `cache_folder`, and ``shared/data/<name>`` beside the checkout.
    download : bool
        Where the files are missing, fetch them into `folder`, or else into `cache_folder`.

    Raises
    ------
    FileError
        If there are no such files, or what is there (or on the mirrors) is not such a set.
    InvalidValueError
        If no set has this name.
    """
    return _read(locate(name, folder=folder, download=download))


def locate(
    name: str = "mnist",
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Path:
    """Return the folder `load` reads with the same arguments."""
    _source(name)
    places = _places(name, folder)
    found = next((place for place in places if not _missing(place)), None)
    if found is None:
        if not download:
            raise FileError(_not_found(name, places))
        found = fetch(name, cache_folder(name) if folder is None else Path(folder))
    return found


def cache_folder(name: str) -> Path:
    """Return the folder where `load` puts what it fetches: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "rmtspec", "datasets", name)


def fetch(
    name: str,
    folder: Path,
    *,
    mirrors: Sequence[str] | None = None,
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
    largest: int = LARGEST,
) -> Path:
    """Fetch the files of a set that `folder` lacks, and return `folder`.

    A file gets its name when it is complete and its sum is right. Those that were fetched before a
    failure stay, so that the next call goes on from there.
    """
    source = _source(name)
    remaining = list(source.mirrors if mirrors is None else mirrors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder} cannot be made: {_cause(error)}. Set XDG_CACHE_HOME to a folder you may "
            "write to."
        ) from error
    for file, expected in zip(FILES, source.sums, strict=True):
        if _stored(folder, file) is not None:
            continue
        target, reasons = folder / f"{file}.gz", []
        for mirror in remaining:
            url = mirror + target.name
            try:
                _fetch_file(url, target, expected, timeout, patience, largest)
            except _MirrorError as error:
                _log.info("%s: %s", url, error)
                reasons.append(f"  {url}: {error}")
            else:
                remaining.remove(mirror)
                remaining.insert(0, mirror)  # one that works is asked first for the next file
                break
        else:
            raise FileError(
                f"{target.name} of {name} could not be fetched:\n"
                + "\n".join(reasons)
                + f"\nCheck the network and any proxy, or put the file into {folder} yourself."
            )
    return folder


def _fetch_file(
    url: str, target: Path, expected: str, timeout: float, patience: float, largest: int
) -> None:
    """Write what `url` answers under a temporary name, check it, then give it its own name."""
    temporary = target.parent / f".rmtspec-{secrets.token_hex(8)}.tmp"
    try:
        # closing: an answer that is given up midway is hung up on here
        with (
            temporary.open("xb") as stream,
            contextlib.closing(_answer(url, timeout, patience, largest)) as answer,
        ):
            for chunk in answer:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        _check_sum(temporary, expected, largest)
        temporary.replace(target)
    except OSError as error:
        raise FileError(
            f"{target} cannot be written: {_cause(error)}. Free space, or set XDG_CACHE_HOME to a "
            "folder you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _answer(url: str, timeout: float, patience: float, largest: int) -> Iterator[bytes]:
    """Give the body of an answer in pieces; whatever is wrong with it is a `_MirrorError`."""
    deadline, received = time.monotonic() + patience, 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            announced = getattr(response, "length", None)  # None: not said
            if announced is not None and announced > largest:
                raise _MirrorError(f"announced {announced:,} bytes; at most {largest:,} expected")
            while chunk := response.read1(_CHUNK):
                received += len(chunk)
                if received > largest:
                    raise _MirrorError(f"sent more than {largest:,} bytes")
                if time.monotonic() > deadline:
                    raise _MirrorError(f"sent {received:,} bytes in {patience:g} s: too slow")
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise _MirrorError(f"sent nothing for {timeout:g} s") from error
        cause = _cause(reason) if isinstance(reason, OSError) else repr(reason)
        raise _MirrorError(f"failed: {cause}") from error
    if announced is not None and received < announced:
        raise _MirrorError(f"stopped after {received:,} of {announced:,} bytes")


def _check_sum(path: Path, expected: str, largest: int) -> None:
    """Raise unless the unpacked content of a .gz has this SHA-256 sum."""
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(path) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if size > largest:
                    raise _MirrorError(f"unpacks to more than {largest:,} bytes")
                digest.update(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _MirrorError(f"sent no complete .gz ({error})") from error
    if digest.hexdigest() != expected:
        raise _MirrorError(f"sent other content: SHA-256 {digest.hexdigest()}, expected {expected}")


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InvalidValueError(f"`name` is {name!r}; expected one of {', '.join(SOURCES)}.")
    return SOURCES[name]


def _places(name: str, folder: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look into, in this order; one that was named is the only one."""
    if folder is not None:
        return [Path(folder)]
    data = os.environ.get("RMTSPEC_DATA")
    places = [*([Path(data, name)] if data else []), cache_folder(name), _BESIDE / name]
    return list(dict.fromkeys(places))


def _stored(folder: Path, file: str) -> Path | None:
    """Return the path of a file, plain or .gz, or None if it is not there."""
    paths = (folder / file, folder / f"{file}.gz")
    return next((path for path in paths if path.is_file()), None)


def _missing(folder: Path) -> list[str]:
    return [file for file in FILES if _stored(folder, file) is None]


def _not_found(name: str, places: list[Path]) -> str:
    lines = []
    for place in places:
        missing = _missing(place)
        some = f" (no {', '.join(missing)})" if len(missing) < len(FILES) else ""
        lines.append(f"  {place}{some}\n")
    return (
        f"The files of {name} were not found. Looked for {', '.join(FILES)}, plain or .gz, in\n"
        f"{''.join(lines)}"
        f"Set RMTSPEC_DATA to the folder that holds {name}/, or fetch them (12 to 31 MB): "
        f"load({name!r}, download=True) or python benchmarks/datasets.py {name} --download"
    )


def _read(folder: Path) -> Dataset:
    train_images, train_labels, test_images, test_labels = (_stored(folder, f) for f in FILES)
    return Dataset(*_pair(train_images, train_labels), *_pair(test_images, test_labels))


def _pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise FileError(
            f"{images_path} holds {len(images)} images and {labels_path.name} {len(labels)} "
            "labels; expected as many of each. Take both from the same set."
        )
    return images, labels


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the array in an idx file of unsigned bytes with `ndim` dimensions."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _shape(path, stream.read(4 + 4 * ndim), ndim)
            content = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileError(f"{path} is no complete .gz ({error}). {_CURE}") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {_cause(error)}. Check the file.") from error
    size = math.prod(shape)
    if len(content) != size:
        raise FileError(
            f"{path} has {len(content):,} bytes after its header; expected {size:,} for the shape "
            f"{shape} that its header gives. {_CURE}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()  # writable


def _shape(path: Path, header: bytes, ndim: int) -> tuple[int, ...]:
    """Return the shape that an idx header gives, or raise where it is not what is expected."""
    kind = f"{path} is no idx file of {'images' if ndim == 3 else 'labels'}: "
    if len(header) < 4 + 4 * ndim:
        raise FileError(f"{kind}it ends after {len(header)} bytes, within its header. {_CURE}")
    zero, dtype, dimensions = struct.unpack(">HBB", header[:4])
    if zero:
        gzipped = header.startswith(b"\x1f\x8b")
        cure = "That is gzip: add .gz to its name." if gzipped else _CURE
        raise FileError(f"{kind}it begins with bytes {header[:2].hex(' ')}, not 00 00. {cure}")
    if dtype != 0x08:
        raise FileError(
            f"{kind}its values are of type 0x{dtype:02x}; expected 0x08, unsigned bytes. "
            "Convert them."
        )
    if dimensions != ndim:
        raise FileError(
            f"{kind}it has {dimensions} dimensions; expected {ndim}. Were two files mixed up?"
        )
    shape = struct.unpack(f">{ndim}I", header[4:])
    if shape[0] == 0 or shape[1:] not in ((), (SIDE, SIDE)):
        wanted = f"(n, {SIDE}, {SIDE})" if ndim == 3 else "(n,)"
        raise FileError(f"{kind}its shape is {shape}; expected {wanted} with n of 1 or more.")
    return shape


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the folder of a set and the shapes of its arrays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="mnist", choices=sorted(SOURCES))
    parser.add_argument("--download", action="store_true", help="fetch what is not found")
    parser.add_argument("--folder", help="the only place to look into")
    options = parser.parse_args(arguments)
    try:
        folder = locate(options.name, folder=options.folder, download=options.download)
        arrays = load(options.name, folder=folder)
    except RmtspecError as error:
        sys.exit(f"error: {error}")
    print(f"{options.name} in {folder}")
    for field, array in arrays._asdict().items():
        print(f"  {field:<13} {array.dtype} {array.shape}")


if __name__ == "__main__":
    main()
