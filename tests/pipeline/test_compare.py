"""The comparison with PyTorch: its arithmetic, verdict and refusals, and PyTorch itself where it is installed."""

import importlib.util
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import filled, small_hybrid, small_vit
from small_models import images_for as normal_images

import vitx
from configs import compare as compare_config
from tests.runs import KNOWN, begun
from tests.weights.test_family_files import written
from tests.weights.test_weights import (
    google,
    hugging_face,
    reproduction,
    resnet_hybrid,
    small_affinity_net,
    square_vit,
    tensors_of,
)
from vitx.evaluation.differences import Difference, Parity, compare, difference
from vitx.pipeline.compare import (
    TOLERANCES,
    activations,
    images_for,
    print_parity,
    verdict,
)
from vitx.runtime.experiment import check_options, run_stages
from vitx.weights import names, pytorch_reference, schemes
from vitx.weights.pytorch_reference import build_reference, choose_library

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "example.png"


def installed(*names: str) -> Any:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


TIMM = pytest.param("timm", marks=installed("torch", "timm"))
TRANSFORMERS = pytest.param("transformers", marks=installed("torch", "transformers"))


def report(folder: Path, file: Path | str, **options: Any) -> dict[str, Any]:
    """The parity.json that the command writes."""
    config = compare_config.get_config()
    config.update({"checkpoint": str(file), "count": 3, "batch_size": 2} | options)
    run = begun(config, folder / "run")
    try:
        run_stages(run, [KNOWN["parity"]])
    except SystemExit as ended:
        assert ended.code == 1
        code = 1
    else:
        code = 0
    result = json.loads((folder / "run" / "parity.json").read_text())
    assert code == (result["verdict"] == "off")
    return result


def first_off(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> str | None:
    return Parity(compare(ours, theirs), TOLERANCES["float32"], (), {}).as_json()["first_off"]


def saved(model: Any, folder: Path, name: str = "model") -> Path:
    path = folder / f"{name}.safetensors"
    vitx.save(model, path)
    return path


# The comparison.


def test_difference_by_hand() -> None:
    found = difference("x", np.array([[1.0, 2.0], [3.0, 4.5]]), np.array([[1.0, 2.5], [3.0, 5.0]]))
    assert (found.absolute, found.relative) == (0.5, 0.1)
    expected = np.corrcoef([1, 2, 3, 4.5], [1, 2.5, 3, 5])[0, 1]
    assert found.correlation == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "absolute", "relative"),
    [
        (np.float32([1, 1 + 2**-23]), np.float64([1, 1 + 2**-23]), 0, 0),  # of any types
        (np.float32([1, 1 + 2**-23]), np.ones(2, np.float32), 2**-23, 2**-23),
        (np.zeros(3), np.zeros(3), 0, 0),
        (np.full(3, 1e-30), np.zeros(3), 1e-30, math.inf),
    ],
)
def test_difference(ours: np.ndarray, theirs: np.ndarray, absolute: float, relative: float) -> None:
    found = difference("x", ours, theirs)
    assert (found.absolute, found.relative) == (absolute, relative)
    assert math.isnan(found.correlation) == (len(set(theirs)) == 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_off(value: float) -> None:
    for arrays in ([value, 1.0], [1.0, 1.0]), ([1.0, 1.0], [value, 1.0]):
        found = difference("blocks.0", *map(np.array, arrays))
        parity = Parity((found,), 1.0, (), {})
        result = parity.as_json()
        assert result["first_off"] == "blocks.0" and result["verdict"] == "off"
        assert result["stages"][0]["relative"] is None
        json.dumps(result, allow_nan=False)
        print_parity(parity, ABOUT | {"assumed": ()})


def test_stages_and_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"parts \['a', 'b'\], vitx's \['a'\]"):
        compare({"a": np.ones(1)}, {"a": np.ones(1), "b": np.ones(1)})
    with pytest.raises(ValueError, match=r"a is \(2,\) in PyTorch and \(1,\) in vitx"):
        compare({"a": np.ones(1)}, {"a": np.ones(2)})


ABOUT = {
    "checkpoint": "folder/a [b].safetensors",
    "library": "timm",
    "versions": {"torch": "2", "timm": "1"},
    "device": "cpu",
    "precision": "float32",
    "images": 2,
    "image_size": (8, 12),
    "assumed": ("num_heads",),
}
SAME = (
    Difference("embedding", 1e-6, 1e-7, 1.0),
    Difference("blocks.0", 0.5, 1e-4, 1.0),
    Difference("logits", 0.0, 0.0, math.nan),
)


def test_equal_up_to_the_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    parity = Parity(SAME, 1e-4, ((3, 3), (1, 1)), {"num_heads": (2, 2)})
    assert parity.as_json()["first_off"] is None and parity.reasons == []
    print_parity(parity, ABOUT)
    printed = capsys.readouterr().out
    assert "a [b].safetensors: timm and vitx, float32" in printed
    assert "does not specify num_heads: PyTorch's model has the usual 2" in printed
    assert "verdict: equal, but heads were guessed, largest relative difference 1.0e-04" in printed
    assert "the same class predicted on all 2 images" in printed
    assert "logits not compared" in verdict(Parity(SAME[:2], 1e-4, (), {}))


def test_verdict_names_the_first_stage_that_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    worse = Difference("blocks.1", 9.0, 0.5, 0.2)
    parity = Parity((*SAME[:2], worse, SAME[2]), 9e-5, ((3, 3),), {})
    assert parity.as_json()["first_off"] == "blocks.0"
    assert verdict(parity).startswith("verdict: off, from blocks.0 on: relative difference 1.0e-04")
    print_parity(parity, ABOUT | {"assumed": ()})
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [line.endswith("off │") for line in rows] == [False, True, True, False]


def test_another_class_or_setting_is_off_though_the_numbers_agree() -> None:
    parity = Parity(SAME, 1e-4, ((3, 3), (1, 2)), {"norm_eps": (1e-12, 1e-6)})
    assert parity.as_json()["first_off"] is None and parity.as_json()["verdict"] == "off"
    assert parity.reasons == [
        "the predicted class differs on 1 of 2 images",
        "norm_eps is 1e-12 in PyTorch and 1e-06 in vitx",
    ]


# What vitx's side gives.


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_vit, small_hybrid])
def test_activations_are_those_of_the_whole_model(make: Any) -> None:
    model = make()
    images = normal_images(model, 2)
    found = activations(model, images)
    tokens = 1 + model.grid[0] * model.grid[1]
    names = ["embedding", "blocks.0", "blocks.1", "norm", "logits"]
    assert list(found) == ["stem"] * (model.stem is not None) + names
    shapes = {found[name].shape for name in ("embedding", "blocks.1", "norm")}
    assert shapes == {(2, tokens, model.width)}

    first = np.asarray(model.cls_token[...] + model.pos_embed[:, :1])[0, 0]
    np.testing.assert_allclose(found["embedding"][:, 0], [first, first], rtol=1e-6)
    last = found["blocks.1"]
    normal = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    normal = normal * np.asarray(model.norm.scale[...]) + np.asarray(model.norm.bias[...])
    np.testing.assert_allclose(found["norm"], normal, rtol=1e-4, atol=1e-5)
    logits = normal[:, 0] @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)


def test_drawn_images_are_the_same_every_time() -> None:
    model = small_vit()
    images = images_for(model, "", 3)
    assert images.shape == (3, 8, 12, 3) and images.dtype == np.float32
    np.testing.assert_array_equal(images, images_for(model, "", 3))
    assert np.abs(images[0] - images[1]).max() > 0.1
    assert images_for(model, str(IMAGE), 3).shape == (1, 8, 12, 3)


# What is refused, without PyTorch.


def with_libraries(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(pytorch_reference, "_installed", lambda name: name in names)


BOTH = ("torch", "timm", "transformers")
ONLY = BOTH[::2]
HERE = "not installed here"


@pytest.mark.parametrize(
    ("project", "there", "wanted", "expected"),
    [
        (
            "timm",
            (),
            "auto",
            rf"torch and timm or transformers; {HERE}: torch, .* install torch timm",
        ),
        ("timm", ("torch",), "auto", f"{HERE}: timm, transformers: "),
        ("timm", BOTH[:2], "transformers", f"{HERE}: transformers: .* torch transformers"),
        ("timm", ("timm",), "timm", f"{HERE}: torch: pip install torch timm"),
        ("Google", ONLY, "auto", r"and timm \(only timm has .* pip install torch timm"),
        ("hybrid", ONLY, "auto", r"and timm \(only timm has .* pip install torch timm"),
        ("named", ONLY, "auto", r"and timm \(only timm has .* pip install torch timm"),
        ("Google", BOTH, "transformers", "transformers does not have Google's"),
        ("hybrid", BOTH, "transformers", "transformers does not have hybrids"),
        ("named", BOTH, "transformers", "transformers does not have models by"),
        # "auto" takes the library whose names the file has.
        ("timm", BOTH, "auto", "timm"),
        ("Hugging Face", BOTH, "auto", "transformers"),
        ("timm", ONLY, "auto", "transformers"),
        ("Hugging Face", BOTH[:2], "auto", "timm"),
        ("Google", BOTH, "auto", "timm"),
    ],
)
def test_library(
    monkeypatch: pytest.MonkeyPatch,
    project: str,
    there: tuple[str, ...],
    wanted: str,
    expected: str,
) -> None:
    with_libraries(monkeypatch, *there)
    model = resnet_hybrid() if project == "hybrid" else small_vit()
    name = "vit_base_patch16_224" if project == "named" else ""
    project = project if project in ("Google", "Hugging Face") else "timm"
    if expected in BOTH:
        assert choose_library(wanted, project, model, name) == expected
    else:
        error = ValueError if "does not have" in expected else ImportError
        with pytest.raises(error, match=expected):
            choose_library(wanted, project, model, name)


def test_library_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    (tmp_path / "broken_library.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    message = (
        r"broken_library is installed but does not import: operator torchvision::nms .* exist$"
    )
    with pytest.raises(ImportError, match=message):
        pytorch_reference._imported("broken_library")


def test_models_that_pytorch_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, "torch", "timm")
    with pytest.raises(ValueError, match="vitx's own ConvStem, which neither timm nor"):
        report(tmp_path, saved(small_hybrid(), tmp_path))
    with pytest.raises(ValueError, match="holds an AffinityNet"):
        report(tmp_path, saved(small_affinity_net(), tmp_path, "affinity"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        report(tmp_path, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"give --config\.checkpoint=FILE"):
        report(tmp_path, "")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("reference", "keras"),
        ("precision", "bfloat16"),
        ("count", 0),
        ("batch_size", -1),
        ("tolerance", -1.0),
    ],
)
def test_options_are_checked(option: str, value: Any) -> None:
    config = compare_config.get_config()
    config[option] = value
    with pytest.raises(ValueError, match=rf"config\.{option} must be"):
        check_options(config, KNOWN)


# PyTorch itself.


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_saved_model_is_equal_in_both(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], library: str, precision: str
) -> None:
    model = small_vit(norm_eps=1e-5, final_norm_eps=1e-3, heads=3)  # 8 x 12 pixels
    result = report(tmp_path, saved(model, tmp_path), reference=library, precision=precision)
    assert result["verdict"] == "equal" and result["library"] == library
    assert [s["stage"] for s in result["stages"]][1:3] == ["blocks.0", "blocks.1"]
    reached = max(stage["relative"] for stage in result["stages"])
    assert 0 < reached < {"float32": 1e-5, "float64": 1e-13}[precision]
    assert len(result["predicted"]["vitx"]) == result["images"] == 3
    expected = {"num_heads": 3, "norm_eps": 1e-5, "final_norm_eps": 1e-3}
    assert result["settings"] == {n: {"pytorch": v, "vitx": v} for n, v in expected.items()}
    assert result["assumed"] == []
    captured = capfd.readouterr()
    assert "verdict: equal" in captured.out
    assert all(line.startswith("parity: ") for line in captured.err.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_one_changed_weight_shows_at_its_block(tmp_path: Path, library: str) -> None:
    model = vitx.load(saved(square_vit(), tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["blocks.1.mlp.fc1.weight"][2, 5] += 0.05
    save_file(tensors, tmp_path / "changed.safetensors", {"num_heads": "2", "norm_eps": "1e-6"})
    images = images_for(model, "", 2)
    ours = activations(model, jnp.asarray(images))
    for name, first in (("model", None), ("changed", "blocks.1")):
        reference = build_reference(tmp_path / f"{name}.safetensors", model, library)
        assert first_off(ours, reference(images)) == first


@pytest.mark.slow
@installed("torch", "transformers")
def test_a_wrong_table_of_names_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers maps a file's names by itself, not by the table that vitx reads it with."""
    save_file(hugging_face(tensors_of(square_vit(), tmp_path)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    swapped = {r"blocks.\1.norm1": r"blocks.\1.norm2", r"blocks.\1.norm2": r"blocks.\1.norm1"}
    table = tuple((old, swapped.get(new, new)) for old, new in schemes.HUGGING_FACE.table)
    wrong = replace(schemes.HUGGING_FACE, table=table)
    for scheme, first in ((schemes.HUGGING_FACE, None), (wrong, "blocks.0")):
        monkeypatch.setattr(names, "SCHEMES", (scheme,))
        model = vitx.load(tmp_path)
        images = images_for(model, "", 1)
        ours = activations(model, jnp.asarray(images))
        reference = build_reference(tmp_path, model, "transformers")
        assert first_off(ours, reference(images)) == first


@pytest.mark.slow
@installed("torch", "transformers")
def test_tensors_that_transformers_does_not_take(tmp_path: Path) -> None:
    tensors = tensors_of(square_vit(), tmp_path)
    model = vitx.load(tmp_path / "tensors_of.safetensors")
    for named, extra in (
        (tensors, "blocks.0.extra.weight"),
        (hugging_face(tensors), "vit.extra.weight"),
    ):
        for changed in (
            {**named, extra: np.ones(1)},
            {n: a for n, a in named.items() if not n.endswith(("norm1.bias", "before.bias"))},
        ):
            save_file(changed, tmp_path / "m.safetensors")
            with pytest.raises(ValueError, match=r"does not take it: .*(extra|before\.bias)"):
                build_reference(tmp_path / "m.safetensors", model, "transformers")


@pytest.mark.slow
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_wrong_heads_and_epsilons_are_off(tmp_path: Path, library: str) -> None:
    path = saved(square_vit(depth=1), tmp_path)
    for override, theirs, first in (
        ({"num_heads": 4}, 2, "blocks.0"),
        ({"norm_eps": 1e-12}, 1e-6, "blocks.0"),
        ({"final_norm_eps": 1e-12}, 1e-6, "norm"),
    ):
        result = report(tmp_path, path, reference=library, **override)
        assert (result["verdict"], result["first_off"]) == ("off", first)
        ((name, ours),) = override.items()
        assert f"{name} is {theirs:g} in PyTorch and {ours:g} in vitx" in result["reasons"]


@pytest.mark.slow
@installed("torch", "transformers")
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_what_transformers_saves(tmp_path: Path, library: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
        config = ViTConfig(**sizes, intermediate_size=20, image_size=16, patch_size=4, num_labels=5)
        model = ViTForImageClassification(config)
        model.save_pretrained(tmp_path / "model")
        torch.save(model.state_dict(), tmp_path / "state.pth")
    result = report(tmp_path, tmp_path / "model", reference=library, images=str(IMAGE))
    assert result["verdict"] == "equal" and result["images"] == 1
    assert result["settings"]["norm_eps"] == {"pytorch": 1e-12, "vitx": 1e-12}
    result = report(tmp_path, tmp_path / "model", norm_eps=1e-6, reference=library)
    assert (result["verdict"], result["first_off"]) == ("off", "blocks.0")
    # Without config.json beside it, only the user knows the heads.
    result = report(tmp_path, tmp_path / "state.pth", num_heads=3, reference=library)
    assert result["verdict"] == "equal" and result["assumed"] == ["num_heads"]


@pytest.mark.slow
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_file_without_a_head(tmp_path: Path, library: str) -> None:
    tensors = tensors_of(square_vit(), tmp_path)
    del tensors["head.weight"], tensors["head.bias"]
    save_file(tensors, tmp_path / "m.safetensors")
    result = report(
        tmp_path, tmp_path / "m.safetensors", num_classes=7, num_heads=2, reference=library
    )
    assert result["verdict"] == "equal" and result["predicted"]["vitx"] == []
    assert result["stages"][-1]["stage"] == "norm"


@pytest.mark.slow
@installed("torch", "timm")
@pytest.mark.parametrize("as_google", [False, True])
@pytest.mark.parametrize("make", [square_vit, resnet_hybrid])
def test_timm_has_hybrids_and_reads_npz(tmp_path: Path, make: Any, as_google: bool) -> None:
    model = make()
    path = saved(model, tmp_path)
    if as_google:
        tensors, path = load_file(path), tmp_path / "m.npz"
        np.savez(path, **google(tensors, model.blocks[0].attn.heads))
    result = report(tmp_path, path)
    assert result["verdict"] == "equal" and result["library"] == "timm"
    assert ("stem" in [s["stage"] for s in result["stages"]]) == (model.stem is not None)


@pytest.mark.slow
@installed("torch", "timm")
def test_standardisation_of_the_stem_is_the_files(tmp_path: Path) -> None:
    path = saved(resnet_hybrid(epsilon=1e-4), tmp_path)
    save_file(load_file(path), tmp_path / "plain.safetensors")  # without metadata: timm's own
    model = vitx.load(path)
    images = images_for(model, "", 1)
    own, plain = (build_reference(file, model) for file in (path, tmp_path / "plain.safetensors"))
    epsilons = [r.settings["weight_standardisation_eps"] for r in (own, plain)]
    assert epsilons == [1e-4, 1e-8]
    assert difference("stem", own(images)["stem"], plain(images)["stem"]).relative > 1e-3


@pytest.mark.slow
@installed("torch", "timm")
def test_architecture_implies_the_heads_in_timm(tmp_path: Path) -> None:
    """ViT tiny has 3 heads of 64; vitx gets another number."""
    model = filled(lambda: vitx.create("vit_tiny_patch16_224", num_classes=3, image_size=32))
    save_file(tensors_of(model, tmp_path), tmp_path / "model.safetensors")
    model = vitx.load(tmp_path / "model.safetensors", num_heads=4)
    reference = build_reference(tmp_path, model, architecture="vit_tiny_patch16_224")
    assert reference.assumed == () and reference.settings["num_heads"] == 3
    with pytest.raises(ValueError, match=r"timm does not take it: .*vit_teeny"):
        build_reference(tmp_path, model, architecture="vit_teeny")
    with pytest.raises(ValueError, match=r"timm does not take it: .*size mismatch for cls_token"):
        build_reference(tmp_path, model, architecture="vit_small_patch16_224")

    assert build_reference(tmp_path, model).assumed == ("num_heads",)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert build_reference(tmp_path, model).assumed == ()


@pytest.mark.slow
@installed("torch")
@pytest.mark.parametrize("library", [TIMM, TRANSFORMERS])
def test_files_that_cannot_be_compared(tmp_path: Path, library: str) -> None:
    path = saved(square_vit(), tmp_path)
    with pytest.raises(ValueError, match=r"image_size resamples its position embedding, \(1, 17"):
        report(tmp_path, path, image_size=(32,), reference=library)
    tensors = reproduction(tensors_of(resnet_hybrid(epsilon=1e-6), tmp_path))
    save_file(tensors, tmp_path / "published.safetensors")
    with pytest.raises(ValueError, match=r"have neither timm's nor .* but \[Re\]'s"):
        report(tmp_path, tmp_path / "published.safetensors", reference=library)


# Families of transformers, saved by itself with random weights.

TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES = {
    "DINOv2": ("Dinov2Config", "Dinov2Model", {}),
    "DINOv2, gated": ("Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True}),
    "DINOv2, registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
    "CLIP": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", {"projection_dim": 10}),
    "CLIP, no projection": ("CLIPVisionConfig", "CLIPVisionModel", {}),
    "SigLIP": ("SiglipVisionConfig", "SiglipVisionModel", {}),
}


def of_transformers(name: str, folder: Path) -> Path:
    """A folder as transformers writes it, of random weights that all matter."""
    import torch
    import transformers

    of_config, of_model, options = FAMILIES[name]
    config = getattr(transformers, of_config)(**TOWER | options)
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        model = getattr(transformers, of_model)(config)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@installed("torch", "transformers")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_equal_block_by_block(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = report(tmp_path, of_transformers(name, tmp_path))
    assert result["verdict"] == "equal" and result["library"] == "transformers"
    stages = ["embedding", "blocks.0", "blocks.1", "norm", "pooled"]
    assert [stage["stage"] for stage in result["stages"]] == stages
    assert 0 < max(stage["relative"] for stage in result["stages"]) < 1e-12
    eps = 1e-5 if name.startswith("CLIP") else 1e-6
    expected = {"num_heads": 3, "norm_eps": eps, "final_norm_eps": eps}
    assert result["settings"] == {n: {"pytorch": v, "vitx": v} for n, v in expected.items()}
    assert "without a head, so the pooled output is compared" in capfd.readouterr().out


@pytest.mark.slow
@installed("torch", "transformers")
@pytest.mark.parametrize("name", ["clip_full", "siglip_full"])
def test_towers_of_whole_models_are_equal(name: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    result = report(tmp_path, tmp_path)
    assert result["verdict"] == "equal" and result["stages"][-1]["stage"] == "pooled"


@pytest.mark.slow
@installed("torch", "transformers")
def test_a_wrong_setting_of_a_family_shows(tmp_path: Path) -> None:
    """transformers computes what its config.json says, whatever vitx reads there."""
    folder = of_transformers("CLIP", tmp_path)
    model = vitx.load(folder)
    images = images_for(model, "", 2)
    config = json.loads((folder / "config.json").read_text())
    for activation, first in (("quick_gelu", None), ("gelu", "blocks.0")):
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
        theirs = build_reference(folder, model)(images)
        ours = activations(model, jnp.asarray(images))
        ours["norm"] = ours["norm"][:, 0]
        assert first_off(ours, theirs) == first


@pytest.mark.slow
@installed("torch", "transformers")
def test_families_that_are_not_compared(tmp_path: Path) -> None:
    import transformers

    config = transformers.DINOv3ViTConfig(**TOWER | {"num_register_tokens": 2})
    with warnings.catch_warnings(action="ignore"):
        transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its positions are rotary, which PyTorch's libraries"):
        report(tmp_path, tmp_path)
    folder = of_transformers("CLIP", tmp_path / "clip")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="only ViT, DINOv2, CLIP and SigLIP are compared"):
        build_reference(folder, vitx.load(folder, num_heads=3))
