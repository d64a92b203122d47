"""The notebook in docs: runs on any checkpoint, and is kept with the outputs of a whole run."""

import base64

import pytest
import tiny
from PIL import Image
from processes import REPO

from models.weights.model import model_state
from util.jittor_file import write_jittor_file

PATH = REPO / "docs" / "predict_and_attention.ipynb"


def read():
    return pytest.importorskip("nbformat").read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    """The JPEGs of a cell's outputs."""
    found = [output.get("data", {}).get("image/jpeg") for output in cell.outputs]
    return [base64.b64decode(each) for each in found if each]


def test_it_runs_on_any_checkpoint(tmp_path):
    """With random weights, and one photo in place of the demo's pictures."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    args = tiny.arguments("--masks --hidden_dim 128 --nheads 8 --num_classes 4")
    names = {number: f"class {number}" for number in range(4)}
    model = model_state(tiny.build(args)[0])
    checkpoint = {"model": model, "args": vars(args), "classes": names}
    write_jittor_file(checkpoint, tmp_path / "mine.pkl")
    Image.effect_noise((120, 80), 50).convert("RGB").save(tmp_path / "photo.png")
    notebook = read()
    cells = code_cells(notebook)
    cells[0].source += (
        f"\nCHECKPOINT, PICTURES = {str(tmp_path / 'mine.pkl')!r}, [SHAPES / 'photo.png'] * 2"
    ).replace("SHAPES", f"Path({str(tmp_path)!r})")
    for cell in cells:
        cell.source = cell.source.replace("threshold=0.7", "threshold=0")
        cell.outputs = []
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": PATH.parent}}
    ).execute()
    assert len(pictures(cells[-2])) == 2 and len(pictures(cells[-1])) == 1
    assert "class " in cells[2].outputs[0].text


def test_it_is_kept_with_its_outputs():
    cells = code_cells(read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "triangle" in str(cells[1].outputs) and "circle" in cells[2].outputs[0].text
    assert all(pictures(cell) for cell in cells[-2:])
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert PATH.stat().st_size < 500_000
