"""How large a file and a function may get; what is larger, and why, is named here."""

import ast
from pathlib import Path

import edlm_jax

PACKAGE = Path(edlm_jax.__file__).parent
LINES, PARAMETERS = 300, 10
LONGER = {"parallel/cpu/attention.cc"}  # kernels of one kind, for each set of instructions
MORE_PARAMETERS = {"decoding/generate.py: generate"}  # the thin front of all modes: each option is one of theirs


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Those that a caller may give: without self and cls."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if one]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_stay_short():
    files = [file for suffix in ("py", "cc", "h") for file in PACKAGE.rglob(f"*.{suffix}")]
    lines = {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8").count("\n") for file in files}
    assert {name for name, count in lines.items() if count > LINES} == LONGER


def test_functions_take_few_parameters():
    many = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters_of(node) > PARAMETERS:
                many.add(f"{file.relative_to(PACKAGE).as_posix()}: {node.name}")
    assert many == MORE_PARAMETERS
