"""The package as it is installed and imported."""

import ast
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rmtspec

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_package_list_names_every_folder():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "rmtspec").rglob("__init__.py")
        if "adapters" not in path.parts
    }
    found |= {
        ".".join(("rmtspec", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "adapters").rglob("__init__.py")
    }
    assert found == set(settings["packages"])
    assert settings["package-dir"] == {"rmtspec.adapters": "adapters"}


def test_the_version_stands_in_one_place():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rmtspec.__version__"}
    # What is cited and what changed are written by hand when a release is made.
    assert f"version: {rmtspec.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_data_files_are_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert shipped == {
        "rmtspec/py.typed",
        "rmtspec/checkpoint/fused.toml",
        "rmtspec/comparison/comparison_template.html",
        "rmtspec/report/trade_off_template.html",
        "rmtspec/report/page/LICENSES.txt",
        "rmtspec/report/page/d3.min.js",
        "rmtspec/report/page/plot.umd.min.js",
        "rmtspec/report/page/report.css",
        "rmtspec/report/page/report.html",
        "rmtspec/report/page/report.js",
        "rmtspec/laws/_fit_statistic_table.npz",
        "rmtspec/laws/_tracy_widom_table.npz",
    }


def test_lazy_names_are_the_public_names():
    assert sorted([*rmtspec._HOME, *rmtspec._MODULES]) == rmtspec.__all__
    for name in rmtspec.__all__:
        assert getattr(rmtspec, name) is not None
        assert name in dir(rmtspec)
    tree = ast.parse((ROOT / "rmtspec" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname for line in guarded.body for alias in line.names}
    assert typed == set(rmtspec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rmtspec.nothing


def test_import_loads_nothing_heavy_and_prints_nothing():
    heavy = ["numpy", "numba", "scipy", "matplotlib", "pandas", "torch", "joblib", "click"]
    code = f"import sys, rmtspec; print([m for m in {heavy!r} if m in sys.modules])"
    assert run(code) == "[]\n"


def test_analysis_loads_neither_torch_nor_matplotlib_nor_pandas():
    code = (
        "import sys, rmtspec; rmtspec.analyze(rmtspec.ensembles.wishart(40, 30, rng=0));"
        "print([m for m in ('matplotlib', 'pandas', 'torch', 'rich') if m in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_import_costs_at_most_twice_numpy():
    def median_seconds(module: str) -> float:
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        return statistics.median(float(run(code)) for _ in range(5))

    assert median_seconds("rmtspec") <= 2 * median_seconds("numpy")


def test_nothing_opens_a_connection(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
        "import numpy as np, rmtspec\n"
        f"np.save({str(tmp_path / 'w.npy')!r}, rmtspec.ensembles.wishart(40, 30, rng=0))\n"
        f"report = rmtspec.analyze_checkpoint({str(tmp_path)!r})\n"
        f"report.save({str(tmp_path / 'r.html')!r})\n"
        "report.matrices['w'].plot()\n"
        "print(len(report.rows))"
    )
    assert run(code) == "1\n"


def test_torch_adapter_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import rmtspec.adapters.torch\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    shown = run(code)
    assert shown.startswith("MissingDependencyError")
    assert 'pip install "rmtspec[torch]"' in shown


def test_torch_adapter_imports_with_torch():
    pytest.importorskip("torch")
    code = (
        "import sys, rmtspec.adapters.torch as rt; print(len(set(rt.__all__)) == len(rt.__all__));"
        "print(all(hasattr(rt, name) for name in rt.__all__));"
        "print([m for m in ('matplotlib', 'pandas', 'sklearn') if m in sys.modules])"
    )
    assert run(code) == "True\nTrue\n[]\n"


def test_every_kernel_uses_the_one_decorator():
    for path in (ROOT / "rmtspec").rglob("*.py"):
        text = path.read_text()
        if path.name != "_decorator.py":
            assert "njit" not in text, path
            assert "import numba" not in text or path.name == "report.py", path
