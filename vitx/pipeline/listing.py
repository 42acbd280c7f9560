"""What `vitx models` and `vitx configs` print."""

import functools
import textwrap
from typing import Final

from vitx.models.families import MODELS
from vitx.models.registry import CNNS
from vitx.runtime import config_files
from vitx.runtime.options import Wanted, flat, range_of

_LOADED: Final = """
vitx.create(NAME) makes one with random weights. Trained weights come from a file: --model FILE, vitx.load(FILE).
Files of timm, Hugging Face, DeiT, DINOv2, DINOv3, CLIP, SigLIP, EVA-02 and MAE, of torchvision's ResNet-50 and VGG-16,
and of vitx itself: .safetensors, .npz, .pth, .pt, .bin (these need torch), or a folder with one."""


_indented = functools.partial(
    textwrap.fill, width=100, initial_indent="    ", subsequent_indent="    "
)


def models_text(word: str = "") -> str:
    """The models that `vitx.create` knows, those whose name has a word; ValueError where there is none."""
    lines = [
        f"{'name':<40}{'blocks':>7}{'width':>7}{'heads':>7}{'patch':>7}{'image':>7}{'classes':>9}"
    ]
    for name, of in MODELS.items():
        sizes = (of.depth, of.width, of.heads, of.patch, of.image_size)
        numbers = "".join(f"{number:>7}" for number in sizes)
        lines.append(f"{name:<40}{numbers}{of.num_classes or 'none':>9}")
    lines += [f"{name:<40}{'a CNN, for images of any size':>44}" for name in CNNS]
    found = [line for line in lines[1:] if word in line.split()[0]]
    if not found:
        raise ValueError(f"no model's name has {word!r}")
    return "\n".join([lines[0], *found, _LOADED])


def configs_text() -> str:
    """The experiments and the first line of each one's description."""
    names = config_files.names()
    width = max(map(len, names)) + 2
    lines = [f"{name:<{width}}{config_files.load(name)[0].splitlines()[0]}" for name in names]
    return "\n".join([*lines, "", "vitx configs NAME lists the options of one."])


def options_text(name: str) -> str:
    """An experiment's description and all of its options, each with its value, comment and range."""
    described, config = config_files.load(name)
    said, ranges, note = config_files.comments(config_files.find(name)), dict[str, Wanted](), ""
    try:
        from vitx.pipeline.stages import EVALUATE, TRAIN
        from vitx.runtime.experiment import ranges_of

        ranges = ranges_of({stage.name: stage for stage in (*TRAIN, *EVALUATE)})
    except ImportError:
        note = "Ranges are shown where the extra 'train' is installed.\n"
    lines = []
    for key, value in flat(config).items():
        lines.append(f"--config.{key}={value!r}")
        wanted = range_of(key, ranges)
        about = (said.get(key, ""), f"must be {wanted.text}" if wanted else "")
        lines += [_indented(text) for text in about if text]
    return f"{described}\nOptions and their defaults:\n{note}\n" + "\n".join(lines)
