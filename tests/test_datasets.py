"""The benchmarks' loader of MNIST: where it looks, what it refuses, how it fetches."""

import contextlib
import gzip
import hashlib
import http.client
import http.server
import importlib.util
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from rmtspec.errors import FileError, InvalidValueError

# By path: a module called datasets on sys.path would stand in for the package of that name.
_SPEC = importlib.util.spec_from_file_location(
    "benchmark_datasets", Path(__file__).parents[1] / "benchmarks" / "datasets.py"
)
module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(module)

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = module.FILES
GOOD_SUMS = module.SOURCES


def idx(array, dtype=0x08):
    head = struct.pack(f">HBB{array.ndim}I", 0, dtype, array.ndim, *array.shape)
    return head + array.tobytes()


def small_set(seed=3):
    rng = np.random.default_rng(seed)
    arrays = []
    for n in (5, 3):
        arrays.append(rng.integers(256, size=(n, 28, 28), dtype=np.uint8))
        arrays.append(rng.integers(10, size=n, dtype=np.uint8))
    return module.Dataset(*arrays)


SMALL = small_set()
CONTENT = {file: idx(array) for file, array in zip(module.FILES, SMALL, strict=True)}
PACKED = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in CONTENT.items()}


def write_set(folder, suffix="", content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    for file, plain in content.items():
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(plain) if suffix else plain)
    return folder


def same(found, expected=SMALL):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /<manner>/<file>: the manner says what is wrong with the answer."""

    def do_GET(self):
        _, manner, file = self.path.split("/")
        self.server.asked.append(f"{manner}/{file}")
        with contextlib.suppress(OSError):  # hung up on, as it should be
            getattr(self, manner)(self.server.files[file])

    def begin(self, length=None):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def good(self, body):
        self.begin(len(body))
        self.wfile.write(body)

    def moved(self, body):
        self.send_response(302)
        self.send_header("Location", self.path.replace("moved", "good"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def truncated(self, body):
        self.begin(len(body))
        self.wfile.write(body[: len(body) // 2])

    def truncated_unannounced(self, body):
        self.begin()
        self.wfile.write(body[: len(body) // 2])

    def wrong(self, body):
        self.good(gzip.compress(b"x" + gzip.decompress(body)[1:]))

    def page(self, body):
        self.good(b"<html>Log in to the network first</html>")

    def empty(self, body):
        self.good(b"")

    def absent(self, body):
        self.send_error(404)

    def garbled(self, body):
        self.wfile.write(b"no HTTP at all\r\n\r\n")

    def silent(self, body):
        self.server.release.wait(10)

    def stalling(self, body):
        self.begin(len(body))
        self.wfile.write(body[:20])
        self.server.release.wait(10)

    def dripping(self, body):
        self.begin(len(body))
        for i in range(20):
            self.wfile.write(body[i : i + 1])
            if self.server.release.wait(0.05):
                break

    def oversized(self, body):
        self.begin(10**9)
        self.wfile.write(body)

    def oversized_unannounced(self, body):
        self.begin()
        for _ in range(100):
            self.wfile.write(bytes(10_000))

    def bomb(self, body):
        self.good(gzip.compress(bytes(1_000_000)))

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the handlers

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.release = PACKED, [], threading.Event()

    def url(self, manner):
        return f"http://127.0.0.1:{self.server_port}/{manner}/"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty places to look into; the mirrors and sums are those of the small set."""
    monkeypatch.setenv("RMTSPEC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_BESIDE", tmp_path / "beside")
    sums = tuple(hashlib.sha256(content).hexdigest() for content in CONTENT.values())
    monkeypatch.setattr(module, "SOURCES", {"mnist": module.Source((), sums)})
    return {
        "data": tmp_path / "data" / "mnist",
        "cache": tmp_path / "cache" / "rmtspec" / "datasets" / "mnist",
        "beside": tmp_path / "beside" / "mnist",
    }


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch from mirrors of these manners into tmp_path / "new"."""

    def call(*manners, **options):
        mirrors = [m if m.startswith("http") else server.url(m) for m in manners]
        options = {"timeout": 5, "patience": 10, "largest": 100_000} | options
        return module.fetch("mnist", tmp_path / "new", mirrors=mirrors, **options)

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Where it looks


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["data", "cache", "beside"])
def test_files_are_found_in_every_place(places, place, suffix):
    write_set(places[place], suffix)
    found = module.load()
    assert same(found)
    assert [a.dtype for a in found] == [np.uint8] * 4
    assert all(a.flags.writeable for a in found)  # torch.from_numpy warns of others
    assert module.locate() == places[place]


def test_places_are_searched_in_order(places, tmp_path):
    for folder in reversed([places["data"], places["cache"], places["beside"]]):
        write_set(folder)
        assert module.locate() == folder
    given = write_set(tmp_path / "given")
    assert module.locate(folder=str(given)) == given


def test_plain_and_packed_files_may_be_mixed_and_plain_ones_win(places):
    write_set(places["data"], ".gz")
    (places["data"] / LABELS).write_bytes(idx(np.arange(5, dtype=np.uint8)))
    assert module.load().train_labels.tolist() == [0, 1, 2, 3, 4]


def test_a_given_folder_is_the_only_place(places, tmp_path):
    write_set(places["beside"])
    given = write_set(tmp_path / "given")
    (given / TEST_LABELS).unlink()
    with pytest.raises(FileError, match=f"{given} \\(no {TEST_LABELS}\\)"):
        module.load(folder=given)


def test_without_variables_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RMTSPEC_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "rmtspec" / "datasets" / "mnist"
    assert module.locate(folder=write_set(expected)) == expected
    assert module.load() is not None


def test_missing_files_say_where_was_looked_and_what_to_do(places, tmp_path):
    write_set(places["beside"])
    (places["beside"] / LABELS).unlink()
    with pytest.raises(FileError) as caught:
        module.load()
    message = str(caught.value)
    for place in places.values():
        assert f"  {place}" in message
    assert f"{places['beside']} (no {LABELS})\n" in message
    assert f"{places['data']}\n" in message
    assert "Set RMTSPEC_DATA" in message
    assert "load('mnist', download=True)" in message
    assert "benchmarks/datasets.py mnist --download" in message
    assert not places["cache"].exists()


def test_unknown_name():
    with pytest.raises(InvalidValueError, match="`name` is 'cifar'; expected one of mnist"):
        module.load("cifar")


# What it refuses


def broken(file, content):
    return {**CONTENT, file: content}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"", "images: it ends after 0 bytes, within its header"),
        (LABELS, b"\0\0\x08\x01\0\0", "labels: it ends after 6 bytes, within its header"),
        (IMAGES, b"<html>" + bytes(99), "begins with bytes 3c 68, not 00 00"),
        (IMAGES, PACKED[f"{IMAGES}.gz"], "1f 8b, not 00 00. That is gzip: add .gz to its name"),
        (IMAGES, idx(SMALL.train_images, 0x0D), "type 0x0d; expected 0x08, unsigned bytes"),
        (IMAGES, idx(np.arange(99, dtype=np.uint8)), "1 dimensions; expected 3. Were two files"),
        (LABELS, CONTENT[IMAGES], "it has 3 dimensions; expected 1"),
        (IMAGES, idx(SMALL.train_images[:, 1:]), r"\(5, 27, 28\); expected \(n, 28, 28\)"),
        (IMAGES, idx(SMALL.train_images[:0]), r"\(0, 28, 28\); expected \(n, 28, 28\) with n of 1"),
        (LABELS, idx(SMALL.train_labels[:0]), r"\(0,\); expected \(n,\) with n of 1"),
        (IMAGES, CONTENT[IMAGES][:-1], r"3,919 bytes after its header; expected 3,920 for the sh"),
        (IMAGES, CONTENT[IMAGES] + b"x", r"3,921 bytes after its header; expected 3,920"),
        (IMAGES, b"\0\0\x08\x03\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c", "expected 3,367,254,359,280"),
        (LABELS, idx(SMALL.test_labels), f"5 images and {LABELS} 3 labels; expected as many"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path, file, content, message):
    write_set(tmp_path, content=broken(file, content))
    with pytest.raises(FileError, match=message) as caught:
        module.load(folder=tmp_path)
    assert str(tmp_path / IMAGES if "5 images" in message else tmp_path / file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no gzip", PACKED[f"{IMAGES}.gz"][:-9]])
def test_a_gz_that_is_none_or_cut_short(tmp_path, content):
    write_set(tmp_path, ".gz")
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"images-idx3-ubyte\.gz is no") as caught:
        module.load(folder=tmp_path)
    assert str(path) in str(caught.value)


# How it fetches


def test_download_fills_the_cache_and_the_next_call_needs_no_network(server, places, monkeypatch):
    source = module.SOURCES["mnist"]._replace(mirrors=(server.url("good"),))
    monkeypatch.setitem(module.SOURCES, "mnist", source)
    assert same(module.load(download=True))
    assert names(places["cache"]) == sorted(PACKED)
    assert server.asked == [f"good/{file}" for file in PACKED]
    assert same(module.load(download=True))
    assert same(module.load())
    assert len(server.asked) == 4


def test_download_asks_nobody_for_files_that_are_there(server, places, monkeypatch):
    write_set(places["data"])
    assert same(module.load(download=True))
    assert not places["cache"].exists()


def test_a_redirection_is_followed(fetch):
    assert same(module.load(folder=fetch("moved")))


REFUSED = {
    "truncated": r"stopped after [\d,]+ of [\d,]+ bytes",
    "truncated_unannounced": r"sent no complete \.gz",
    "wrong": "sent other content: SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}",
    "page": r"sent no complete \.gz",
    "empty": r"sent (no complete \.gz|other content)",
    "absent": "answered 404 Not Found",
    "garbled": "failed: BadStatusLine",
    "silent": "sent nothing for 0.4 s",
    "stalling": "sent nothing for 0.4 s",
    "dripping": r"sent \d+ bytes in 0\.4 s: too slow",
    "oversized": "announced 1,000,000,000 bytes; at most 100,000 expected",
    "oversized_unannounced": "sent more than 100,000 bytes",
    "bomb": "unpacks to more than 100,000 bytes",
}
LIMITS = {"silent": {"timeout": 0.4}, "stalling": {"timeout": 0.4}, "dripping": {"patience": 0.4}}


@pytest.mark.parametrize("manner", REFUSED)
def test_a_bad_mirror_leaves_nothing_and_the_next_one_is_asked(fetch, server, tmp_path, manner):
    options = LIMITS.get(manner, {})
    with pytest.raises(FileError, match=REFUSED[manner]) as caught:
        fetch(manner, **options)
    assert server.url(manner) + f"{IMAGES}.gz: " in str(caught.value)
    assert names(tmp_path / "new") == []
    assert same(module.load(folder=fetch(manner, "good", **options)))
    assert names(tmp_path / "new") == sorted(PACKED)
    # the one that works is asked first from then on
    assert server.asked[1:] == [f"{manner}/{IMAGES}.gz", *(f"good/{file}" for file in PACKED)]


def test_a_refused_connection_moves_on(fetch, server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/"  # bound, but nobody listens
        assert same(module.load(folder=fetch(closed, "good")))
    assert len(server.asked) == 4


def test_when_all_fail_each_is_listed_with_its_reason(fetch, tmp_path):
    with pytest.raises(FileError) as caught:
        fetch("absent", "stalling", "wrong", "truncated", timeout=0.4)
    first, *lines, last = str(caught.value).splitlines()
    assert first == f"{IMAGES}.gz of mnist could not be fetched:"
    assert ["404" in lines[0], "nothing for" in lines[1], "SHA-256" in lines[2]] == [True] * 3
    assert [line.split("/")[3] for line in lines] == ["absent", "stalling", "wrong", "truncated"]
    assert f"put the file into {tmp_path / 'new'} yourself" in last


def test_what_was_fetched_before_a_failure_stays(fetch, server, tmp_path):
    server.files = {**PACKED, f"{TEST_IMAGES}.gz": b"broken"}
    with pytest.raises(FileError, match=f"{TEST_IMAGES}.gz of mnist could not be fetched"):
        fetch("good")
    assert names(tmp_path / "new") == sorted(f"{file}.gz" for file in (IMAGES, LABELS))
    server.files, server.asked = PACKED, []
    assert same(module.load(folder=fetch("good")))
    assert server.asked == [f"good/{file}.gz" for file in (TEST_IMAGES, TEST_LABELS)]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(http.client.HTTPResponse, "read1"), (module, "_check_sum"), (Path, "replace")],
)
def test_an_interrupt_leaves_nothing(fetch, server, tmp_path, monkeypatch, owner, name):
    def interrupt(*args):
        folder = tmp_path / "new"
        assert [path.suffix for path in folder.iterdir()] == [".tmp"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch("good", "good")
    assert server.asked == [f"good/{IMAGES}.gz"]
    assert names(tmp_path / "new") == []
    assert same(module.load(folder=fetch("good")))


def test_a_full_disk_is_no_fault_of_the_mirror(fetch, server, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cannot be written: no space left on device\. Free space"):
        fetch("good", "good")
    assert len(server.asked) == 1
    assert names(tmp_path / "new") == []


def test_a_cache_that_cannot_be_made(fetch, tmp_path):
    (tmp_path / "new").write_text("a file")
    with pytest.raises(FileError, match=r"cannot be made: file exists\. Set XDG_CACHE_HOME"):
        fetch("good")


def test_two_calls_at_once_both_succeed(fetch, server, tmp_path, monkeypatch):
    both, check = threading.Barrier(2, timeout=5), module._check_sum

    def together(*args):
        both.wait()  # both have a temporary file now
        check(*args)

    monkeypatch.setattr(module, "_check_sum", together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch("good"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "new"] * 2
    assert names(tmp_path / "new") == sorted(PACKED)
    assert same(module.load(folder=tmp_path / "new"))


# The command


def test_command_prints_the_place_and_the_shapes(places, capsys):
    write_set(places["data"])
    module.main(["mnist"])
    assert capsys.readouterr().out.splitlines() == [
        f"mnist in {places['data']}",
        "  train_images  uint8 (5, 28, 28)",
        "  train_labels  uint8 (5,)",
        "  test_images   uint8 (3, 28, 28)",
        "  test_labels   uint8 (3,)",
    ]


def test_command_downloads_when_asked_to(server, places, tmp_path, monkeypatch, capsys):
    source = module.SOURCES["mnist"]._replace(mirrors=(server.url("good"),))
    monkeypatch.setitem(module.SOURCES, "mnist", source)
    with pytest.raises(SystemExit, match="error: The files of mnist were not found"):
        module.main(["--folder", str(tmp_path / "given")])
    module.main(["mnist", "--download"])
    assert f"mnist in {places['cache']}" in capsys.readouterr().out


# The real ones


def test_real_mnist_passes_its_sums(data_folder, server, places, monkeypatch):
    files = {f"{file}.gz": (data_folder / "mnist" / f"{file}.gz") for file in module.FILES}
    server.files = {file: path.read_bytes() for file, path in files.items()}
    source = GOOD_SUMS["mnist"]._replace(mirrors=(server.url("good"),))
    monkeypatch.setitem(module.SOURCES, "mnist", source)
    found = module.load(download=True)
    assert [a.shape for a in found] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    assert found.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert found.train_images.mean() == pytest.approx(33.318, abs=0.001)


def test_every_source_has_mirrors_and_its_own_sums():
    sums = [value for source in GOOD_SUMS.values() for value in source.sums]
    assert list(GOOD_SUMS) == ["mnist", "fashion-mnist"]
    assert len(set(sums)) == len(sums) == 8
    assert all(len(value) == 64 and int(value, 16) for value in sums)
    for source in GOOD_SUMS.values():
        assert len(source.mirrors) >= 2
        assert all(m.startswith("http") and m.endswith("/") for m in source.mirrors)
