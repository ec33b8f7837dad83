"""What lies in an HDF5 file of Keras, found out in a process of its own.

The library that reads HDF5 may loop for ever or crash on a damaged file, and both end here with an
error; the numbers of arrays are read elsewhere, without it. Run as ``python keras_walk.py FILE``,
this prints what it finds as JSON; it imports nothing else of this package, so that it starts
quickly.
"""

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The weights in a .keras archive.
MEMBER = "model.weights.h5"
_OPTIMIZER = ("optimizer", "optimizer_weights")
#: Seconds of computing for a file of no size, bytes for each second more, and the most seconds:
#: a thousand variables of a few numbers take .15 s, and are 4 MB.
_SECONDS, _BYTES, _MOST = 2, 2**21, 60
#: Bytes of memory beyond those of a process that has loaded h5py; for each byte of the file, and
#: for all of them: a variable of a few numbers takes 3 KB there, and 17 KB here.
_MEMORY, _EACH, _LARGE = 2**29, 8, 2**31


class WalkError(ValueError):
    """The file cannot be listed; the message says why."""


def found_in(file: str) -> dict[str, Any]:
    """Return what `walk` finds in a file, from a process of its own.

    Raises `WalkError` for a file that is damaged.
    """
    done = subprocess.run(
        [sys.executable, "-P", __file__, file], capture_output=True, text=True, encoding="utf-8",
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode < 0:
        raise WalkError(f"the HDF5 library does not get through it (signal {-done.returncode})")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason is given"]
        raise WalkError(lines[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def opened(file: str) -> Iterator[Any]:
    """Give the HDF5 file, which a .keras archive holds as a member."""
    import h5py

    if not file.lower().endswith(".keras"):
        with h5py.File(file, "r") as root:
            yield root
        return
    with (
        zipfile.ZipFile(file) as archive,
        archive.open(archive.getinfo(MEMBER)) as stream,
        h5py.File(stream, "r") as root,
    ):
        yield root


def walk(root: Any) -> dict[str, Any]:
    """Return the "entries" below the root, each object once, and the "names" that layers have.

    An entry has its "place" and "what" it is: an "array", "outside", numbers in another file,
    "link" or "other file" with its "target", or "optimizer". "size" is that of the HDF5 file.
    """
    import h5py

    if root.file.userblock_size:
        raise ValueError("other content lies before that of HDF5")
    entries: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    waiting, seen = [("", root)], set()
    while waiting:
        place, group = waiting.pop()
        if place.endswith("/vars"):
            own = group.attrs.get("name", "")
            names[place.removesuffix("/vars")] = own if isinstance(own, str) else ""
        for name in group:
            here = f"{place}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                entries.append({"place": here, "what": "other file", "target": link.filename})
            elif isinstance(link, h5py.SoftLink):
                entries.append({"place": here, "what": "link", "target": link.path})
            elif not place and name in _OPTIMIZER:
                entries.append({"place": here, "what": "optimizer"})
            else:
                found = group[name]
                address = h5py.h5o.get_info(found.id).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(found, h5py.Group):
                    waiting.append((here, found))
                elif isinstance(found, h5py.Dataset):
                    entries.append({"place": here, **_array(found)})
    return {"entries": entries, "names": names, "size": root.file.id.get_filesize()}


def _array(dataset: Any) -> dict[str, Any]:
    """Return what an array is, and where its numbers lie.

    "item" are the bytes of a number, "stored" those that all take. "exact" says whether the numbers
    are those of "dtype" bit for bit. The numbers lie from "at" on, are the "content" as hexadecimal
    digits, or lie in "pieces" of the sides "chunks", packed by the "filters"; or are the "fill".
    """
    import numpy as np

    dtype, kept = dataset.dtype, dataset.id.get_type()
    plain = not (dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None)
    plan = dataset.id.get_create_plist()
    found = {
        "what": "outside" if dataset.external or dataset.is_virtual else "array",
        "shape": dataset.shape, "dtype": dtype.str if plain else "", "type": str(dtype),
        "item": kept.get_size(), "stored": dataset.id.get_storage_size(),
        "chunks": dataset.chunks, "at": None, "content": None, "pieces": [], "fill": "",
        "filters": [plan.get_filter(index)[0] for index in range(plan.get_nfilters())],
    }  # fmt: skip
    if found["what"] == "outside" or not plain or dataset.shape is None:
        return found
    found["exact"] = _exact(dtype, kept)
    found["fill"] = np.asarray(dataset.fillvalue, dtype).tobytes().hex()
    if dataset.chunks is not None:
        found["pieces"] = _pieces(dataset)
        found["stored"] = sum(size for *_, size in found["pieces"])
    elif found["exact"] and found["stored"]:
        found["at"] = dataset.id.get_offset()
        if found["at"] is None:
            found["content"] = dataset[()].tobytes().hex()
    return found


def _exact(dtype: Any, kept: Any) -> bool:
    """Return whether numbers of HDF5 are those of NumPy, if they are any: precision, places."""
    import h5py

    same = dtype.kind not in "fiu" or kept.equal(h5py.h5t.py_create(dtype))
    return bool(same and kept.get_size() == dtype.itemsize)


def _pieces(dataset: Any) -> list[tuple[Any, ...]]:
    """Return (first indices, filters that are not used, first byte, length) of each piece."""
    found: list[tuple[Any, ...]] = []

    def add(piece: Any) -> None:
        corner = tuple(int(at) for at in piece.chunk_offset)
        found.append((corner, piece.filter_mask, piece.byte_offset, piece.size))

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(add)
    else:  # h5py with an older library
        for index in range(dataset.id.get_num_chunks()):
            add(dataset.id.get_chunk_info(index))
    return found


def _limit(size: int) -> None:
    """Limit the time, and on Linux the memory, of this process: a list may go round in circles."""
    import resource

    import h5py  # noqa: F401  # what it takes does not count

    seconds = min(_SECONDS + size // _BYTES, _MOST)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        most = pages * resource.getpagesize() + _MEMORY + min(_EACH * size, _LARGE)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _main(file: str) -> None:
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # the library, not loaded yet, loads no others
    with contextlib.suppress(ImportError):  # not on Windows
        _limit(Path(file).stat().st_size)
    with opened(file) as root:
        sys.stdout.write(json.dumps(walk(root)))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")  # type: ignore[union-attr]
    try:
        _main(sys.argv[1])
    except Exception as error:  # of a damaged file, whatever the library makes of it
        sys.exit(f"{error}".replace("\n", " ") or type(error).__name__)
