"""The command `vitx`: explains pictures, runs experiments, and lists what there is."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

from vitx import __version__
from vitx.runtime.files import WriteError

_EXAMPLES: Final = """examples:
  vitx explain photo.jpg --model weights.safetensors
  vitx explain photos/ --model FILE --method gradcam,attn_lrp --classes "tabby,golden retriever"
  vitx segment photo.jpg --model runs/shapes/segmenter
  vitx train shapes --workdir runs/shapes
  vitx evaluate shapes --workdir runs/shapes
  vitx configs shapes

vitx COMMAND --help describes each command."""
_OPTIONS: Final = "options of the experiment: --config.NAME=VALUE; `vitx configs {}` lists them"
_FLAGS: Final = """other arguments:
  --config.NAME=VALUE       changes an option; `vitx configs CONFIG` lists them
  --coordinator_address, --num_processes, --process_id, --multihost
                            several hosts"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exit codes as in `vitx.runtime.command_line.launch`."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and not given.passes_on:
        parser.error(f"unexpected argument {rest[0]!r}")
    try:
        given.run(given, rest)
    except ImportError as error:
        from vitx.runtime.command_line import explained

        if explained(error) == str(error):
            raise
        sys.exit(f"error: {explained(error)}")
    except (ValueError, FileNotFoundError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitx",
        description="Explains Vision Transformers, and makes segmentation masks from the explanations.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, help: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, passes_on=bool(epilog))
        return added

    _add_explain(command("explain", _explain, "explain pictures", _OPTIONS.format("explain")))
    _add_segment(command("segment", _segment, "segment pictures with a trained network"))
    for name, run, help in (
        ("train", _train, "train the models of an experiment"),
        ("evaluate", _evaluate, "make and score masks, compare methods, write the report"),
    ):
        added = command(name, run, help, _FLAGS)
        added.add_argument("config", metavar="CONFIG", help="a name of `vitx configs`, or a file")
        added.add_argument("--workdir", metavar="DIR", help="of the results; the same one resumes")
    compare = command(
        "compare", _compare, "compare a checkpoint with PyTorch", _OPTIONS.format("compare")
    )
    compare.add_argument("model", metavar="FILE", help="the checkpoint")
    compare.add_argument("--out", metavar="DIR", default="runs/compare", help="(%(default)s)")
    models = command("models", _models, "list the models that can be created and loaded")
    models.add_argument("word", metavar="WORD", nargs="?", default="", help="only names with it")
    configs = command("configs", _configs, "list experiments, or the options of one")
    configs.add_argument("name", metavar="NAME", nargs="?", help="an experiment")
    return parser


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="files and folders")
    add("--model", metavar="FILE_OR_NAME", default="", help="a checkpoint (the demo's)")
    add(
        "--method",
        metavar="NAMES",
        default="auto",
        help="names of vitx.METHODS, comma-separated; all: those of the papers' tables; auto: transformer_attribution, "
        "of a CNN gradcam (%(default)s)",
    )
    add("--classes", metavar="NAMES", default="", help="names or numbers (the most probable)")
    add("--best", metavar="N", default="1", help="how many of the most probable (%(default)s)")
    add("--out", metavar="DIR", default="explained", help="where the pictures go (%(default)s)")


def _add_segment(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="files and folders")
    add("--model", metavar="FILE", required=True, help="the folder `segmenter` of a run")
    add("--scales", metavar="X", type=float, nargs="+", default=[1.0], help="of the input (1)")
    add("--flip", action="store_true", help="see mirror images, too")
    add("--out", metavar="DIR", default="segmented", help="where the masks go (%(default)s)")


def _segment(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline.segment_images import segment_images

    segment_images(given.images, given.model, given.out, given.scales, given.flip)


def _explain(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline import explain

    if len(given.images) > 1 and (comma := [name for name in given.images if "," in name]):
        raise ValueError(f"{comma[0]}: a name with a comma must be the only image")
    options = {
        "images": ",".join(given.images),
        "checkpoint": given.model,
        "methods": given.method,
        "classes": given.classes,
        "best": given.best,
    }
    _launch("explain", options, given.out, rest, [explain.COMMAND])


def _compare(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline import compare

    _launch("compare", {"checkpoint": given.model}, given.out, rest, [compare.COMMAND])


def _launch(
    config: str, options: dict[str, str], workdir: str, rest: list[str], stages: list[Any]
) -> None:
    """Runs a command of an experiment with some of its options."""
    from vitx.runtime.command_line import launch

    flags = [f"--config.{name}={value}" for name, value in options.items()]
    sys.argv = [f"vitx {config}", f"--config={config}", f"--workdir={workdir}", *flags, *rest]
    launch(stages)


def _named(given: argparse.Namespace) -> list[str]:
    workdir = [f"--workdir={given.workdir}"] if given.workdir else []
    return [f"--config={given.config}", *workdir]


def _train(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline.stages import EVALUATE, TRAIN
    from vitx.runtime.command_line import launch

    sys.argv = ["vitx train", *_named(given), *rest]
    launch(TRAIN, after=EVALUATE)


def _evaluate(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline.stages import EVALUATE, TRAIN
    from vitx.runtime.command_line import launch

    sys.argv = ["vitx evaluate", *_named(given), *rest]
    launch(EVALUATE, before=TRAIN)


def _models(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline.listing import models_text

    print(models_text(given.word))


def _configs(given: argparse.Namespace, rest: list[str]) -> None:
    from vitx.pipeline.listing import configs_text, options_text

    print(options_text(given.name) if given.name else configs_text())
