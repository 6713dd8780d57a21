"""Every notebook runs from top to bottom with few steps, and is stored without outputs."""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
PRINTED = {
    "quickstart": ("density 0.312", "tokens per forward", "model.safetensors"),  # 1/4 + 4/64
    "noise": ("density 0.3125; the formula says 0.3125", "half-life 0.1:"),
    "modes": ("'prompt_lookup': True", "quadratic_speculation:", "diffusion:rule=fixed:2:"),
    "convert": ("cpu", "tokens, "),
    "actions": ("'prompt': 'reach ", "of 16 targets reached"),
    "states": ("'residual': (", "explained variance", "of these masks"),
}


def test_no_notebook_is_left_out():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_notebooks_are_stored_without_outputs(name):
    cells = [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("name", PRINTED)
def test_notebooks_run(name, monkeypatch):
    monkeypatch.setenv("EDLM_NOTEBOOK_STEPS", "4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()  # raises on the first failing cell
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    for text in PRINTED[name]:
        assert text in printed
