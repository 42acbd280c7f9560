"""Checkpoints: each naming scheme against its own layout, files written, files refused."""

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save, save_file

import vitx
from tests.small_models import filled, small_hybrid, small_vit
from vitx.models.affinitynet import AffinityNet
from vitx.models.design import Preprocess
from vitx.models.families import IMAGENET
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.vit import VisionTransformer
from vitx.pipeline.affinity import initial_net
from vitx.pipeline.classifier import initial_model
from vitx.pipeline.seeds import make_seeds
from vitx.weights import digest, load_classifier
from vitx.weights.tensor import Tensor
from vitx.weights.timm_config import read_timm

HALF = (0.5, 0.5, 0.5)


def resnet_hybrid(epsilon=1e-8):
    return filled(
        lambda: VisionTransformer(
            width=64,
            depth=1,
            heads=1,
            hidden=16,
            patch=1,
            num_classes=3,
            preprocess=Preprocess(size=(32, 32)),
            stem=ResNetV2((1, 2, 1), epsilon, rngs=nnx.Rngs(0)),
            rngs=nnx.Rngs(0),
        )
    )


def small_affinity_net(stem=lambda rngs: ConvStem((8, 16), stride=4, rngs=rngs), **changes):
    options = {
        "grid": (4, 6),
        "preprocess": Preprocess(size=(16, 24)),
        "hidden": 16,
        "features": 8,
        "groups": 4,
    } | changes
    return filled(lambda: AffinityNet(stem(nnx.Rngs(0)), rngs=nnx.Rngs(0), **options))


def published_affinity_net():
    return small_affinity_net(
        lambda rngs: ResNetV2((1, 1, 1), 1e-6, rngs=rngs),
        grid=(56, 56),
        preprocess=Preprocess(size=(448, 448)),
        hidden=32,
        groups=32,
    )


def tensors_of(model, folder):
    """The model's tensors under timm's names, which `test_written_axes` checks by hand."""
    vitx.save(model, folder / "tensors_of.safetensors")
    return load_file(folder / "tensors_of.safetensors")


def weights_of(model):
    return dict(nnx.to_flat_state(nnx.state(model)))


def assert_same_weights(found, expected):
    found, expected = weights_of(found), weights_of(expected)
    assert found.keys() == expected.keys()
    for path, variable in expected.items():
        array, other = np.asarray(variable[...]), np.asarray(found[path][...])
        assert array.dtype == other.dtype, path
        np.testing.assert_array_equal(other, array, err_msg=str(path))


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    for part in parts:
        assert part in message


def guessed(path):
    """A model whose heads are guessed from its width, which it says; without the mark, to compare it with others."""
    with pytest.warns(UserWarning, match="heads are guessed from the width"):
        model = vitx.load(path)
    assert model.assumed == ("num_heads",)
    model.assumed = ()
    return model


MODELS = {
    "vit": small_vit,
    "light hybrid": small_hybrid,
    "hybrid": resnet_hybrid,
    "affinity": small_affinity_net,
    "published affinity": published_affinity_net,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_load_gives_back_what_save_wrote(name, tmp_path):
    model = MODELS[name]()
    mean, std = (0.1, 0.2, 0.30000000000000004), (0.4, 1.5, 0.6)
    model.preprocess = replace(model.preprocess, mean=mean, std=std)
    vitx.save(model, tmp_path / "model.safetensors")
    loaded = vitx.load(tmp_path)
    assert type(loaded) is type(model)
    assert_same_weights(loaded, model)
    # The same heads, epsilons, preprocessing and grids: nothing triggers another trace.
    assert nnx.graphdef(loaded) == nnx.graphdef(model)


def test_numbers_of_numpy_come_back_equal(tmp_path):
    model = small_vit(norm_eps=np.float32(1e-5), heads=np.int64(2))
    statistics = np.float32([0.1, 0.2, 0.3])
    model.preprocess = Preprocess(statistics, statistics + 1, np.array([8, 12]))
    vitx.save(model, tmp_path)
    loaded = vitx.load(tmp_path)
    assert loaded.preprocess == model.preprocess
    assert loaded.preprocess.mean == tuple(statistics.tolist())
    assert (loaded.norm.epsilon, loaded.blocks[0].attn.heads) == (np.float32(1e-5), 2)


def test_the_same_model_makes_the_same_file(tmp_path):
    model = small_hybrid()
    for name in ("a", "b"):
        vitx.save(model, tmp_path / f"{name}.safetensors")
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.slow
def test_load_gives_back_epsilons_and_heads(tmp_path):
    model = small_vit(norm_eps=1e-12, final_norm_eps=3e-5, heads=3)
    vitx.save(model, tmp_path / "new folder")
    loaded = vitx.load(tmp_path / "new folder" / "model.safetensors")
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    other = vitx.load(tmp_path / "new folder", norm_eps=1e-6, num_heads=4)
    assert nnx.graphdef(other) != nnx.graphdef(model)
    assert (other.norm.epsilon, other.blocks[1].norm2.epsilon) == (1e-6, 1e-6)
    assert other.blocks[0].attn.heads == 4
    assert vitx.load(tmp_path / "new folder", final_norm_eps=1e-5).norm.epsilon == 1e-5
    assert_same_weights(loaded, model)


@pytest.mark.usefixtures("x64")
def test_float64_stays_where_it_is_on(tmp_path):
    model = filled(small_vit)
    assert model.head.bias.dtype == np.float64
    vitx.save(model, tmp_path / "m.safetensors")
    assert_same_weights(vitx.load(tmp_path / "m.safetensors"), model)
    single = vitx.load(tmp_path / "m.safetensors", dtype="float32")
    assert {v.dtype for v in weights_of(single).values()} == {np.dtype(np.float32)}


@pytest.mark.slow
@settings(max_examples=5)
@given(
    heads=st.integers(1, 3),
    head_width=st.integers(1, 5),
    depth=st.integers(1, 3),
    hidden=st.integers(1, 9),
    patch=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    num_classes=st.integers(1, 4),
)
def test_any_sizes_are_read_off_the_tensors(
    tmp_path_factory, heads, head_width, depth, hidden, patch, grid, num_classes
):
    model = small_vit(
        width=heads * head_width,
        heads=heads,
        depth=depth,
        hidden=hidden,
        patch=patch,
        size=(grid[0] * patch, grid[1] * patch),
        num_classes=num_classes,
    )
    path = tmp_path_factory.mktemp("sizes") / "model.safetensors"
    vitx.save(model, path)
    assert nnx.graphdef(vitx.load(path)) == nnx.graphdef(model)


def test_written_axes(tmp_path):
    model = resnet_hybrid()
    tensors = tensors_of(model, tmp_path)
    kernel = np.asarray(model.stem.stages[1][0].conv2.kernel[...])
    written = tensors["patch_embed.backbone.stages.1.blocks.0.conv2.weight"]
    for o, i, y, x in [(0, 1, 2, 0), (5, 100, 1, 2)]:
        assert written[o, i, y, x] == kernel[y, x, i, o]
    assert tensors["blocks.0.mlp.fc1.weight"][3, 60] == model.blocks[0].mlp.fc1.kernel[60, 3]

    model = small_vit()  # 4 x 4 patches
    written = tensors_of(model, tmp_path)["patch_embed.proj.weight"]
    assert written.shape == (12, 3, 4, 4)
    for d, c, y, x in [(0, 1, 2, 3), (11, 2, 0, 1)]:
        assert written[d, c, y, x] == model.patch_embed.kernel[(y * 4 + x) * 3 + c, d]


def test_torch_reads_what_save_wrote(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    vitx.save(small_vit(), tmp_path / "m.safetensors")
    tensors = load_torch(tmp_path / "m.safetensors")
    for name, array in load_file(tmp_path / "m.safetensors").items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)


def test_save_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = small_vit()
    broken.norm.bias.set_value(broken.norm.bias[...].at[3].set(jnp.inf))
    for model, path, what in (
        (small_vit().head, "m.safetensors", "cannot save a Linear"),
        (small_vit(), "m.pth", r"m\.pth: vitx writes \.safetensors"),
        (broken, "m.safetensors", r"norm\.bias has NaN or infinite"),
        (small_vit(), "", r"^the path is empty: give a \.safetensors file or a folder"),
    ):
        with pytest.raises(ValueError, match=what):
            vitx.save(model, path)
    assert not list(tmp_path.iterdir())
    vitx.save(small_vit(), ".")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_follows_a_link(tmp_path):
    target, link = tmp_path / "store" / "weights", tmp_path / "m.safetensors"
    link.symlink_to(target)  # which is not there yet
    for model in (small_vit(), small_vit(depth=1)):
        vitx.save(model, link)
        assert link.is_symlink() and not target.is_symlink()
        assert_same_weights(vitx.load(target), model)
    assert [path.name for path in target.parent.iterdir()] == ["weights"]


# Other projects' files, written from timm's tensors by their own documented layouts.


def split_qkv(tensors, block):
    for kind in ("weight", "bias"):
        parts = np.split(tensors[f"blocks.{block}.attn.qkv.{kind}"], 3)
        yield kind, dict(zip(("query", "key", "value"), parts, strict=True))


def hugging_face(tensors, spelling="file", prefix="vit."):
    in_file = spelling == "file"
    layer = "encoder.layer" if in_file else "layers"
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    for n in range(2):
        block = {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.proj": "attention.output.dense" if in_file else "attention.o_proj",
            "mlp.fc1": "intermediate.dense" if in_file else "mlp.fc1",
            "mlp.fc2": "output.dense" if in_file else "mlp.fc2",
        }
        names |= {f"blocks.{n}.{old}": f"{layer}.{n}.{new}" for old, new in block.items()}
    out = {}
    for old, new in names.items():
        for suffix in ("", ".weight", ".bias"):
            if old + suffix in tensors:
                out[prefix + new + suffix] = tensors[old + suffix]
    for n in range(2):
        for kind, parts in split_qkv(tensors, n):
            for part, array in parts.items():
                name = f"attention.{part}" if in_file else f"{part[0]}_proj"
                out[f"{prefix}{layer}.{n}.attention.{name}.{kind}"] = array
    if "head.weight" in tensors and prefix:
        out |= {f"classifier.{kind}": tensors[f"head.{kind}"] for kind in ("weight", "bias")}
    return out


def reproduction(tensors):
    return {
        name.replace("patch_embed.backbone.", "resnet_backbone."): array
        for name, array in tensors.items()
    }


def google(tensors, heads):
    """Flax's axes: Dense (in, out), attention (in, heads, d) and (heads, d, out), Conv HWIO."""
    names = {
        "cls_token": "cls",
        "pos_embed": "Transformer/posembed_input/pos_embedding",
        "patch_embed.proj": "embedding",
        "norm": "Transformer/encoder_norm",
        "head": "head",
        "patch_embed.backbone.stem.conv": "conv_root",
        "patch_embed.backbone.stem.norm": "gn_root",
    }
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    for n in range(depth):
        block = f"Transformer/encoderblock_{n}"
        names |= {
            f"blocks.{n}.norm1": f"{block}/LayerNorm_0",
            f"blocks.{n}.norm2": f"{block}/LayerNorm_2",
            f"blocks.{n}.mlp.fc1": f"{block}/MlpBlock_3/Dense_0",
            f"blocks.{n}.mlp.fc2": f"{block}/MlpBlock_3/Dense_1",
        }
    for s in range(3):
        for b in range(4):
            old, new = f"patch_embed.backbone.stages.{s}.blocks.{b}", f"block{s + 1}/unit{b + 1}"
            names |= {f"{old}.downsample.conv": f"{new}/conv_proj"}
            names |= {f"{old}.downsample.norm": f"{new}/gn_proj"}
            names |= {f"{old}.conv{i}": f"{new}/conv{i}" for i in (1, 2, 3)}
            names |= {f"{old}.norm{i}": f"{new}/gn{i}" for i in (1, 2, 3)}
    out = {}
    for old, new in names.items():
        if old in tensors:
            out[new] = tensors[old]
        if f"{old}.weight" in tensors:
            array = tensors[f"{old}.weight"]
            leaf = "scale" if array.ndim == 1 else "kernel"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            out[f"{new}/{leaf}"] = array
        if f"{old}.bias" in tensors:
            out[f"{new}/bias"] = tensors[f"{old}.bias"]
    for name in out:
        if "gn" in name:
            out[name] = out[name].reshape(1, 1, 1, -1)
    width = len(tensors["norm.weight"])
    split = (heads, width // heads)
    for n in range(depth):
        attention = f"Transformer/encoderblock_{n}/MultiHeadDotProductAttention_1"
        for kind, parts in split_qkv(tensors, n):
            for part, array in parts.items():
                if kind == "weight":
                    out[f"{attention}/{part}/kernel"] = array.T.reshape(width, *split)
                else:
                    out[f"{attention}/{part}/bias"] = array.reshape(split)
        proj = tensors[f"blocks.{n}.attn.proj.weight"]
        out[f"{attention}/out/kernel"] = proj.T.reshape(*split, width)
        out[f"{attention}/out/bias"] = tensors[f"blocks.{n}.attn.proj.bias"]
    return out


def square_vit(**changes):
    return small_vit(**{"size": (16, 16), **changes})


@pytest.mark.parametrize("spelling", ["file", "memory"])
def test_hugging_face(tmp_path, spelling):
    model = square_vit(norm_eps=1e-12)
    tensors = hugging_face(tensors_of(model, tmp_path), spelling)
    ignored = {"vit.pooler.dense.weight": np.ones((2, 2)), "vit.embeddings.mask_token": np.ones(3)}
    save_file(tensors | ignored, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="give num_heads"):
        vitx.load(tmp_path)
    assert nnx.graphdef(vitx.load(tmp_path, num_heads=2)) == nnx.graphdef(model)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    assert_same_weights(vitx.load(tmp_path), model)


def test_hugging_face_files_beside_the_weights(tmp_path):
    model = small_vit()
    tensors = hugging_face(tensors_of(model, tmp_path))
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"num_attention_heads": 4, "layer_norm_eps": 1e-7, "image_size": [8, 12]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = vitx.load(tmp_path / "model.safetensors")
    assert loaded.preprocess == Preprocess((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (8, 12))
    assert loaded.blocks[0].attn.heads == 4
    assert (loaded.blocks[0].norm1.epsilon, loaded.norm.epsilon) == (1e-7, 1e-7)

    for content, what in (
        (config | {"hidden_act": "gelu_new"}, "hidden_act='gelu_new', which vitx does not compute"),
        (
            config | {"qkv_bias": False},
            r"config\.json: qkv_bias=False, which vitx does not compute",
        ),
        (config | {"num_attention_heads": "12"}, "num_heads must be a positive whole .*'12'"),
        ("{", r"config\.json beside it is damaged"),
    ):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=what):
            vitx.load(tmp_path)


def test_hugging_face_without_head_or_prefix(tmp_path):
    model = square_vit()
    path = tmp_path / "model.safetensors"
    save_file(hugging_face(tensors_of(model, tmp_path), prefix=""), path)
    with pytest.raises(ValueError, match=r"head\.weight is missing: give num_classes"):
        vitx.load(path, num_heads=2)
    loaded = vitx.load(path, num_heads=2, num_classes=3)
    loaded.head = model.head
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("make", [square_vit, resnet_hybrid])
def test_google(tmp_path, make):
    model = make()
    heads = model.blocks[0].attn.heads
    np.savez(tmp_path / "weights.npz", **google(tensors_of(model, tmp_path), heads))
    loaded = vitx.load(tmp_path / "weights.npz")
    assert_same_weights(loaded, model)
    assert nnx.graphdef(loaded) == nnx.graphdef(model)


def test_reproduction_hybrid(tmp_path):
    model = resnet_hybrid(epsilon=1e-6)
    save_file(reproduction(tensors_of(model, tmp_path)), tmp_path / "hybrid.safetensors")
    loaded = guessed(tmp_path / "hybrid.safetensors")
    assert_same_weights(loaded, model)
    assert nnx.graphdef(loaded) == nnx.graphdef(model)


def test_reproduction_affinity_net(tmp_path):
    model = published_affinity_net()
    path = tmp_path / "affinity.safetensors"
    save_file(tensors_of(model, tmp_path), path)  # without the metadata
    loaded = vitx.load(path)
    assert_same_weights(loaded, model)
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    other = vitx.load(path, image_size=(224, 448))
    assert (other.grid, other.preprocess.size) == ((28, 56), (224, 448))
    with pytest.raises(ValueError, match="AffinityNet, which has no num_classes"):
        vitx.load(path, num_classes=20)


def test_timm_conventions(tmp_path):
    model = resnet_hybrid()
    tensors = tensors_of(model, tmp_path)
    save_file({f"module.{k}": v for k, v in tensors.items()}, tmp_path / "w.safetensors")
    loaded = guessed(tmp_path / "w.safetensors")
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    assert loaded.preprocess == Preprocess(HALF, HALF, (32, 32))
    for name in ("deit_small.safetensors", "facebook-dino.safetensors", "DeiT-x/model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
        statistics = vitx.load(path, num_heads=1).preprocess
        assert (statistics.mean, statistics.std) == IMAGENET
    config = {"pretrained_cfg": {"mean": [0.0, 0.1, 0.2], "std": [1.0, 1.0, 1.0]}}
    (tmp_path / "DeiT-x" / "config.json").write_text(json.dumps(config))
    assert vitx.load(tmp_path / "DeiT-x", num_heads=1).preprocess.mean == (0.0, 0.1, 0.2)


# timm's config.json: what the architecture and its arguments say beyond the tensors.


def timm_folder(folder, model, config):
    """A folder as timm's hub has it: model.safetensors without metadata, and config.json."""
    save_file(tensors_of(model, folder), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("vit_huge_patch14_224", 16),
        ("vit_giant_patch14_224", 16),
        ("vit_gigantic_patch14_224", 16),
        ("vit_so400m_patch14_siglip_224", 16),
        ("vit_giantopt_patch16_siglip_256", 16),
        ("test_vit.r160_in1k", 2),
        ("deit_small_patch16_224", 6),
        ("vit_unknown_patch16_224", None),
    ],
)
def test_timm_architectures_have_their_heads(architecture, heads):
    for config in (
        {"architecture": architecture},
        {"pretrained_cfg": {"architecture": architecture}},
    ):
        assert read_timm(config, {}).get("num_heads") == heads
    assert read_timm(config | {"model_args": {"num_heads": 5}}, {})["num_heads"] == 5


def test_number_of_heads(tmp_path):
    """`load`'s argument, the metadata, the file's model_args, its architecture, and width / 64 in the end."""
    model = square_vit(width=128, heads=16, depth=1)
    # A file with timm's metadata, "format" alone, is what timm's hub has.
    config = {"architecture": "vit_huge_patch14_224"}
    assert nnx.graphdef(vitx.load(timm_folder(tmp_path, model, config))) == nnx.graphdef(model)
    config |= {"model_args": {"num_heads": 1}}
    assert vitx.load(timm_folder(tmp_path, model, config)).blocks[0].attn.heads == 1
    assert vitx.load(tmp_path, num_heads=4).blocks[0].attn.heads == 4
    vitx.save(model, tmp_path)
    assert vitx.load(tmp_path).blocks[0].attn.heads == 16
    assert guessed(timm_folder(tmp_path, model, {})).blocks[0].attn.heads == 2


def test_timm_arguments_that_vitx_computes(tmp_path):
    model = square_vit()
    arguments = {
        "num_heads": 2,
        "img_size": 16,
        "patch_size": [4, 4],
        "embed_dim": 12,
        "depth": 2,
        "mlp_ratio": 20 / 12,
        "in_chans": 3,
        "num_classes": 3,
        "global_pool": "token",
        "qkv_bias": True,
        "qk_norm": False,
        "init_values": None,
        "class_token": True,
        "no_embed_class": False,
        "reg_tokens": 0,
        "pre_norm": False,
        "fc_norm": None,
        "act_layer": "gelu",
        "norm_layer": "LayerNorm",
        "drop_rate": 0.5,
        "drop_path_rate": 0.1,
        "dynamic_img_size": True,
        "weight_init": "jax",
        "anything": None,
    }
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 99, 99]}
    config = {"architecture": "vit_x", "global_pool": "token", "model_args": arguments}
    loaded = vitx.load(timm_folder(tmp_path, model, config | {"pretrained_cfg": statistics}))
    assert_same_weights(loaded, model)
    assert loaded.preprocess == Preprocess((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), (16, 16))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("act_layer", "relu", "act_layer='relu'"),
        ("norm_layer", "rmsnorm", "norm_layer='rmsnorm'"),
        ("norm_layer", {"eps": 1e-5}, "norm_layer={'eps': 1e-05}"),
        ("qkv_bias", True, "qkv_bias=True"),  # where the tensors have none, and so on
        ("proj_bias", False, "proj_bias=False"),
        ("qk_norm", True, "qk_norm=True"),
        ("init_values", 1e-5, "init_values=1e-05"),
        ("class_token", True, "class_token=True"),
        ("reg_tokens", 4, "reg_tokens=4"),
        ("pre_norm", True, "pre_norm=True"),
        ("final_norm", True, "final_norm=True"),
        ("fc_norm", True, "fc_norm=True"),
        ("pos_embed", "none", "pos_embed='none'"),
        ("patch_size", 8, "patch_size=8"),
        ("in_chans", 1, "in_chans=1"),
        ("global_pool", "avgmax", "global_pool='avgmax'"),
        ("global_pool", "", "global_pool=''"),
        ("rope_type", "mixed", "rope_type='mixed'"),
    ],
)
def test_timm_arguments_that_vitx_does_not_compute(key, value, shown):
    tensors = {"patch_embed.proj.weight": Tensor((12, 3, 4, 4), np.zeros)}
    with pytest.raises(ValueError) as error:
        read_timm({"architecture": "vit_x", "model_args": {"num_heads": 2, key: value}}, tensors)
    assert_one_line(error, f"config.json: {shown}", "which vitx does not compute")


@pytest.mark.parametrize("pool", ["avgmax", "", 3])
def test_timm_pooling_outside_of_the_arguments(pool):
    for config in ({"global_pool": pool}, {"pretrained_cfg": {"global_pool": pool}}):
        with pytest.raises(ValueError, match=f"config.json: global_pool={pool!r}"):
            read_timm(config, {})
    # The arguments count before the top of the file, the top before pretrained_cfg, as in timm.
    read_timm({"global_pool": pool, "model_args": {"global_pool": "token"}}, {})
    read_timm({"global_pool": "token", "pretrained_cfg": {"global_pool": pool}}, {})


def test_all_arguments_that_are_not_computed_are_listed(tmp_path):
    arguments = {"qk_norm": True, "act_layer": "relu", **{f"new_{n}": "x" * 99 for n in range(20)}}
    with pytest.raises(ValueError) as error:
        vitx.load(timm_folder(tmp_path, square_vit(), {"model_args": arguments}), num_heads=2)
    assert_one_line(
        error, str(tmp_path), "config.json: qk_norm=True, act_layer='relu', new_0=", "and 10 more"
    )


def test_timm_image_size(tmp_path):
    wide = small_vit()  # 2 x 3 cells
    config = {"model_args": {"num_heads": 2, "img_size": [8, 12]}}
    assert nnx.graphdef(vitx.load(timm_folder(tmp_path, wide, config))) == nnx.graphdef(wide)
    config = {"model_args": {"num_heads": 2, "img_size": 10**6}}
    with pytest.raises(ValueError, match="img_size must be at most 8192"):
        vitx.load(timm_folder(tmp_path, wide, config))


@pytest.mark.parametrize(
    ("pretrained", "arguments", "size"),
    [
        ({"fixed_input_size": True, "input_size": [3, 8, 32]}, {}, (8, 32)),  # as many cells
        ({"fixed_input_size": True, "input_size": [3, 32, 20]}, {}, (32, 20)),
        ({"fixed_input_size": True, "input_size": [3, 32, 20]}, {"img_size": 8}, (8, 8)),
        ({"fixed_input_size": True}, {}, (16, 16)),
        # Models that take any size keep that of the embedding.
        ({"fixed_input_size": True, "input_size": [3, 32, 20]}, {"dynamic_img_size": 1}, (16, 16)),
        ({"input_size": [3, 32, 20]}, {}, (16, 16)),
        ({"input_size": [3, 8, 32]}, {}, (8, 32)),
        # Other cells: resampled, as in timm.
        ({}, {"img_size": [32, 8]}, (32, 8)),
        ({}, {"img_size": 8}, (8, 8)),
    ],
)
def test_timm_input_size(tmp_path, pretrained, arguments, size):
    model = square_vit()
    section = {"model_args": {"num_heads": 2} | arguments}
    expected = vitx.load(timm_folder(tmp_path, model, section), image_size=size)
    if size in ((8, 32), (32, 8)):  # as many cells: the grid of the embedding, in timm too
        expected.pos_embed.set_value(model.pos_embed[...])
    for config in (pretrained, {"pretrained_cfg": pretrained}):
        loaded = vitx.load(timm_folder(tmp_path, model, section | config))
        assert (loaded.preprocess.size, loaded.grid) == (size, (size[0] // 4, size[1] // 4))
        assert_same_weights(loaded, expected)
    assert vitx.load(tmp_path, image_size=(16, 16)).grid == (4, 4)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_args": []}, "config.json: model_args must be an object, not \\[\\]"),
        ({"pretrained_cfg": "x"}, "config.json: pretrained_cfg must be an object, not 'x'"),
        ({"architecture": 3}, "config.json: architecture must be a text, not 3"),
        ({"input_size": "16"}, r"input_size must be \[channels, height, width\], not '16'"),
        ({"input_size": [3, 16]}, "input_size must be a side or"),
        ({"input_size": [1, 16, 16]}, "config.json: in_chans=1, which vitx does not compute"),
        ({"input_size": [3, "a", 16], "fixed_input_size": True}, "img_size must be a side or"),
        ({"model_args": {"num_heads": "2"}}, "num_heads must be a positive whole number, not '2'"),
    ],
)
def test_timm_configs_of_another_form(tmp_path, config, what):
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(timm_folder(tmp_path, square_vit(), config))
    assert_one_line(error)


# What a caller may change.


def cubic_matrix(old, new):
    """Antialiased bicubic, (new, old): Keys' kernel with a = -1/2, widened when shrinking."""
    scale = old / new
    width = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        for j in range(old):
            t = abs((j + 0.5) - (i + 0.5) * scale) / width
            if t < 1:
                matrix[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1
            elif t < 2:
                matrix[i, j] = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("own", "size"),
    [
        *[((16, 16), size) for size in ((32, 32), (8, 8), (20, 12), (4, 40))],
        ((8, 12), (12, 8)),  # as many cells on another grid
    ],
)
def test_image_size_resamples_the_position_embedding(tmp_path, own, size):
    model = small_vit(size=own)
    vitx.save(model, tmp_path / "w.safetensors")
    loaded = vitx.load(tmp_path / "w.safetensors", image_size=size)
    assert loaded.preprocess.size == size
    (height, width), grid = model.grid, (size[0] // 4, size[1] // 4)
    assert loaded.grid == grid
    table = np.asarray(model.pos_embed[...], np.float64)[0]
    rows, columns = cubic_matrix(height, grid[0]), cubic_matrix(width, grid[1])
    cells = np.einsum("ia,jb,abd->ijd", rows, columns, table[1:].reshape(height, width, -1))
    expected = np.concatenate([table[:1], cells.reshape(-1, 12)])
    np.testing.assert_allclose(loaded.pos_embed[0], expected, atol=1e-6)


def test_image_size(tmp_path):
    path, plain = tmp_path / "own.safetensors", tmp_path / "plain.safetensors"
    model = small_vit()  # 2 x 3 patches
    vitx.save(model, path)
    save_file(load_file(path), plain)
    assert vitx.load(path, image_size=(16, 24)).grid == (4, 6)
    with pytest.raises(ValueError, match="pos_embed has 7 entries"):
        vitx.load(plain, num_heads=2)
    assert_same_weights(vitx.load(plain, num_heads=2, image_size=(8, 12)), model)
    with pytest.raises(ValueError, match=r"\(10, 12\) is not a multiple of the patch, 4 pixels"):
        vitx.load(path, image_size=(10, 12))
    for equal in (np.array([16, 24]), [16, 24], (np.int64(16), 24), jnp.array([16, 24])):
        assert vitx.load(path, image_size=equal).preprocess.size == (16, 24)
    for side in (np.int64(12), np.array(12), jnp.array(12)):
        assert vitx.load(path, image_size=side).preprocess.size == (12, 12)
    for wrong in (0, (8, 12, 3), "224", (8, -12), 8.0, np.array([8.0, 12.0]), True, {8: 1, 12: 1}):
        with pytest.raises(ValueError, match=r"^image_size must be a side or \(H, W\)"):
            vitx.load(path, image_size=wrong)


def test_counts_may_be_of_any_library(tmp_path):
    path = tmp_path / "m.safetensors"
    vitx.save(small_vit(), path)
    for three in (np.int64(3), np.array(3), jnp.array(3)):
        model = vitx.load(path, num_heads=three, num_classes=three, norm_eps=np.float32(0.5))
        assert (model.blocks[0].attn.heads, model.num_classes) == (3, 3)
        assert model.norm.epsilon == 0.5 and type(model.norm.epsilon) is float
    for name in ("num_heads", "num_classes"):
        for wrong in (3.0, np.float64(3), True, np.True_, np.array([3]), "3", 0):
            with pytest.raises(ValueError, match=f"^{name} must be a positive whole number"):
                vitx.load(path, **{name: wrong})
    for wrong in (True, "1", 0, np.nan):
        with pytest.raises(ValueError, match=r"^norm_eps must be a positive number"):
            vitx.load(path, norm_eps=wrong)


@pytest.mark.slow
def test_num_classes_replaces_the_head(tmp_path):
    model = small_vit()
    path = tmp_path / "m.safetensors"
    vitx.save(model, path)
    assert_same_weights(vitx.load(path, num_classes=3), model)
    loaded = vitx.load(path, num_classes=7)
    assert loaded.num_classes == 7 and loaded.head.kernel.shape == (12, 7)
    assert 0 < np.abs(loaded.head.kernel[...]).max() < 1
    np.testing.assert_array_equal(loaded.head.bias[...], 0)
    assert_same_weights(vitx.load(path, num_classes=7), loaded)
    loaded.head = model.head
    assert_same_weights(loaded, model)


def test_hidden_layer_of_the_head(tmp_path):
    tensors = tensors_of(square_vit(), tmp_path)
    hidden = {"pre_logits.fc.weight": np.ones((12, 12), np.float32)}
    save_file(tensors | hidden, tmp_path / "in21k.safetensors")
    with pytest.raises(ValueError, match=r"pre_logits\.fc\.weight.* give num_classes"):
        vitx.load(tmp_path / "in21k.safetensors", num_heads=2)
    # The file's head reads the hidden layer, so it goes even where it has as many outputs.
    loaded = vitx.load(tmp_path / "in21k.safetensors", num_heads=2, num_classes=3)
    assert not np.array_equal(loaded.head.kernel[...].T, tensors["head.weight"])


def test_dtype(tmp_path):
    tensors = tensors_of(square_vit(), tmp_path)
    path = tmp_path / "half.safetensors"
    for half in (np.float16, ml_dtypes.bfloat16):
        save_file({name: array.astype(half) for name, array in tensors.items()}, path)
        loaded = vitx.load(path, num_heads=2)
        assert loaded.norm.bias.dtype == np.float32
        rounded = tensors["norm.bias"].astype(half).astype(np.float32)
        np.testing.assert_array_equal(loaded.norm.bias[...], rounded)
        assert vitx.load(path, num_heads=2, dtype=half).norm.bias.dtype == half
    save_file({name: array.astype(np.float64) for name, array in tensors.items()}, path)
    assert vitx.load(path, num_heads=2).norm.bias.dtype == np.float32
    with pytest.raises(ValueError, match="float64 needs jax_enable_x64"):
        vitx.load(path, num_heads=2, dtype="float64")
    for wrong in ("int32", "floaty", 3):
        with pytest.raises(ValueError, match="dtype must be a float type"):
            vitx.load(path, num_heads=2, dtype=wrong)


# What is refused.


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "Swin"),
        (["swin.encoder.layers.0.blocks.0.layernorm_before.weight"], "Swin"),
        (["blocks.0.attn.q_bias", "blocks.0.attn.relative_position_bias_table"], "BEiT"),
        (["beit.encoder.layer.0.lambda_1"], "BEiT"),
        (["stem.0.weight", "stages.0.blocks.0.conv_dw.weight"], "ConvNeXt"),
        (["stages.0.layers.0.depthwise_conv.weight"], "ConvNeXt"),  # DINOv3's
        (["visual.class_embedding", "logit_scale"], "a CLIP with the names of OpenAI"),
        (["img/MAPHead_0/probe"], "a SigLIP with the names of big_vision"),
        (["storage_tokens", "blocks.0.ls1.gamma"], "a DINOv3 with Meta's names"),
        (["blocks.0.attn.q_norm.weight"], "normalised queries and keys"),
        (["blocks.0.attn.norm.weight"], "a norm inside its attention"),
        (["blocks.0.attn.qkv.weight", "decoder_blocks.0.norm1.weight"], "masked autoencoder"),
        (["blocks.0.mlp_tokens.fc1.weight"], "MLP-Mixer"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "ResNet"),
        (["bert.encoder.weight"], "no names of a Vision Transformer.*bert.encoder.weight"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, names, what):
    path = tmp_path / "w.safetensors"
    save_file({f"module.{name}": np.ones((2, 2), np.float32) for name in names}, path)
    with pytest.raises(ValueError, match=what) as error:
        vitx.load(path)
    assert_one_line(error, str(path))


def test_another_stem_is_refused(tmp_path):
    tensors = tensors_of(resnet_hybrid(), tmp_path)
    deeper = {"patch_embed.backbone.stages.3.blocks.0.conv1.weight": np.ones((2, 2, 1, 1))}
    save_file(tensors | deeper, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no ResNetV2 of three stages"):
        vitx.load(tmp_path / "w.safetensors")


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("notes.txt", "no weights")
    return buffer.getvalue()


ONE = {"cls_token": np.ones((1, 1, 64), np.float32)}
BAD_FILES = {
    "empty": (b"", "the file is empty"),
    "text": (b"these are not the weights", "no .safetensors, PyTorch or .npz file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "truncated safetensors": (save(ONE)[:-7], "damaged or no .safetensors file"),
    "cut header": (save(ONE)[:30], "damaged or no .safetensors file"),
    "no tensors": (save({}), "no tensors"),
    "truncated npz": (npz_bytes(**ONE)[:-40], "damaged"),
    "objects": (npz_bytes(cls=np.array([{}], object)), "Object arrays cannot be loaded"),
    "another zip": (zip_bytes(), "a zip archive, but neither"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path, kind):
    content, what = BAD_FILES[kind]
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        vitx.load(path)
    assert_one_line(error, str(path), what)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as error:
        vitx.load(tmp_path / "nothing.safetensors")
    assert_one_line(error, "nothing.safetensors")
    with pytest.raises(ValueError, match=r"the folder has no checkpoint.*model\.safetensors"):
        vitx.load(tmp_path)


def test_mismatch_lists_names_and_shapes(tmp_path):
    tensors = tensors_of(square_vit(), tmp_path)
    path = tmp_path / "w.safetensors"
    changed = dict(tensors)
    del changed["blocks.1.norm2.bias"]
    changed["blocks.1.attn.proj.weight"] = np.ones((12, 13), np.float32)
    changed["blocks.1.extra.weight"] = np.ones((2, 3), np.float32)
    save_file(changed, path)
    with pytest.raises(ValueError) as error:
        vitx.load(path, num_heads=2)
    assert_one_line(
        error,
        "- blocks.1.norm2.bias (12,)",
        "- blocks.1.attn.proj.weight (12, 12)",
        "+ blocks.1.attn.proj.weight (12, 13)",
        "+ blocks.1.extra.weight (2, 3)",
    )
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "head.weight"):
        save_file({key: value for key, value in tensors.items() if key != name}, path)
        with pytest.raises(ValueError, match=f"- {name} is missing"):
            vitx.load(path, num_heads=2)
    for more, heads, what in (
        ({"blocks.99999999.x": np.ones(12)}, 2, r"\+ blocks\.99999999\.x \(12,\)"),
        ({f"extra{i}": np.ones(1) for i in range(40)}, 2, "and 28 more"),
        ({"pos_embed": np.ones((17, 12))}, 2, r"has shape \(17, 12\), where 3 axes"),
        ({}, 5, "width 12 is not a multiple of the number of heads, 5"),
    ):
        save_file(tensors | more, path)
        with pytest.raises(ValueError, match=what):
            vitx.load(path, num_heads=heads)


def test_values_that_are_no_weights(tmp_path):
    tensors = tensors_of(square_vit(), tmp_path)
    path, name = tmp_path / "w.safetensors", "blocks.1.mlp.fc2.bias"
    row = np.arange(12, dtype=np.float32)
    for changed, metadata, what in (
        ({name: np.where(row == 4, np.nan, row)}, {}, rf"{name} has NaN or infinite"),
        ({name: np.where(row == 4, -np.inf, row)}, {}, rf"{name} has NaN or infinite"),
        ({"norm.bias": row.astype(np.int8)}, {}, r"norm\.bias holds int8"),
        ({}, {"num_heads": "two"}, "metadata num_heads is no JSON"),
        ({}, {"std": "[0.5, 0, 0.5]"}, "std must be positive"),
        ({}, {"mean": "[0.5, 0.5]"}, "mean must be three numbers"),
        ({}, {"norm_eps": "-1"}, "norm_eps must be a positive number"),
    ):
        save_file(tensors | changed, path, {"num_heads": "2"} | metadata)
        with pytest.raises(ValueError, match=what):
            vitx.load(path)


# PyTorch's files.


def test_torch_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"torch is missing: install vitx\[torch\]") as error:
        vitx.load(tmp_path / "w.pth")
    assert_one_line(error, "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_torch_files(tmp_path, zipped, wrapper):
    torch = pytest.importorskip("torch")
    model = square_vit()
    state = {
        f"module.{name}": torch.from_numpy(array.copy())
        for name, array in tensors_of(model, tmp_path).items()
    }
    value = {"epoch": 3, wrapper: state} if wrapper else state
    path = tmp_path / "w.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert_same_weights(vitx.load(path, num_heads=2), model)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError) as error:
        vitx.load(path, num_heads=2)
    assert_one_line(error, "damaged")


class Planted:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_run_no_code(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    torch.save({"a": Planted(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        vitx.load(path)
    assert_one_line(error, "mkdir", "may run code")
    path.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(ValueError):
        vitx.load(path)
    assert not (tmp_path / "ran").exists()


def test_torch_half_and_other_contents(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    state = {
        name: torch.from_numpy(array.copy()).bfloat16()
        for name, array in tensors_of(square_vit(), tmp_path).items()
    }
    torch.save(state, path)
    loaded = vitx.load(path, num_heads=2)
    np.testing.assert_array_equal(loaded.norm.bias[...], state["norm.bias"].float().numpy())
    for value, what in (([1, 2], "holds a list"), ({"epoch": 3}, "no tensors")):
        torch.save(value, path)
        with pytest.raises(ValueError, match=what):
            vitx.load(path)


@pytest.mark.slow
def test_vit_base_loads_in_seconds_and_twice_its_size(tmp_path):
    path = tmp_path / "base.safetensors"
    vitx.save(filled(lambda: vitx.create("vit_base_patch16_224")), path)
    script = """
        import sys, time
        import jax, jax.numpy as jnp, vitx
        from flax import nnx

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

        jnp.zeros(1).block_until_ready()
        before, start = peak(), time.perf_counter()
        model = vitx.load(sys.argv[1])
        jax.block_until_ready(nnx.state(model))
        print(time.perf_counter() - start, peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    seconds, memory = map(float, done.stdout.split())
    assert seconds < 5
    assert memory <= 2 * path.stat().st_size


def test_digest_follows_whatever_a_model_is_made_from(tmp_path):
    def put(name, beside=None):
        folder = tmp_path / name
        vitx.save(small_vit(), folder)
        if beside is not None:
            (folder / "config.json").write_text(beside)
        return digest(folder)

    plain = put("a")
    assert plain == put("b") == digest(tmp_path / "b" / "model.safetensors")
    assert len({plain, put("c", "{}"), put("d", '{"mean": 1}'), put("deit")}) == 4
    with pytest.raises(FileNotFoundError, match="no such file"):
        digest(tmp_path / "e")


def test_an_affinity_net_is_no_classifier(tmp_path):
    path = tmp_path / "model.safetensors"
    vitx.save(small_affinity_net(), path)
    for options in ({}, {"num_classes": 3}, {"num_heads": 2}, {"num_classes": 3, "image_size": 16}):
        with pytest.raises(ValueError) as error:
            load_classifier(path, **options)
        assert_one_line(error, str(path), "holds an AffinityNet", "give a classifier's weights")
    vitx.save(small_vit(), path)
    loaded = load_classifier(path, num_heads=0, image_size=np.array([16, 24]), num_classes=0)
    assert loaded.preprocess.size == (16, 24)


def test_no_stage_takes_an_affinity_net_for_a_classifier(tmp_path):
    vitx.save(small_affinity_net(), tmp_path)
    model = ConfigDict({"checkpoint": str(tmp_path), "image_size": 16})
    sections = {"model": model, "seeds": None, "affinity": None}
    finished = SimpleNamespace(folder=tmp_path)
    run = SimpleNamespace(config=SimpleNamespace(**sections), finished=lambda name: finished)
    for start in (
        lambda: initial_model(run, 2),
        lambda: initial_net(run),
        lambda: make_seeds(run, finished),
    ):
        with pytest.raises(ValueError) as error:
            start()
        assert_one_line(error, str(tmp_path), "holds an AffinityNet", "give a classifier's weights")
