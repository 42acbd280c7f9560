"""The commands of README and docs in a setting so small that a test runs them: which options, and on what inputs."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from configs import shapes, testing

_MASKS = (
    "--config.model.name=vit_test_conv_s4_48",
    "--config.model.image_size=48",
    "--config.data.workers=0",
    "--config.classifier.epochs=1",
    "--config.classifier.warmup_epochs=0",
    "--config.labels.backend=exact",
    "--config.affinity.epochs=1",
    "--config.affinity.grid=12",
    "--config.affinity.features=32",
    "--config.walk.log2_steps=2",
    "--config.walk.beta=4.0",
    "--config.affinity.levels=()",
    "--config.walk.levels=('stem.2',)",
    "--config.controls.arms=('no_walk','uniform')",
    "--config.segmenter.levels=('stem.1','block.1')",
    "--config.segmenter.hidden=32",
    "--config.segmenter.epochs=2",
    "--config.segmenter.batch_size=4",
    "--config.report.images=2",
)
_CAM = (
    "--config.model.name=vgg_test_cam",
    "--config.model.image_size=96",
    "--config.data.workers=0",
    "--config.classifier.epochs=1",
    "--config.classifier.batch_size=4",
    "--config.classifier.learning_rate=1e-3",
    "--config.seeds.scales=(1.0,0.5)",
    "--config.labels.backend=exact",
    "--config.affinity.epochs=1",
    "--config.affinity.batch_size=4",
    "--config.affinity.learning_rate=1e-3",
    "--config.affinity.grid=12",
    "--config.affinity.features=56",
    "--config.walk.log2_steps=2",
    "--config.segmenter.hidden=32",
    "--config.segmenter.epochs=2",
    "--config.segmenter.batch_size=4",
    "--config.report.images=2",
)
_METHODS = (
    "--config.model.num_heads=2",
    "--config.methods.batch_size=2",
    "--config.methods.compared=('rollout','gradcam')",
)


def _differences(small: ConfigDict, full: ConfigDict, prefix: str = "--config") -> Iterator[str]:
    for key, value in small.items():
        if isinstance(value, ConfigDict):
            yield from _differences(value, full[key], f"{prefix}.{key}")
        elif value != full[key]:
            yield f"{prefix}.{key}={value}"


def _small_shapes() -> ConfigDict:
    config = testing.get_config()
    config.methods.compared = ("rollout", "gradcam")
    config.methods.explained = ("predicted",)
    config.methods.measures = ("segmentation",)
    config.walk.threshold, config.walk.beta = (0.5,), (4.0,)
    return config


# Options that a command with this config gets before its own, which count.
SMALL: dict[str, tuple[str, ...]] = {
    "shapes": tuple(_differences(_small_shapes(), shapes.get_config())),
    "voc": _MASKS,
    "voc_small": _MASKS,
    "voc_cam": _CAM,
    "explain": ("--config.num_heads=2", "--config.batch_size=1", "--config.methods=gradcam"),
    "gallery": (*_METHODS, "--config.report.images=2"),
    "imagenet_perturbation": (*_METHODS, "--config.limit=2", "--config.report.images=1"),
    "score": (),
    "imagenet_segmentation": (*_METHODS, "--config.limit=2", "--config.report.images=1"),
}


# The same for one page: Table 4 runs the other stages of this config.
SMALL_ON = {("docs/data.md", "voc"): (*_MASKS, "--config.stages=classifier")}

# What stands for a placeholder: (page or "", config or "", flag) -> path in the sandbox, most special first.
INPUTS: dict[tuple[str, str, str], str] = {
    ("docs/data.md", "", "data.root"): "voc",
    ("docs/data.md", "", "data.classes"): "classes.txt",
    ("docs/explain.md", "gallery", "data.root"): "folders",
    ("docs/tables.md", "voc", "data.root"): "voc2012",
    ("docs/tables.md", "voc_cam", "data.root"): "voc2012",
    ("docs/published.md", "", "data.root"): "voc2012",
    ("", "voc_cam", "classifier.checkpoint"): "given/vgg.safetensors",
    ("", "voc_cam", "affinity.checkpoint"): "given/vgg_affinity.safetensors",
    ("", "voc_cam", "model.checkpoint"): "vgg.safetensors",
    ("", "", "classifier.checkpoint"): "given/classifier.safetensors",
    ("", "", "affinity.checkpoint"): "given/affinity.safetensors",
    ("", "", "masks"): "voc_masks",
    ("docs/tables.md", "", "data.root"): "imagenet",
    ("", "voc", "model.checkpoint"): "hybrid.safetensors",
    ("", "", "model.checkpoint"): "vit.safetensors",
    ("", "", "checkpoint"): "vit.safetensors",
}
_PLACEHOLDERS = ("FILE", "WEIGHTS", "DIR", "MASKS")


def made_small(command: list[str], page: str, inputs: Path) -> list[str]:
    """The arguments of a `python` or `vitx` command with made inputs and small options."""
    if command[0] == "vitx":
        command = ["python", "-m", *command]
    assert Path(command[0]).name == "python", f"{page}: {command[0]} is in no table"
    command = command[1:]
    if command[:2] != ["-m", "vitx"]:
        return command
    subcommand, config = command[2:4]
    if subcommand not in ("train", "evaluate"):
        checkpoint = str(inputs / INPUTS["", "", "checkpoint"])
        words = [checkpoint if word == "FILE" else word for word in command]
        return [*words, *(SMALL["explain"] if subcommand == "explain" else ())]
    options = SMALL_ON.get((page, config), SMALL[config])
    words = [_with_input(word, page, config, inputs) for word in command]
    return [*words[:4], *options, *words[4:]]


def _with_input(word: str, page: str, config: str, inputs: Path) -> str:
    flag, _, value = word.removeprefix("--config.").partition("=")
    if value not in _PLACEHOLDERS:
        return word
    keys = [(page, config, flag), (page, "", flag), ("", config, flag), ("", "", flag)]
    path = next(INPUTS[key] for key in keys if key in INPUTS)
    return f"--config.{flag}={inputs / path}"
