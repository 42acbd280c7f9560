"""docs/photograph.ipynb runs as written, with a small model, and shows what vitx computes."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitx
from tests.small_models import filled

NOTEBOOK = Path(__file__).parent.parent / "docs/photograph.ipynb"


def run_cells(notebook: dict[str, Any], names: dict[str, Any]) -> list[Any]:
    """The value of the last expression of each cell of code, as a notebook shows it."""
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop()
            assert isinstance(last, ast.Expr), "a cell that shows nothing"
            exec(compile(tree, NOTEBOOK.name, "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names))
    return shown


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    model = filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=5))
    vitx.save(model, tmp_path / "model.safetensors")
    monkeypatch.setenv("VITX_MODEL", str(tmp_path / "model.safetensors"))
    notebook = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, Any] = {}
    _, top, result, difference, pictures, areas, found, alike = run_cells(notebook, names)

    pixels, cat = names["pixels"], names["cat"]
    logits, maps = vitx.explain(model, pixels)
    assert top[0] == (
        result.class_names[int(logits.argmax())],
        pytest.approx(max(result.probabilities)),
    )
    np.testing.assert_allclose(result.map, maps[0], rtol=1e-4, atol=1e-7)
    first, second = np.argsort(-np.asarray(logits[0]))[:2].tolist()
    _, maps = vitx.explain(model, pixels, target=("difference", first, second))
    np.testing.assert_allclose(difference.map, maps[0], rtol=1e-4, atol=1e-7)
    assert pictures.size == (5 * cat.shape[1], cat.shape[0])
    assert len({found.map.tobytes() for found in names["results"]}) == len(areas) == 5
    assert all(0 < area < 1 for area in areas.values())

    vectors = np.asarray(names["embeddings"], np.float64)
    query = np.asarray(names["query"], np.float64)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    shown = dict(found)
    for name, cosine in zip(names["photographs"], cosines, strict=True):
        assert shown[name] == pytest.approx(cosine, abs=1e-3)
    assert [value for _, value in found] == sorted(shown.values(), reverse=True)
    assert np.ptp(alike.map) > 0
