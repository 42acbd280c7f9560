"""Command `segment`: masks and overlays of a user's own pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vitx
from tests.small_models import small_hybrid
from vitx.commands import main
from vitx.data.palette import decode_mask, voc_palette
from vitx.data.transforms import resize_maps
from vitx.models.segmenter import Segmenter, segment
from vitx.pipeline.segment_images import mask_of, painted


@pytest.fixture
def net(tmp_path: Path) -> Segmenter:
    made = Segmenter(small_hybrid(), ("stem.1", "block.2"), 3, hidden=32, rngs=nnx.Rngs(0))
    vitx.save(made, tmp_path / "net.safetensors")
    return made


def _picture(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_masks_have_the_pictures_own_sizes(net, tmp_path, capsys) -> None:
    """And are the most probable classes; results are no pictures to segment again."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures = [_picture(folder / f"{n}.png", (20 + n, 30), n) for n in range(2)]
    arguments = ["segment", str(folder), "--model", str(tmp_path / "net.safetensors")]
    for _ in range(2):
        main([*arguments, "--out", str(folder), "--scales", "1", "2", "--flip"])
    assert len([*folder.iterdir()]) == 2 + 4
    assert capsys.readouterr().out.count("class ") >= 2
    for number, pixels in enumerate(pictures):
        (drawn,) = (path for path in folder.glob(f"{number}-*") if "overlay" in path.name)
        (file,) = (path for path in folder.glob(f"{number}-*") if "-mask" in path.name)
        mask = decode_mask(file.read_bytes())
        assert mask.shape == pixels.shape[:2]
        found = segment(net, net.preprocess(pixels), (1.0, 2.0), True)[0]
        maps = resize_maps(np.exp(np.asarray(found)).transpose(2, 0, 1), pixels.shape[:2])
        assert (mask == maps.argmax(0)).mean() > 0.99
        np.testing.assert_array_equal(np.asarray(Image.open(drawn)), painted(pixels, mask))


def test_background_keeps_its_pixels(net) -> None:
    pixels = np.full((4, 6, 3), 100, np.uint8)
    mask = np.zeros((4, 6), np.uint8)
    mask[:2] = 2
    found = painted(pixels, mask)
    np.testing.assert_array_equal(found[2:], pixels[2:])
    expected = np.broadcast_to(0.45 * 100 + 0.55 * voc_palette()[2], (2, 6, 3))
    np.testing.assert_allclose(found[:2], expected, atol=0.5)
    assert mask_of(net, pixels).shape == (4, 6)


def test_what_cannot_be_segmented_is_named(net, tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_text("no picture")
    _picture(tmp_path / "b.png", (9, 9))
    model = str(tmp_path / "net.safetensors")
    main(
        [
            "segment",
            str(tmp_path / "a.png"),
            str(tmp_path / "b.png"),
            "--model",
            model,
            "--out",
            str(tmp_path / "o"),
        ]
    )
    assert "left out: cannot read" in capsys.readouterr().err
    assert len([*(tmp_path / "o").iterdir()]) == 2
    vitx.save(small_hybrid(), tmp_path / "classifier.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "segment",
                str(tmp_path / "b.png"),
                "--model",
                str(tmp_path / "classifier.safetensors"),
            ]
        )
    assert ended.value.code == 2 and "does not segment" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["segment", str(tmp_path / "a.png"), "--model", model, "--out", str(tmp_path / "o")])
    assert "none of 1 files is an image" in capsys.readouterr().err


def test_help_tells_of_it() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "vitx", "segment", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--scales" in shown.stdout
