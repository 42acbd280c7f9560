"""README and docs: every Python block runs, every link inside the repository leads somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

import vitx

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.slow
def test_readme_explains_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block that starts with a trained model, given one with random weights in its place."""
    (block,) = [text for text in _blocks() if "vitx.explain" in text]
    model = vitx.create("vit_mini_conv_s4_48", num_classes=5)
    vitx.save(model, tmp_path / "runs" / "shapes" / "classifier" / "model.safetensors")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    found: dict[str, np.ndarray] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["logits"].shape == (1, 5)
    assert found["maps"].shape == (1, 2, 12, 12)


@pytest.mark.slow
def test_readme_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [text for text in _blocks() if "vitx.save" in text]
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["model"].num_classes == 20


def _blocks() -> list[str]:
    return BLOCK.findall((ROOT / "README.md").read_text())
