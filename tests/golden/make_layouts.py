"""Makes layouts.json.gz: small files of timm and transformers, and what these libraries compute from them.

Run: python tests/golden/make_layouts.py timm; python tests/golden/make_layouts.py transformers
(needs torch and the library, whose version is in README.md; the other one's cases stay).
With `architectures`, it makes timm_architectures.json.gz: of each of timm's Vision Transformers the settings that no
tensor shows, and the shapes of all tensors but those of the blocks after the first.

Each case has the shapes of a file's tensors under the file's own names, whose values the rule of README.md gives, its
config.json, the size of its images and the output, or `refused`: words in vitx's error. Of files that are refused by
their names, tensors are cut to at most two numbers an axis.
"""

import gzip
import json
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 21
SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}


def weights(shapes, seed=SEED):
    """The rule of README.md."""
    out = {}
    for name, shape in shapes.items():
        a = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape)
        if ("norm" in name and name.endswith("weight")) or name.endswith(("gamma", "lambda1")):
            a = 1 + 0.1 * a
        elif name.endswith("bias") or len(shape) < 2 or name in ("pos_embed", "cls_token"):
            a = 0.02 * a
        else:
            a = a / np.sqrt(np.prod(shape[1:]))
        out[name] = np.asarray(a, order="C")
    return out


def images(size):
    return np.random.RandomState(1000 + SEED).standard_normal((1, 3, *size))


def vit(**arguments):
    return "vit_tiny_patch16_224", SMALL | arguments


def arch(name, **arguments):
    return name, SMALL | arguments


# Name: (architecture, arguments of create_model).
TIMM = {
    "plain": vit(),
    **{f"{heads} heads": vit(num_heads=heads) for heads in (1, 2, 3, 6, 12)},
    **{f"act_layer {act}": vit(act_layer=act) for act in ("gelu_tanh", "quick_gelu", "silu")},
    "avg": vit(global_pool="avg"),
    "avg without fc_norm": vit(global_pool="avg", fc_norm=False),
    "token with fc_norm": vit(fc_norm=True),
    "map": vit(global_pool="map"),
    "map without class token": vit(global_pool="map", class_token=False),
    "avg without class token": vit(global_pool="avg", class_token=False),
    "avg without class token, without fc_norm": vit(
        global_pool="avg", class_token=False, fc_norm=False
    ),
    "no_embed_class": vit(no_embed_class=True),
    "registers": vit(reg_tokens=2),
    "registers without positions": vit(reg_tokens=2, no_embed_class=True),
    "registers, avg": vit(reg_tokens=2, global_pool="avg"),
    "pre_norm": vit(pre_norm=True),
    "no qkv bias": vit(qkv_bias=False),
    "LayerScale": vit(init_values=1e-5),
    "no final norm": vit(final_norm=False),
    "patch 8": vit(patch_size=8),
    "not square": vit(img_size=(32, 64)),
    "dynamic size": vit(dynamic_img_size=True),
    "drop path": vit(drop_path_rate=0.1, proj_drop_rate=0.1),
    "mlp_ratio 2": vit(mlp_ratio=2.0),
    "no classes": vit(num_classes=0),
    "tiny patch 32": arch("vit_small_patch32_224", img_size=64),
    "patch 8 by name": arch("vit_base_patch8_224", img_size=16),
    "gap": arch("vit_base_patch16_gap_224"),
    "huge": arch("vit_huge_patch14_224", img_size=28),
    "giant": arch("vit_giant_patch14_224", img_size=28),
    "huge gap": arch("vit_huge_patch14_gap_224", img_size=28),
    "eva_large": arch("eva_large_patch14_196", img_size=28),
    "medium gap": arch("vit_medium_patch16_gap_240"),
    "medium reg4 gap": arch("vit_medium_patch16_reg4_gap_256"),
    "wee reg1 gap": arch("vit_wee_patch16_reg1_gap_256"),
    "so150m reg4 map": arch("vit_so150m_patch16_reg4_map_256"),
    "intern300m": arch("vit_intern300m_patch14_448", img_size=28),
    "tipsv2": arch("vit_base_patch14_reg1_tipsv2", img_size=28),
    "miil": arch("vit_base_patch16_224_miil"),
    "plus clip": arch("vit_base_patch16_plus_clip_240"),
    "clip": arch("vit_base_patch16_clip_224"),
    "clip quickgelu": arch("vit_base_patch32_clip_quickgelu_224", img_size=64),
    "siglip": arch("vit_base_patch16_siglip_224"),
    "siglip, exact gelu": arch("vit_base_patch16_siglip_256"),
    "siglip patch 32": arch("vit_base_patch32_siglip_256", img_size=64),
    "siglip gap": arch("vit_base_patch16_siglip_gap_224"),
    "so400m siglip": arch("vit_so400m_patch14_siglip_224", img_size=28),
    "flexivit": arch("flexivit_small"),
    "deit": arch("deit_tiny_patch16_224"),
    "deit distilled": arch("deit_tiny_distilled_patch16_224"),
    "deit3": arch("deit3_small_patch16_224"),
    "deit3, avg": arch("deit3_small_patch16_224", global_pool="avg"),
    "dinov2": arch("vit_small_patch14_dinov2", img_size=28),
    "dinov2 with classes": arch("vit_small_patch14_dinov2", img_size=28, num_classes=7),
    "dinov2 reg4": arch("vit_small_patch14_reg4_dinov2", img_size=28),
    "dinov2 giant": arch("vit_giant_patch14_dinov2", img_size=28),
    "dinov3": arch("vit_small_patch16_dinov3"),
    "dinov3 qkvb": arch("vit_small_patch16_dinov3_qkvb"),
    "dinov3 plus": arch("vit_small_plus_patch16_dinov3"),
    "dinov3, token": arch("vit_small_patch16_dinov3", global_pool="token"),
    "eva02": arch("eva02_tiny_patch14_336", img_size=28),
    "eva02 base": arch("eva02_base_patch14_448", img_size=28),
    "eva02, token": arch("eva02_tiny_patch14_336", img_size=28, global_pool="token"),
    "test_vit": ("test_vit", {"num_classes": 5}),
    "test_vit2": ("test_vit2", {"num_classes": 5}),
}

# Name: (architecture, arguments, words in the refusal). The tensors themselves are real where the first is "vit...".
TIMM_REFUSED = {
    "act_layer relu": (*vit(act_layer="relu"), "act_layer='relu'"),
    "act_layer hard_swish": (*vit(act_layer="hard_swish"), "act_layer='hard_swish'"),
    "avgmax": (*vit(global_pool="avgmax"), "global_pool='avgmax'"),
    "max": (*vit(global_pool="max"), "global_pool='max'"),
    "no pooling": (*vit(global_pool=""), "global_pool=''"),
    "qk_norm": (*vit(qk_norm=True), "normalised queries and keys"),
    "no proj bias": (*vit(proj_bias=False), "proj_bias=False"),
    "rmsnorm": (*vit(norm_layer="rmsnorm"), "norm_layer='rmsnorm'"),
    "one channel": (*vit(in_chans=1), "in_chans=1"),
    "no positions": (*vit(pos_embed="none"), "pos_embed='none'"),
    "scale_attn_norm": (*vit(scale_attn_norm=True), "a norm inside its attention"),
    "scale_mlp_norm": (*vit(scale_mlp_norm=True), "mlp_norm needs a gated mlp"),
    "pool_include_prefix": (
        *vit(global_pool="avg", pool_include_prefix=True),
        "pool_include_prefix=True",
    ),
    "test_vit3": ("test_vit3", {}, "architecture='test_vit3'"),
    "test_vit4": ("test_vit4", {}, "norms are RMSNorm"),
    "rope": (*arch("vit_small_patch16_rope_224"), "architecture='vit_small_patch16_rope_224'"),
    "rope mixed": (
        *arch("vit_small_patch16_rope_mixed_ape_224"),
        "architecture='vit_small_patch16_rope_mixed_ape_224'",
    ),
    "pe core": (*arch("vit_pe_core_tiny_patch16_384"), "architecture='vit_pe_core_tiny_"),
    "sapiens2": ("vit_base_patch16_sapiens2", {}, "normalised queries and keys"),
    "radio": (*arch("vit_base_patch16_radio_v3"), "architecture='vit_base_patch16_radio_v3'"),
    "rpn": (*arch("vit_base_patch16_rpn_224"), "architecture='vit_base_patch16_rpn_224'"),
    "parallel": (*arch("vit_small_patch16_18x2_224"), "attention and MLP side by side"),
    "xp": (*arch("vit_base_patch16_xp_224"), "attention and MLP side by side"),
    "differential": (*arch("vit_dwee_patch16_reg1_gap_256"), "differential attention"),
    "relpos": ("vit_relpos_small_patch16_224", {"depth": 1}, "relative positions"),
    "naflex": ("naflexvit_base_patch16_gap", {"depth": 1}, "architecture='naflexvit_base"),
    "beit": (*arch("beit_base_patch16_224"), "a BEiT"),
    "beitv2": (*arch("beitv2_base_patch16_224"), "a BEiT"),
    "beit3": (*arch("beit3_base_patch16_224"), "a norm inside its attention"),
    "eva giant": (*arch("eva_giant_patch14_224", img_size=28), "architecture='eva_giant"),
    "eva02 clip": (*arch("eva02_base_patch16_clip_224"), "a norm inside its attention"),
    "aimv2": (*arch("aimv2_large_patch14_224", img_size=28), "an AIMv2"),
    "mci hybrid": ("vit_base_mci_224", {"depth": 1}, "another stem than R50"),
    "r26 hybrid": ("vit_small_r26_s32_224", {"depth": 1}, "no ResNetV2 of three stages"),
    "swin": ("swin_tiny_patch4_window7_224", {}, "a Swin"),
    "convnext": ("convnext_atto", {}, "a ConvNeXt"),
    "mixer": ("mixer_s32_224", {}, "an MLP-Mixer"),
}


# Name: (class of transformers, settings of its config, the attribute of the output); refused: words in place of it.
HF_SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
VIT = HF_SIZES | {"intermediate_size": 96, "patch_size": 8, "num_labels": 5}
DINO = HF_SIZES | {"mlp_ratio": 2, "patch_size": 8, "num_labels": 5}
_TOWER = HF_SIZES | {"intermediate_size": 96, "patch_size": 8}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_TEXT |= {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
BOTH = {"vision_config": _TOWER, "text_config": _TEXT}
HF = {
    "vit": ("ViTForImageClassification", VIT, "logits"),
    **{
        f"vit {act}": ("ViTForImageClassification", VIT | {"hidden_act": act}, "logits")
        for act in ("quick_gelu", "gelu_pytorch_tanh", "silu")
    },
    "vit 2 heads": ("ViTForImageClassification", VIT | {"num_attention_heads": 2}, "logits"),
    "vit epsilon": ("ViTForImageClassification", VIT | {"layer_norm_eps": 1e-3}, "logits"),
    "vit not square": ("ViTForImageClassification", VIT | {"image_size": [16, 32]}, "logits"),
    "vit msn": ("ViTMSNForImageClassification", VIT, "logits"),
    "ijepa": ("IJepaForImageClassification", VIT, "logits"),
    "deit": ("DeiTForImageClassification", VIT, "logits"),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", VIT, "logits"),
    "dinov2": ("Dinov2Model", DINO, "pooler_output"),
    "dinov2 classes": ("Dinov2ForImageClassification", DINO, "logits"),
    "dinov2 swiglu": ("Dinov2Model", DINO | {"use_swiglu_ffn": True}, "pooler_output"),
    "dinov2 registers": ("Dinov2WithRegistersModel", DINO, "pooler_output"),
    "dinov2 registers, classes": ("Dinov2WithRegistersForImageClassification", DINO, "logits"),
    "dinov3": ("DINOv3ViTModel", VIT | {"num_register_tokens": 4}, "pooler_output"),
    "dinov3 gated": (
        "DINOv3ViTModel",
        VIT | {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4},
        "pooler_output",
    ),
    "dinov3 key bias": ("DINOv3ViTModel", VIT | {"key_bias": True}, "pooler_output"),
    "clip vision": ("CLIPVisionModel", _TOWER, "pooler_output"),
    "clip vision gelu": ("CLIPVisionModel", _TOWER | {"hidden_act": "gelu"}, "pooler_output"),
    "clip projection": (
        "CLIPVisionModelWithProjection",
        _TOWER | {"projection_dim": 24},
        "image_embeds",
    ),
    "siglip vision": ("SiglipVisionModel", _TOWER, "pooler_output"),
}
HF_REFUSED = {
    "vit gelu_new": ("ViTForImageClassification", VIT | {"hidden_act": "gelu_new"}, "gelu_new"),
    "vit relu": ("ViTForImageClassification", VIT | {"hidden_act": "relu"}, "hidden_act='relu'"),
    "vit no bias": ("ViTForImageClassification", VIT | {"qkv_bias": False}, "qkv_bias=False"),
    "vit without head": ("ViTModel", VIT, "give num_classes"),
    "clip classes": ("CLIPForImageClassification", BOTH, "mean of the patches"),
    "siglip classes": ("SiglipForImageClassification", BOTH, "mean of the patches"),
    "siglip without pooling": (
        "SiglipVisionModel",
        _TOWER | {"vision_use_head": False},
        "vision_use_head=False",
    ),
    "siglip2": ("Siglip2VisionModel", _TOWER, "NaFlex SigLIP 2|model_type='siglip2"),
    "dinov3 unequal biases": ("DINOv3ViTModel", VIT | {"query_bias": False}, "query_bias"),
    "beit": ("BeitForImageClassification", VIT | {"use_relative_position_bias": True}, "a BEiT"),
    "data2vec": ("Data2VecVisionForImageClassification", VIT, "a BEiT or data2vec"),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 12, "depths": [1], "num_heads": [2]},
        "Swin",
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4},
        "ConvNeXt",
    ),
    "mae": ("ViTMAEForPreTraining", VIT | {"decoder_hidden_size": 32}, "masked autoencoder"),
    "aimv2": ("Aimv2VisionModel", _TOWER, "AIMv2"),
    "yolos": ("YolosForObjectDetection", VIT | {"image_size": [32, 32]}, "model_type='yolos'"),
    "videomae": ("VideoMAEForVideoClassification", VIT, "model_type='videomae'"),
    "vivit": ("VivitForVideoClassification", VIT, "model_type='vivit'"),
    "timesformer": ("TimesformerForVideoClassification", VIT, "model_type='timesformer'"),
    "vitdet": (
        "VitDetModel",
        VIT | {"pretrain_image_size": 32},
        "model_type='vitdet'|no names of a Vision",
    ),
    "segformer": (
        "SegformerForImageClassification",
        {},
        "no names of a Vision|a ConvNeXt|SegFormer",
    ),
    "hiera": ("HieraForImageClassification", {}, "model_type='hiera'"),
    "altclip": ("AltCLIPVisionModel", _TOWER, "model_type='altclip"),
    "blip": ("BlipVisionModel", _TOWER, "model_type='blip_vision_model'"),
    "depth anything": (
        "DPTForDepthEstimation",
        VIT | {"is_hybrid": False, "backbone_out_indices": [0, 1, 0, 1]},
        "model_type='dpt'",
    ),
}


def timm_case(name, arguments, cut=False):
    import timm
    import torch
    from timm.models._hub import save_config_for_hf

    if cut:
        with torch.device("meta"):
            model = timm.create_model(name, **arguments)
    else:
        model = timm.create_model(name, **arguments).eval().double()
    state = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/config.json")
        config = json.loads(Path(folder, "config.json").read_text())
    shapes = {k: list(v.shape) for k, v in state.items()}
    if cut:
        return {"shapes": {k: [min(n, 2) for n in v] for k, v in shapes.items()}, "config": config}
    new = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
    model.load_state_dict(new)
    side = arguments.get("img_size", model.pretrained_cfg["input_size"][-1])
    size = [side, side] if isinstance(side, int) else list(side)
    case = {"shapes": shapes, "config": config, "size": size}
    if arguments.get("in_chans", 3) == 3:
        with torch.inference_mode():
            case["output"] = model(torch.from_numpy(images(size))).numpy()[0].tolist()
    return case


def transformers_case(name, settings, output, cut=False):
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    kind = getattr(transformers, name)
    config = kind.config_class(**settings)
    if not cut:
        config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        path = Path(folder, "model.safetensors")
        shapes = {k: list(v.shape) for k, v in load_file(path).items()}
        about = json.loads(Path(folder, "config.json").read_text())
        about.pop("transformers_version", None)
        case = {"shapes": shapes, "config": about}
        if cut:
            return case
        save_file(weights(shapes), path)
        model = kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    side = settings.get("image_size", 32)
    case["size"] = [side, side] if isinstance(side, int) else list(side)
    with torch.inference_mode():
        found = model(torch.from_numpy(images(case["size"])))
    return case | {"output": getattr(found, output).numpy()[0].tolist()}


def transformers_cases():
    for name, (kind, settings, output) in HF.items():
        yield f"transformers: {name}", lambda a=(kind, settings, output): transformers_case(*a)


def all_cases():
    for name, (architecture, arguments) in TIMM.items():
        yield f"timm: {name}", lambda a=(architecture, arguments): timm_case(*a)
    for name, (architecture, arguments, words) in TIMM_REFUSED.items():
        cut = architecture != "vit_tiny_patch16_224"
        yield (
            f"timm: {name}, refused",
            lambda a=(architecture, arguments, cut), w=words: timm_case(*a) | {"refused": w},
        )
    yield from transformers_cases()
    for name, (kind, settings, words) in HF_REFUSED.items():
        yield (
            f"transformers: {name}, refused",
            lambda a=(kind, settings, "", True), w=words: transformers_case(*a) | {"refused": w},
        )


def architectures():
    """Name: settings and shapes of each of timm's models of these files."""
    import timm
    import torch
    from timm.models import list_models, model_entrypoint

    files = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")
    found = {}
    for name in list_models():
        if model_entrypoint(name).__module__.split(".")[-1] not in files:
            continue
        with torch.device("meta"):
            model = timm.create_model(name)
        block = model.blocks[0]
        if not hasattr(block, "attn"):
            continue
        act, shapes = getattr(block.mlp, "act", None), model.state_dict()
        found[name] = {
            "width": model.embed_dim,
            "heads": block.attn.num_heads,
            "act": type(act).__name__,
            "eps": block.norm1.eps,
            "pool": model.global_pool,
            "input_size": list(model.pretrained_cfg["input_size"]),
            "shapes": {
                k: list(v.shape)
                for k, v in shapes.items()
                if not k.startswith("blocks.") or k.startswith("blocks.0.")
            },
        }
    return found


def write(path, value):
    text = json.dumps(dict(sorted(value.items())), separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(len(value), "in", path.name)


def main(library):
    if library == "architectures":
        return write(HERE / "timm_architectures.json.gz", architectures())
    path = HERE / "layouts.json.gz"
    cases = json.loads(gzip.decompress(path.read_bytes())) if path.exists() else {}
    cases = {name: case for name, case in cases.items() if not name.startswith(library)}
    for name, make in all_cases():
        if not name.startswith(library):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                cases[name] = make()
        except Exception as error:
            print(f"not made: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    write(path, cases)


if __name__ == "__main__":
    main(sys.argv[1])
