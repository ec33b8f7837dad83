"""Conventions of the code that no linter checks, read off the syntax of the product code."""

import ast
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import rmtspec

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Kernels take what numba can take: many arrays and numbers, in order.
KERNELS = ("rmtspec/_kernels/",)


@cache
def product() -> dict[str, ast.Module]:
    files = itertools.chain.from_iterable(
        sorted((ROOT / folder).rglob("*.py")) for folder in ("rmtspec", "adapters")
    )
    names = [file.relative_to(ROOT).as_posix() for file in files]
    names = [name for name in names if not name.startswith("rmtspec/adapters/")]  # the link
    return {name: ast.parse((ROOT / name).read_text("utf-8")) for name in names}


def nodes(kinds, leave_out: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in product().items():
        if not name.startswith(leave_out):
            for node in ast.walk(tree):
                if isinstance(node, kinds):
                    yield f"{name}:{getattr(node, 'lineno', 1)}", node


def called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "id", "") or getattr(function, "attr", "")


def parameters(node: ast.FunctionDef) -> list[str]:
    given = node.args
    several = [given.vararg, given.kwarg]
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, several)]
    return [each.arg for each in found if each.arg not in ("self", "cls")]


def public_functions() -> set[str]:
    """Return what users call: public functions, and the classes whose constructors they call."""
    names = set(rmtspec.__all__)
    init = product()["adapters/torch/__init__.py"]
    for node in ast.walk(init):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


def test_the_code_is_found():
    assert len(product()) > 100
    assert "adapters/torch/_layers/split_layer.py" in product()


def test_calls_of_our_own_name_all_but_four_arguments():
    ours = {node.name for _, node in nodes((*FUNCTIONS, ast.ClassDef))} | {"cls"}
    found = [
        f"{place}: {called(node)} with {len(node.args)} positional arguments"
        for place, node in nodes(ast.Call, KERNELS)
        if called(node) in ours and len(node.args) > 4
    ]
    assert not found, found


def test_private_functions_have_at_most_eight_parameters():
    public = public_functions()
    constructors = {
        id(inner)
        for _, node in nodes(ast.ClassDef)
        if node.name in public
        for inner in node.body
        if getattr(inner, "name", "") == "__init__"
    }
    found = [
        f"{place}: {node.name} has {len(parameters(node))}"
        for place, node in nodes(FUNCTIONS)
        if len(parameters(node)) > 8 and node.name not in public and id(node) not in constructors
    ]
    assert not found, found


def test_no_assert_in_the_product():
    found = [place for place, _ in nodes(ast.Assert)]
    assert not found, found


def test_nothing_is_left_to_do():
    words = ("TODO", "FIXME", "NotImplementedError")
    found = [
        f"{name}: {word}"
        for name in product()
        for word in words
        if word in (ROOT / name).read_text("utf-8")
    ]
    assert not found, found
