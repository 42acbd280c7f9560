"""The models that vitx creates by name: their sizes and designs.

Names are timm's, except for the fine-tuned MAE and for small hybrids. Where timm departs from those who published a
family, the design is the publishers', as transformers has it: SigLIP's GELU is the approximation by tanh, DINOv3's
output is the class token, and DINOv2's positions are resampled without antialias. `vitx.load` gives what the library of
the file computes.
"""

from dataclasses import dataclass, replace
from typing import Final

from vitx.models.design import VIT, Design
from vitx.models.vit import VisionTransformer

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
HALF: Final[Statistics] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: Final[Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Final[Statistics] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer, and the side of its patches (in feature cells where there is a stem).

    `statistics` are the mean and std of the input's channels, `num_classes` the usual outputs of its head, 0 where it
    comes without one.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int = 16
    image_size: int = 224
    stem: str | None = None  # a key of `registry.STEMS`
    statistics: Statistics = HALF
    num_classes: int = 1000
    norm_eps: float = 1e-6
    design: Design = VIT
    family: type[VisionTransformer] = VisionTransformer


_TINY = Sizes(192, 12, 3, 768)
_SMALL = Sizes(384, 12, 6, 1536)
_MEDIUM = Sizes(512, 12, 8, 2048)
_BASE = Sizes(768, 12, 12, 3072)
_LARGE = Sizes(1024, 24, 16, 4096)
_GIANT = Sizes(1536, 40, 24, 4096)  # of DINOv2, whose MLP is gated
_BY_NAME = {"tiny": _TINY, "small": _SMALL, "base": _BASE, "large": _LARGE}

LAYER_SCALE = Design(layer_scale=True)
DEIT3 = Design(layer_scale=True, positions="patches")
DISTILLED = Design(distillation_token=True, pooling="class+distillation", head="each")
MEAN = Design(class_token=False, pooling="mean")
MEAN_WITH_REGISTERS = replace(
    MEAN, registers=4, positions="patches", final_norm=False, pooled_norm=True
)
MAE = Design(pooling="mean", final_norm=False, pooled_norm=True)
DINOV2 = Design(layer_scale=True, resampling="bicubic")
DINOV2_REGISTERS = Design(layer_scale=True, registers=4, positions="patches")
DINOV3 = Design(registers=4, positions="none", rotary="dinov3", qkv_bias="no key", layer_scale=True)
CLIP_VISION = Design(patch_bias=False, pre_norm=True, activation="quick_gelu", resampling="bicubic")
SIGLIP = Design(
    class_token=False, activation="tanh_gelu", pooling="attention", resampling="bicubic"
)
EVA02 = Design(
    rotary="eva",
    rotary_base=10000.0,
    qkv_bias="no key",
    mlp="gated",
    activation="silu",
    final_norm=False,
    pooling="mean",
    pooled_norm=True,
)


def _gated(design: Design, norm: bool = False) -> Design:
    return replace(design, mlp="gated", activation="silu", mlp_norm=norm)


def _vit() -> dict[str, Sizes]:
    family = {}
    for size, sizes in _BY_NAME.items():
        for image_size in (224, 384):
            family[f"vit_{size}_patch16_{image_size}"] = replace(sizes, image_size=image_size)
        family[f"vit_{size}_patch8_224"] = replace(sizes, patch=8)
    family["vit_base_patch16_gap_224"] = replace(_BASE, heads=16, design=MEAN)
    for size, sizes in (("medium", _MEDIUM), ("base", _BASE)):
        design = replace(MEAN_WITH_REGISTERS, layer_scale=size == "medium")
        family[f"vit_{size}_patch16_reg4_gap_256"] = replace(sizes, image_size=256, design=design)
    for size in ("base", "large"):  # MAE's, fine-tuned; a name that timm does not have
        family[f"vit_{size}_patch16_mae_224"] = replace(
            _BY_NAME[size], statistics=IMAGENET, design=MAE
        )
    return family


def _deit() -> dict[str, Sizes]:
    family = {}
    for size in ("tiny", "small", "base"):
        plain = replace(_BY_NAME[size], statistics=IMAGENET)
        family[f"deit_{size}_patch16_224"] = plain
        family[f"deit_{size}_distilled_patch16_224"] = replace(plain, design=DISTILLED)
    for kind in ("", "_distilled"):
        of_base = family[f"deit_base{kind}_patch16_224"]
        family[f"deit_base{kind}_patch16_384"] = replace(of_base, image_size=384)
    for size, sizes in (("medium", _MEDIUM), *_BY_NAME.items()):
        for image_size in (224, 384):
            if size != "tiny" and (size, image_size) != ("medium", 384):
                family[f"deit3_{size}_patch16_{image_size}"] = replace(
                    sizes, image_size=image_size, statistics=IMAGENET, design=DEIT3
                )
    return family


def _dino() -> dict[str, Sizes]:
    family = {}
    for size in ("small", "base", "large", "giant"):
        plain = _GIANT if size == "giant" else _BY_NAME[size]
        for kind, design in (("", DINOV2), ("_reg4", DINOV2_REGISTERS)):
            family[f"vit_{size}_patch14{kind}_dinov2"] = replace(
                plain,
                patch=14,
                image_size=518,
                statistics=IMAGENET,
                num_classes=0,
                design=_gated(design) if size == "giant" else design,
            )
    plus = replace(_SMALL, design=_gated(DINOV3))
    for size, sizes in (
        ("small", _SMALL),
        ("small_plus", plus),
        ("base", _BASE),
        ("large", _LARGE),
    ):
        design = sizes.design if sizes is plus else DINOV3
        for kind, biases in (("", "none"), ("_qkvb", "no key")):
            family[f"vit_{size}_patch16_dinov3{kind}"] = replace(
                sizes,
                image_size=256,
                statistics=IMAGENET,
                num_classes=0,
                norm_eps=1e-5,
                design=replace(design, qkv_bias=biases),
            )
    return family


def _with_text() -> dict[str, Sizes]:
    """Vision towers of CLIP and SigLIP."""
    family = {}
    clip = ("base", 32, 512), ("base", 16, 512), ("large", 14, 768)
    for size, patch, projection in clip:
        for kind, activation in (("", "gelu"), ("_quickgelu", "quick_gelu")):  # LAION's, OpenAI's
            family[f"vit_{size}_patch{patch}_clip{kind}_224"] = replace(
                _BY_NAME[size],
                patch=patch,
                statistics=CLIP,
                num_classes=0,
                norm_eps=1e-5,
                design=replace(CLIP_VISION, projection=projection, activation=activation),
            )
    for image_size in (224, 256, 384, 512):
        family[f"vit_base_patch16_siglip_{image_size}"] = replace(
            _BASE, image_size=image_size, num_classes=0, design=SIGLIP
        )
    return family


def _eva02() -> dict[str, Sizes]:
    family = {}
    for size, image_size in (("tiny", 336), ("small", 336), ("base", 448), ("large", 448)):
        plain = _BY_NAME[size]
        sizes = replace(
            plain,
            hidden=plain.width * 8 // 3,
            patch=14,
            statistics=CLIP,
            design=replace(EVA02, mlp_norm=size in ("base", "large")),
        )
        family[f"eva02_{size}_patch14_224"] = replace(sizes, num_classes=0)
        family[f"eva02_{size}_patch14_{image_size}"] = replace(sizes, image_size=image_size)
    return family


MODELS: dict[str, Sizes] = {
    **_vit(),
    **_deit(),
    "vit_base_r50_s16_224": replace(_BASE, patch=1, stem="resnet50"),
    "vit_base_r50_s16_384": replace(_BASE, patch=1, stem="resnet50", image_size=384),
    **_dino(),
    **_with_text(),
    **_eva02(),
    # Small hybrids for small images: a 12 x 12 token grid at 48 x 48.
    "vit_mini_conv_s4_48": Sizes(64, 3, 2, 128, patch=1, stem="conv", image_size=48),
    "vit_mini_conv_full_s4_48": Sizes(64, 3, 2, 128, patch=1, stem="conv_full", image_size=48),
    "vit_mini_conv_full_gap_s4_48": Sizes(
        64, 3, 2, 128, patch=1, stem="conv_full", image_size=48, design=MEAN
    ),
    "vit_test_conv_s4_48": Sizes(32, 2, 2, 64, patch=1, stem="conv_tiny", image_size=48),
}
