"""Files of today's backbones: numbers of the libraries that publish them, ways in and out, what is refused."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vitx
from tests.golden.make_layouts import weights as made_weights
from tests.small_models import filled, small_vit
from tests.weights.test_weights import assert_one_line, assert_same_weights
from vitx import weights
from vitx.models.design import Design, Preprocess
from vitx.models.families import (
    CLIP,
    CLIP_VISION,
    DEIT3,
    DINOV2_REGISTERS,
    HALF,
    IMAGENET,
    MAE,
    MEAN_WITH_REGISTERS,
    MODELS,
)
from vitx.models.variants import at_size
from vitx.models.vit import VisionTransformer
from vitx.weights import digest, load_classifier
from vitx.weights.build import usual_heads

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
RESIZED = [name for name in NAMES if "resized_tokens" in np.load(GOLDEN / f"{name}.npz")]


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text()), np.load(GOLDEN / f"{name}.npz")


def golden_weights(about):
    return made_weights(about["shapes"], about["seed"])


def golden_images(about, count, size):
    noise = np.random.RandomState(1000 + about["seed"]).standard_normal((count, 3, size, size))
    return jnp.asarray(noise.transpose(0, 2, 3, 1))


def written(name, folder, config=None, **changed):
    """A golden model's file in a folder, with the config.json of its library, or `config`; and the JSON about it."""
    about, _ = golden(name)
    tensors = golden_weights(about) | changed
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")
    config = about.get("config_json") if config is None else config
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return about


def assert_close(found, expected, limit=1e-12):
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= limit * np.abs(expected).max()


# The libraries' own numbers.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_published_numbers(name, tmp_path):
    about, numbers = written(name, tmp_path), golden(name)[1]
    sizes = about["config"]
    model = vitx.load(tmp_path, num_heads=sizes["num_heads"])
    assert model.prefix_tokens == sizes["prefix_tokens"]
    assert model.preprocess.size == (sizes["image_size"],) * 2
    images = golden_images(about, about["n_images"], sizes["image_size"])
    assert_close(vitx.tokens(model, images), numbers["tokens"])
    assert_close(model(images), numbers["logits" if "logits" in numbers else "pooled"])
    assert model.num_classes == (5 if "logits" in numbers else 0)
    tokens = model.embed(model.features(images[:1]))
    assert_close(tokens[0], numbers["embedded"])
    for block, expected in zip(model.blocks, numbers["blocks"], strict=True):
        tokens, _ = block(tokens, rotate=model.rotation())
        assert_close(tokens[0], expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RESIZED)
def test_published_numbers_at_another_size(name, tmp_path):
    about, numbers = written(name, tmp_path), golden(name)[1]
    side = about["config"]["resized_image_size"]
    model = vitx.load(tmp_path, num_heads=4, image_size=side)
    assert_close(vitx.tokens(model, golden_images(about, 1, side)), numbers["resized_tokens"])


# Vitx's own files.

DESIGNS = {}
for _name, _sizes in MODELS.items():
    if _sizes.stem is None:
        DESIGNS.setdefault(_sizes.design, _name)
BEST = replace(MODELS["vit_base_patch14_reg4_dinov2"].design, head="pooled+best", best_patches=3)
DESIGNS |= {BEST: "registers, best patches", Design(pooling="class+mean"): "class+mean"}
TINY = {"width": 16, "depth": 2, "heads": 2, "hidden": 24, "patch": 4}


def tiny(design, num_classes=3, size=(8, 12), **changes):
    sizes = TINY | changes | {"num_classes": num_classes, "preprocess": Preprocess(size=size)}
    if design.projection:
        design = replace(design, projection=10)
    return filled(lambda: VisionTransformer(**sizes, design=design, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("design", DESIGNS, ids=DESIGNS.values())
def test_load_gives_back_what_save_wrote_of_every_design(design, num_classes, tmp_path):
    model = tiny(design, num_classes, norm_eps=1e-5, final_norm_eps=2e-5)
    vitx.save(model, tmp_path)
    (tmp_path / "config.json").write_text('{"global_pool": "avg", "act_layer": "quick_gelu"}')
    loaded = vitx.load(tmp_path)
    assert_same_weights(loaded, model)
    assert nnx.graphdef(loaded) == nnx.graphdef(model)


def test_a_plain_vit_is_written_as_ever(tmp_path):
    vitx.save(small_vit(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert "design" not in file.metadata() and "num_classes" not in file.metadata()


@pytest.mark.parametrize(
    ("design", "what"),
    [
        ("[]", r"design must be an object of a design's parts, not \[\]"),
        ('{"colour": 1}', "design has an unknown part, 'colour'"),
        ('{"registers": true}', "design has registers True, where one like 0 is expected"),
        ('{"registers": -1}', "registers -1|registers must be at least 0, not -1"),
        ('{"mlp": "wide"}', "mlp must be one of plain, gated, not 'wide'"),
        ('{"mlp_norm": true}', "mlp_norm needs a gated mlp"),
        ('{"rotary_base": -1.0}', "rotary_base -1.0, which must be positive"),
        ('{"layer_scale": true}', r"do not fit.*- blocks.0.ls1.gamma \(12,\)"),
        ('{"registers": 2}', r"pos_embed has 7 entries, not 3 for tokens before"),
        ('{"rotary": "eva"}', "rotary positions need heads of a multiple of 4 channels, not 6"),
        ('{"head": "best", "best_patches": 7}', "best_patches 7 is more than the 6 patches"),
        ("{", "metadata design is no JSON"),
    ],
)
def test_designs_that_do_not_fit_are_refused(design, what, tmp_path):
    path = tmp_path / "own.safetensors"
    vitx.save(small_vit(), path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"design": design})
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(path)
    assert_one_line(error, str(path))


def bare(model, folder, config=None, **changed):
    """A model's file without vitx's metadata, and a config.json of timm's."""
    vitx.save(model, folder)
    path = folder / "model.safetensors"
    save_file(load_file(path) | changed, path)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


# Which tokens a position table covers.


@pytest.mark.parametrize("config", [{}, {"pretrained_cfg": {"input_size": "own"}}])
@pytest.mark.parametrize(
    ("design", "side", "grid"),
    [
        (DEIT3, 14, (13, 15)),
        (MEAN_WITH_REGISTERS, 16, (14, 18)),
        (DINOV2_REGISTERS, 37, (31, 44)),
    ],
    ids=["deit3", "reg4_gap", "reg4_dinov2"],
)
def test_the_wanted_size_does_not_decide_what_a_table_covers(design, side, grid, config, tmp_path):
    """The wanted grid has as many cells as the table has entries after the prefix tokens."""
    assert grid[0] * grid[1] == side**2 - design.prefix_tokens
    model = tiny(design, size=(4 * side, 4 * side))
    if config:
        config = {"pretrained_cfg": {"input_size": [3, 4 * side, 4 * side]}}
    wanted = (4 * grid[0], 4 * grid[1])
    loaded = vitx.load(bare(model, tmp_path, config), num_heads=2, image_size=wanted)
    assert loaded.design.position_prefix == 0
    expected = at_size(model, wanted).pos_embed[...]
    np.testing.assert_allclose(loaded.pos_embed[...], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"architecture": "deit3_small_patch16_224"}, "patches"),
        ({"architecture": "vit_small_patch16_224"}, "all"),
        ({"model_args": {"no_embed_class": True}}, "patches"),
        ({"model_args": {"no_embed_class": False}}, "all"),
    ],
)
def test_timms_config_specifies_what_a_table_covers(config, positions, tmp_path):
    """196 entries are those of 14 x 14 patches, or of a class token and the 13 x 15 of `img_size`."""
    model = tiny(
        replace(DEIT3, positions=positions), size=(56, 56) if positions == "patches" else (52, 60)
    )
    config["model_args"] = config.get("model_args", {}) | {"img_size": [52, 60]}
    loaded = vitx.load(bare(model, tmp_path, config), num_heads=2)
    assert loaded.design.positions == positions
    expected = at_size(model, (52, 60)).pos_embed[...]
    np.testing.assert_allclose(loaded.pos_embed[...], expected, atol=1e-6)


def test_a_size_that_is_no_multiple_of_the_patch_names_the_next(tmp_path):
    written("dinov2", tmp_path)
    for size, give in ((60, "56"), ((60, 30), r"\(56, 28\)"), (5, "14")):
        with pytest.raises(ValueError, match=f"patch, 14 pixels: give image_size={give}$") as error:
            vitx.load(tmp_path, image_size=size)
        assert_one_line(error, str(tmp_path))


# Numbers of heads.


@pytest.mark.parametrize(
    ("width", "design", "heads"),
    [
        (768, Design(), 12),
        (1280, Design(), 16),
        (1280, MAE, 16),
        (1280, CLIP_VISION, 16),
        (1280, MODELS["vit_large_patch16_dinov3"].design, 20),
        (1536, MODELS["vit_giant_patch14_dinov2"].design, 24),
        (1536, MODELS["vit_base_patch16_siglip_224"].design, None),
        *((width, Design(), None) for width in (100, 1152, 1408, 1664, 4096)),
    ],
)
def test_usual_heads(width, design, heads):
    assert usual_heads(width, design) == heads


def test_heads_of_a_bare_huge_vit(tmp_path):
    bare(tiny(MAE, size=(8, 8), width=1280, depth=1), tmp_path)
    with pytest.warns(UserWarning, match="16 heads are guessed from the width, 1280"):
        model = vitx.load(tmp_path)
    assert model.blocks[0].attn.heads == 16 and model.assumed == ("num_heads",)
    vitx.save(model, tmp_path / "own.safetensors")  # a guess stays one
    with pytest.warns(UserWarning, match="16 heads are guessed"):
        assert vitx.load(tmp_path / "own.safetensors").assumed == ("num_heads",)
    assert vitx.load(tmp_path / "own.safetensors", num_heads=8).assumed == ()
    bare(tiny(Design(), size=(8, 8), width=1152, depth=1), tmp_path)
    what = r"its width, 1152 \(16 in SO400M\), specifies the number of heads: give num_heads"
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(tmp_path)
    assert_one_line(error, str(tmp_path))
    assert vitx.load(tmp_path, num_heads=16).blocks[0].attn.heads == 16


# New heads.


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "clip", "siglip", "eva02_small"])
def test_a_new_head_on_the_pooled_output(name, tmp_path):
    about = written(name, tmp_path)
    options = {"num_heads": 4, "num_classes": 7}
    model, plain = (vitx.load(tmp_path, **more) for more in (options, {"num_heads": 4}))
    images = golden_images(about, 2, about["config"]["image_size"]).astype(np.float32)
    tokens, _ = model.encode(model.embed(model.features(images)))
    logits = model.pooled(tokens) @ model.head.kernel[...] + model.head.bias[...][None]
    np.testing.assert_allclose(model(images), logits, atol=1e-5)
    assert model.num_classes == 7 and logits.shape == (2, 7)
    if not plain.num_classes:
        np.testing.assert_allclose(model.pooled(tokens), plain(images), atol=1e-5)


def test_distilled_heads(tmp_path):
    written("deit_distilled", tmp_path)
    assert vitx.load(tmp_path, num_heads=4, num_classes=5).design.head == "each"
    for options in ({"num_classes": 7}, {"num_classes": 5, "head": "pooled"}):
        model = vitx.load(tmp_path, num_heads=4, **options)
        assert (model.design.head, model.head_dist) == ("pooled", None)
        assert model.design.pooling == "class+distillation"


@pytest.mark.parametrize("head", ["class+mean", "best", "pooled+best"])
@pytest.mark.parametrize("name", ["dinov2_with_registers", "clip", "gap"])
def test_other_heads(name, head, tmp_path):
    about = written(name, tmp_path)
    model = load_classifier(tmp_path, num_heads=4, num_classes=6, head=head)
    assert head in (model.design.head, model.design.pooling)
    images = golden_images(about, 1, about["config"]["image_size"]).astype(np.float32)
    assert model(images).shape == (1, 6)
    vitx.save(model, tmp_path / "again.safetensors")
    again = vitx.load(tmp_path / "again.safetensors")
    assert_same_weights(again, model)
    assert nnx.graphdef(again) == nnx.graphdef(model)
    same = vitx.load(tmp_path / "again.safetensors", num_classes=6, head=head)
    assert_same_weights(same, model)


def test_heads_that_are_refused(tmp_path):
    written("siglip", tmp_path)
    for options, what in (
        ({"head": "best"}, "head 'best' needs num_classes"),
        ({"head": "class+mean", "num_classes": 3}, "needs a class token"),
        ({"head": "two", "num_classes": 3}, "^head must be one of pooled, class.mean, best"),
    ):
        with pytest.raises(ValueError, match=what) as error:
            vitx.load(tmp_path, num_heads=4, **options)
        assert_one_line(error)


def test_a_classifier_on_class_and_mean_is_recognised(tmp_path):
    """As in Dinov2ForImageClassification."""
    about, _ = golden("dinov2")
    tensors = {f"dinov2.{name}": array for name, array in golden_weights(about).items()}
    head = np.random.default_rng(0).standard_normal((3, 96))
    tensors |= {"classifier.weight": head, "classifier.bias": np.zeros(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = vitx.load(tmp_path, num_heads=4)
    images = golden_images(about, 1, 56).astype(np.float32)
    tokens = np.asarray(vitx.tokens(model, images))[0]
    expected = head @ np.concatenate([tokens[0], tokens[1:].mean(0)])
    np.testing.assert_allclose(model(images)[0], expected, atol=1e-4)


# What is beside the tensors.


@pytest.mark.parametrize(
    ("name", "statistics", "epsilon", "activation"),
    [
        ("dinov2", IMAGENET, 1e-6, "gelu"),
        ("dinov2_swiglu", IMAGENET, 1e-6, "silu"),
        ("dinov3", IMAGENET, 1e-5, "gelu"),
        ("dinov3_gated", IMAGENET, 1e-5, "silu"),
        ("clip", CLIP, 1e-5, "quick_gelu"),
        ("siglip", HALF, 1e-6, "tanh_gelu"),
        ("deit3", IMAGENET, 1e-6, "gelu"),
        ("deit_distilled", IMAGENET, 1e-6, "gelu"),
        ("gap", HALF, 1e-6, "gelu"),
        ("vit_registers", HALF, 1e-6, "gelu"),
        ("eva02_small", CLIP, 1e-6, "silu"),
    ],
)
def test_conventions_of_bare_files(name, statistics, epsilon, activation, tmp_path):
    written(name, tmp_path)
    (tmp_path / "config.json").unlink(missing_ok=True)
    model = vitx.load(tmp_path, num_heads=4)
    assert (model.preprocess.mean, model.preprocess.std) == statistics
    assert (model.blocks[0].norm1.epsilon, model.final_norm_eps) == (epsilon, epsilon)
    assert model.design.activation == activation
    expected = 224 if name.startswith("dinov3") else golden(name)[0]["config"]["image_size"]
    assert model.preprocess.size == (expected, expected)


def test_nested_configs_leave_keys_out(tmp_path):
    width = {"hidden_size": 48, "image_size": 56}
    written("clip_full", tmp_path, {"model_type": "clip", "vision_config": width})
    model = vitx.load(tmp_path)
    assert (model.blocks[0].attn.heads, model.norm.epsilon) == (12, 1e-5)
    assert (model.design.activation, model.design.projection) == ("quick_gelu", 32)
    written("siglip_full", tmp_path, {"model_type": "siglip", "vision_config": width})
    model = vitx.load(tmp_path)
    assert (model.blocks[0].attn.heads, model.design.activation) == (12, "tanh_gelu")


def test_clip_without_projection(tmp_path):
    about = written("clip", tmp_path, **{"visual_projection.weight": None})
    model = vitx.load(tmp_path)
    assert model.projection is None
    images = golden_images(about, 1, 56).astype(np.float32)
    np.testing.assert_allclose(model(images), vitx.tokens(model, images)[:, 0], atol=1e-6)


def test_the_head_of_timms_clip_is_the_projection(tmp_path):
    model = tiny(replace(CLIP_VISION, projection=0), num_classes=10, size=(8, 8))
    trained = vitx.load(bare(model, tmp_path), num_heads=2)
    assert (trained.num_classes, trained.projection) == (10, None)
    bare(model, tmp_path, **{"head.bias": np.zeros(10, np.float32)})
    loaded = vitx.load(tmp_path, num_heads=2)
    assert (loaded.num_classes, loaded.design.projection, loaded.head) == (0, 10, None)
    np.testing.assert_array_equal(loaded.projection.kernel[...], model.head.kernel[...])
    assert vitx.load(tmp_path, num_heads=2, num_classes=3).head.kernel.shape == (10, 3)


def test_a_new_head_of_clip_in_vitxs_own_file_stays_a_head(tmp_path):
    written("clip", tmp_path, **{"visual_projection.weight": None})
    model = vitx.load(tmp_path, num_classes=7)  # whose bias is zero
    vitx.save(model, tmp_path / "own.safetensors")
    loaded = vitx.load(tmp_path / "own.safetensors")
    assert (loaded.num_classes, loaded.projection) == (7, None)
    assert_same_weights(loaded, model)


# The same tensors under other names.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers", "dinov2_swiglu"])
def test_metas_names_of_dinov2(name, tmp_path):
    about, numbers = golden(name)
    theirs = golden_weights(about)
    ours = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],  # of class token and patches
        "mask_token": theirs["embeddings.mask_token"],
    }
    if "embeddings.register_tokens" in theirs:
        ours["register_tokens"] = theirs["embeddings.register_tokens"]
    for kind in ("weight", "bias"):
        ours[f"patch_embed.proj.{kind}"] = theirs[f"embeddings.patch_embeddings.projection.{kind}"]
        ours[f"norm.{kind}"] = theirs[f"layernorm.{kind}"]
        for index in range(about["config"]["depth"]):
            block, layer = f"blocks.{index}.", f"encoder.layer.{index}."
            parts = (
                f"{layer}attention.attention.{part}.{kind}" for part in ("query", "key", "value")
            )
            ours[f"{block}attn.qkv.{kind}"] = np.concatenate([theirs[part] for part in parts])
            ours[f"{block}attn.proj.{kind}"] = theirs[f"{layer}attention.output.dense.{kind}"]
            mlp = ("w12", "weights_in"), ("w3", "weights_out"), ("fc1", "fc1"), ("fc2", "fc2")
            for new, old in mlp:
                if f"{layer}mlp.{old}.{kind}" in theirs:
                    ours[f"{block}mlp.{new}.{kind}"] = theirs[f"{layer}mlp.{old}.{kind}"]
            for n in "12":
                ours[f"{block}norm{n}.{kind}"] = theirs[f"{layer}norm{n}.{kind}"]
                ours[f"{block}ls{n}.gamma"] = theirs[f"{layer}layer_scale{n}.lambda1"]
    save_file(ours, tmp_path / "pretrain.safetensors")
    model = vitx.load(tmp_path / "pretrain.safetensors", num_heads=4)
    assert model.num_classes == 0
    assert (model.preprocess.mean, model.preprocess.std) == IMAGENET
    images = golden_images(about, about["n_images"], about["config"]["image_size"])
    assert_close(vitx.tokens(model, images), numbers["tokens"])
    assert_close(model(images), numbers["pooled"])


@pytest.mark.usefixtures("x64")
def test_hugging_faces_names_of_distilled_deit(tmp_path):
    """The names in facebook/deit-base-distilled-patch16-224."""
    about, numbers = golden("deit_distilled")
    names = (
        (r"^cls_token", "deit.embeddings.cls_token"),
        (r"^dist_token", "deit.embeddings.distillation_token"),
        (r"^pos_embed", "deit.embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "deit.embeddings.patch_embeddings.projection"),
        (r"^norm", "deit.layernorm"),
        (r"^head\.", "cls_classifier."),
        (r"^head_dist\.", "distillation_classifier."),
        (r"^blocks\.", "deit.encoder.layer."),
        (r"norm1\.", "layernorm_before."),
        (r"norm2\.", "layernorm_after."),
        (r"attn\.proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    )
    theirs = {}
    for name, array in golden_weights(about).items():
        for old, new in names:
            name = re.sub(old, new, name)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                theirs[name.replace("attn.qkv", f"attention.attention.{part}")] = third.copy()
        else:
            theirs[name] = array
    save_file(theirs, tmp_path / "model.safetensors")
    config = {"model_type": "deit", "num_attention_heads": 4, "layer_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 64}))
    model = vitx.load(tmp_path)
    assert (model.preprocess.mean, model.preprocess.std) == IMAGENET
    assert_close(model(golden_images(about, about["n_images"], 64)), numbers["logits"])
    (tmp_path / "config.json").unlink()
    assert vitx.load(tmp_path, num_heads=4).norm.epsilon == 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ForImageClassificationWithTeacher", "logits"),
        ("ForImageClassification", "logits"),
        ("Model", "last_hidden_state"),
    ],
)
def test_transformers_own_deit(kind, name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 96, "image_size": 64, "num_labels": 5}
    config = transformers.DeiTConfig(**sizes)
    config._attn_implementation = "sdpa"
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        theirs = getattr(transformers, f"DeiT{kind}")(config).eval().double()
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        theirs.save_pretrained(tmp_path)
        for size in ((64, 64), (96, 80)):
            images = torch.randn(2, 3, *size, dtype=torch.float64)
            expected = theirs(images, interpolate_pos_encoding=True)[name].numpy()
            ours = vitx.load(tmp_path, image_size=size)
            found = jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
            assert_close(ours(found) if name == "logits" else vitx.tokens(ours, found), expected)
    assert ours.num_classes == (5 if name == "logits" else 0)
    assert ours.norm.epsilon == 1e-12


@pytest.mark.parametrize(
    ("processor", "size", "evaluation"),
    [
        (
            {"crop_size": {"height": 28, "width": 42}, "size": {"shortest_edge": 60}},
            (28, 42),
            ("bilinear", "center", 28 / 60),
        ),
        (
            {"crop_size": 28, "do_center_crop": False, "size": {"height": 42, "width": 42}},
            (42, 42),
            ("bilinear", "squash", 1.0),
        ),
        ({"size": {"shortest_edge": 28}}, (56, 56), ("bilinear", "center", 1.0)),
        ({"size": 84, "resample": 3}, (84, 84), ("bicubic", "center", 1.0)),
        # no multiple of the patch
        ({"size": 85, "resample": 1}, (56, 56), ("lanczos", "center", 1.0)),
    ],
)
def test_preprocessing_beside_the_weights(processor, size, evaluation, tmp_path):
    written("dinov2", tmp_path)
    processor = processor | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = vitx.load(tmp_path)
    assert model.preprocess == Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), size, *evaluation)
    assert vitx.load(tmp_path, image_size=56).preprocess.size == (56, 56)


PROCESSOR = {
    "image_processor": {
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 35},
    },
    "processor_class": "CLIPProcessor",
}
"""As transformers 5 writes a processor; its tokenizer is in files of its own."""


def test_the_image_processor_inside_a_processor(tmp_path):
    """It counts where it has no file of its own, and changes the digest as it changes the model."""
    written("clip", tmp_path)
    usual, digests = vitx.load(tmp_path).preprocess, {digest(tmp_path)}
    (tmp_path / "processor_config.json").write_text(json.dumps(PROCESSOR))
    expected = Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (28, 28), "bicubic", "center", 28 / 35)
    assert vitx.load(tmp_path).preprocess == expected != usual
    digests.add(digest(tmp_path))
    own = PROCESSOR["image_processor"] | {"image_mean": [0.7, 0.8, 0.9]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    assert vitx.load(tmp_path).preprocess == replace(expected, mean=(0.7, 0.8, 0.9))
    digests.add(digest(tmp_path))
    assert len(digests) == 3
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert vitx.load(tmp_path).preprocess == usual


# What is refused.


@pytest.mark.parametrize(
    ("name", "key", "value", "what"),
    [
        ("dinov2", "hidden_act", "gelu_new", "hidden_act='gelu_new', which vitx does not compute"),
        ("dinov2", "hidden_act", 3, "hidden_act=3, which vitx does not compute"),
        ("dinov2", "qkv_bias", False, "qkv_bias=False"),
        ("dinov2", "model_type", "ijepa", "model_type='ijepa', a model that vitx does not have"),
        ("dinov2", "num_attention_heads", "4", "num_heads must be a positive whole number"),
        ("dinov3", "mlp_bias", False, "mlp_bias=False"),
        ("dinov3", "proj_bias", False, "proj_bias=False"),
        ("dinov3", "query_bias", False, "query_bias and value_bias differ"),
        ("dinov3", "rope_theta", "x", "design has rotary_base 'x'"),
        ("dinov3", "rope_theta", 0, "rotary_base 0.0, which must be positive"),
        ("clip", "model_type", "altclip", "model_type='altclip'"),
        ("siglip", "vision_use_head", False, "vision_use_head=False"),
        ("siglip", "model_type", "siglip2_vision_model", "model_type='siglip2_vision_model'"),
    ],
)
def test_settings_that_vitx_does_not_compute(name, key, value, what, tmp_path):
    written(name, tmp_path, golden(name)[0]["config_json"] | {key: value})
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(tmp_path)
    assert_one_line(error, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "changed", "what"),
    [
        ("siglip", {"head.probe": None}, "- attn_pool.latent"),
        ("siglip", {"embeddings.patch_embedding.weight": np.ones((48, 588))}, "a NaFlex SigLIP 2"),
        ("eva02_small", {"pos_embed": None}, "this is an EVA-02 without its position table"),
        ("gap", {"pos_embed": None}, "- pos_embed is missing"),
        ("gap", {"fc_norm.weight": None}, r"\+ fc_norm.bias.*- norm.bias"),
        ("vit_registers", {"blocks.1.ls1.gamma": np.ones(48)}, r"- blocks.0.ls1.gamma"),
        ("vit_registers", {"pos_embed": np.ones((1, 19, 48))}, "pos_embed has 19 entries, not 5"),
        ("dinov3", {"layer.1.attention.q_proj.bias": None}, r"\+ blocks.1.attn.v.bias"),
        ("eva02_base", {"blocks.1.mlp.fc1_x.weight": None}, r"\+ blocks.1.mlp.gate.weight"),
        ("deit_distilled", {"head.weight": None}, "- head.weight is missing: give num_classes"),
    ],
)
def test_tensors_that_do_not_fit(name, changed, what, tmp_path):
    about = written(name, tmp_path, **changed)
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(tmp_path, num_heads=about["config"]["num_heads"])
    assert_one_line(error, str(tmp_path))


@pytest.mark.parametrize(
    "architecture", ["eva_giant_patch14_224", "vit_base_patch16_rope_224", "vit_pe_core_base_x"]
)
def test_positions_of_another_kind_are_refused_by_the_architecture(architecture, tmp_path):
    written("dinov3", tmp_path)  # whose tensors of timm's would be alike
    vitx.save(vitx.load(tmp_path), tmp_path / "own.safetensors")
    tensors = load_file(tmp_path / "own.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(ValueError, match=f"architecture='{architecture}', which vitx") as error:
        vitx.load(tmp_path, num_heads=4)
    assert_one_line(error, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    loaded = vitx.load(tmp_path, num_heads=4, image_size=64)
    assert (loaded.design.rotary, loaded.design.pooling) == ("dinov3", "mean")


def test_norms_after_attention_and_mlp_are_refused(tmp_path):
    """timm's vit_base_patch16_rpn_224, whose tensors are named as those of a ViT with norms before."""
    model = tiny(replace(MAE, class_token=False, qkv_bias="none"), size=(8, 8))
    config = {"architecture": "vit_base_patch16_rpn_224"}
    cases = (config, "architecture='vit_base_patch16_rpn_224', which vitx"), ({}, "norms after")
    for config, what in cases:
        bare(model, tmp_path, config)
        with pytest.raises(ValueError, match=what) as error:
            vitx.load(tmp_path, num_heads=2)
        assert_one_line(error, str(tmp_path))
    bare(model, tmp_path, {"model_args": {"qkv_bias": False}})
    assert vitx.load(tmp_path, num_heads=2).design.qkv_bias == "none"


# Files in shards.


def in_shards(folder, *, changed=None):
    """Dinov2's golden file in two shards, in a folder of its own."""
    folder.mkdir()
    written("dinov2", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    map_ = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        map_ |= dict.fromkeys(part, shard)
    map_ |= changed or {}
    index = {"metadata": {"total_size": 1}, "weight_map": map_}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards(tmp_path):
    folder = in_shards(tmp_path / "shards")
    (tmp_path / "whole").mkdir()
    written("dinov2", tmp_path / "whole")
    expected = vitx.load(tmp_path / "whole")
    for path in (folder, folder / "model.safetensors.index.json"):
        loaded = vitx.load(path)
        assert_same_weights(loaded, expected)
        assert nnx.graphdef(loaded) == nnx.graphdef(expected)
    first = digest(folder)
    assert first == digest(in_shards(tmp_path / "again"))
    shard = folder / "model-00002-of-00002.safetensors"
    save_file({name: 2 * array for name, array in load_file(shard).items()}, shard)
    assert digest(folder) != first


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {"a": "../a.safetensors"}}, "is no name of a .safetensors file beside it"),
        ({"weight_map": {"a": "x/a.safetensors"}}, "is no name of a .safetensors file beside it"),
        ({"weight_map": {"a": "a.bin"}}, "is no name of a .safetensors file beside it"),
        ({"weight_map": {"a": 3}}, "3 is no name of a .safetensors file"),
        ({"weight_map": {"a": "b.safetensors"}}, "its shard b.safetensors is missing"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "does not hold a"),
    ],
)
def test_shards_that_are_refused(index, what, tmp_path):
    folder = in_shards(tmp_path / "shards")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(folder)
    assert_one_line(error, str(folder))


# timm's own models.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_dinov2", {"img_size": 56}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
        ("vit_giant_patch14_dinov2", {"img_size": 56, "embed_dim": 48, "num_heads": 24}),
        ("vit_small_patch16_dinov3", {"img_size": 64}),
        ("vit_small_plus_patch16_dinov3", {"img_size": 64}),
        ("vit_small_patch16_dinov3_qkvb", {"img_size": 64}),
        ("vit_base_patch32_clip_224", {}),
        ("vit_base_patch32_clip_quickgelu_224", {}),
        ("vit_base_patch16_siglip_224", {"img_size": 64}),
        ("vit_base_patch32_siglip_256", {"img_size": 64}),
        ("vit_base_patch16_siglip_gap_224", {"img_size": 64}),
        ("deit3_small_patch16_224", {"img_size": 64}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
        ("eva02_tiny_patch14_336", {"img_size": 56}),
        ("eva02_base_patch14_448", {"img_size": 56}),
        ("vit_medium_patch16_reg4_gap_256", {"img_size": 64}),
        ("vit_base_patch16_gap_224", {"img_size": 64}),
    ],
)
def test_timms_own_files(name, options, tmp_path):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        theirs = timm.create_model(name, depth=2, **options).eval()
        state = {
            key: value + 0.02 * torch.randn_like(value)
            for key, value in theirs.state_dict().items()
        }
        if name == "vit_base_patch32_clip_224":  # as in the files of the hub: it is the projection
            state["head.bias"].zero_()
        theirs.load_state_dict(state)
        save_file({k: v.numpy() for k, v in state.items()}, tmp_path / "model.safetensors")
        side = options.get("img_size", 224)
        arguments = {"img_size": side, "num_heads": options.get("num_heads")}
        cfg = {key: theirs.pretrained_cfg[key] for key in ("mean", "std", "num_classes")}
        config = {"architecture": name, "global_pool": theirs.global_pool, "pretrained_cfg": cfg}
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": arguments}))
        images = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        features, output = theirs.forward_features(batch), theirs(batch)
    ours = vitx.load(tmp_path)
    assert_close(vitx.tokens(ours, images), features.numpy(), 1e-5)
    assert_close(ours(jnp.asarray(images)), output.numpy(), 1e-5)
    assert (ours.preprocess.mean, ours.preprocess.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))


def test_commands_refuse_a_model_without_a_head(tmp_path):
    path = tmp_path / "backbone.safetensors"
    vitx.save(small_vit(num_classes=0), path)
    assert weights.load_classifier(path, headless=True).num_classes == 0
    with pytest.raises(ValueError, match="its model has no head, and so no classes") as error:
        weights.load_classifier(path)
    assert_one_line(error, str(path))
