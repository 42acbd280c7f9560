"""Files of timm and transformers, made small: each is equal to what the library computes, or refused by its name."""

import gzip
import json
import re
import warnings
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import vitx
from tests.golden import make_layouts
from vitx.weights.build import build
from vitx.weights.files import Checkpoint
from vitx.weights.metadata import Overrides, read_metadata
from vitx.weights.names import recognise
from vitx.weights.tensor import Tensor


def golden(name):
    return json.loads(gzip.decompress((make_layouts.HERE / name).read_bytes()))


CASES = golden("layouts.json.gz")
ARCHITECTURES = golden("timm_architectures.json.gz")
READ = sorted(name for name, case in CASES.items() if "refused" not in case)
REFUSED = sorted(CASES.keys() - set(READ))


def written(case, folder):
    tensors = make_layouts.weights(case["shapes"])
    save_file(
        {name: array.astype(np.float32) for name, array in tensors.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(case["config"]))
    return folder


def test_there_are_a_hundred_files():
    assert len(READ) >= 85 and len(REFUSED) >= 45


@pytest.mark.parametrize("name", READ)
def test_a_file_is_equal_to_its_library(name, tmp_path):
    case = CASES[name]
    model = vitx.load(written(case, tmp_path))  # a warning of guessed heads would be an error
    assert model.preprocess.size == tuple(case["size"]) and model.assumed == ()
    x = make_layouts.images(case["size"]).transpose(0, 2, 3, 1).astype(np.float32)
    found, expected = np.asarray(model(jnp.asarray(x)))[0], np.array(case["output"])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_by_its_name(name, tmp_path):
    case = CASES[name]
    with pytest.raises(ValueError, match=case["refused"]) as error:
        vitx.load(written(case, tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def abstract(name, facts):
    """The model, without weights, of a file of one of timm's architectures as the hub has it."""
    tensors = {
        key: Tensor(tuple(shape), partial(np.zeros, shape))
        for key, shape in facts["shapes"].items()
    }
    named = recognise(tensors)
    config = {"architecture": f"{name}.some_in1k", "global_pool": facts["pool"]}
    config |= {"num_classes": 0, "pretrained_cfg": {"input_size": facts["input_size"]}}
    checkpoint = Checkpoint(Path("model.safetensors"), tensors, {}, config, {})
    return build(named.tensors, read_metadata(checkpoint, named), Overrides())


def test_every_architecture_of_timm_has_its_settings_or_is_refused():
    """Heads, epsilon and activation of all of timm's Vision Transformers; none of them is guessed."""
    acts = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "tanh_gelu", "SiLU": "silu"}
    refused = {}
    for name, facts in ARCHITECTURES.items():
        try:
            model = abstract(name, facts)
        except ValueError as error:
            refused[name] = str(error)
            continue
        block = model.blocks[0]
        assert (block.attn.heads, model.assumed) == (facts["heads"], ()), name
        assert block.norm1.epsilon == facts["eps"], name
        assert model.design.activation == acts[facts["act"]], name
        pooling = {"token": "class", "avg": "mean", "map": "attention"}[facts["pool"]]
        assert model.design.pooling in (pooling, "class+distillation"), name
        assert (model.width, model.design.class_token) == (
            facts["width"],
            "cls_token" in facts["shapes"],
        )
    reasons = "|".join(
        (
            "architecture='",
            "an AIMv2",
            "RMSNorm",
            "inside its attention",
            "normalised queries",
            "differential",
            "another stem than R50",
            "no ResNetV2 of three stages",
            "is not a multiple of the patch",
            "side by side",
        )
    )
    unclear = {name: why for name, why in refused.items() if not re.search(reasons, why)}
    assert not unclear
    assert len(refused) < len(ARCHITECTURES) / 2


@pytest.mark.parametrize("name", sorted(make_layouts.HF))
def test_transformers_still_computes_the_stored_numbers(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings(action="ignore"):
        made = make_layouts.transformers_case(*make_layouts.HF[name])
    stored = CASES[f"transformers: {name}"]
    assert made["shapes"] == stored["shapes"]
    np.testing.assert_allclose(made["output"], stored["output"], rtol=1e-9, atol=1e-12)
