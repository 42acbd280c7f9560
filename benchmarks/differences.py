"""Where relevance may start for the difference of two classes: does the map of a - b lie on a?

Takes pictures of `shapes` with two objects and a trained classifier. The relevance of transformer attribution starts at
the whole gradient e_a - e_b, at its positive part, or at e_a (the map of class a). The table has how well a map ranks
the tokens on a over those on b (mean over pictures of the area under the ROC curve), and the maps' greatest value.

python -m benchmarks.differences [--model runs/shapes/classifier] [--data data] [--images 150]
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.command import parse_options
from benchmarks.tables import print_table
from vitx.data.source import Source, open_source
from vitx.data.transforms import normalise, resize_image
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.relevance.methods import on_grid, transformer_attribution
from vitx.relevance.rulesets import CHEFER_PAIRS, EXACT, Pair, twice


def main(model: str = "runs/shapes/classifier", data: str = "data", images: int = 150) -> None:
    """Prints a table in Markdown."""
    network = vitx.load(model)
    source = open_source("shapes", "val", data)
    found = list(itertools.islice(_pictures(source, network.grid), images))
    pictures, classes, masks = (np.stack(column) for column in zip(*found, strict=True))
    inputs = np.stack(
        [normalise(resize_image(p, network.preprocess.size), network.preprocess) for p in pictures]
    )
    hot = np.eye(network.num_classes, dtype=np.float32)[classes]  # (N, 2, C)
    difference = hot[:, 0] - hot[:, 1]
    starts = {
        "a - b, relevance from the whole gradient": (difference, difference),
        "a - b, relevance from its positive part": (difference, np.maximum(difference, 0)),
        "class a alone": (hot[:, 0], hot[:, 0]),
    }
    print(f"{len(inputs)} pictures\n")
    rows = []
    for name, start in starts.items():
        maps = np.asarray(_maps(network, jnp.asarray(inputs), Pair(*map(jnp.asarray, start))))
        areas = [_area(m[a > 0.5], m[b > 0.5]) for m, (a, b) in zip(maps, masks, strict=True)]
        rows.append((name, f"{np.nanmean(areas):.2f}", f"{maps.max():.1e}"))
    print_table(("map", "AUC", "greatest value"), rows)


@jax.jit
def _maps(model: VisionTransformer, images: Array, start: Pair) -> Array:
    tokens = model.embed(model.features(images, EXACT), EXACT)

    def forward(probes: list[Array]) -> tuple[Pair, Pair]:
        encoded, _ = model.encode(twice(tokens), CHEFER_PAIRS, probes)
        return model.classify(encoded, CHEFER_PAIRS), encoded

    shapes = model.attention_shapes()
    probes = [jnp.zeros((len(tokens), q, n), tokens.dtype) for _, q, n in shapes]
    _, pullback, encoded = jax.vjp(forward, probes, has_aux=True)
    row = transformer_attribution(pullback(start)[0], model.pooling_weights(encoded.gradient))
    return on_grid(model, row[:, model.prefix_tokens :])


def _pictures(
    source: Source, grid: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pictures of two classes or more: the pixels, two classes from 0, and their shares (2, h, w) of each token."""
    resize = partial(jax.image.resize, shape=(2, *grid), method="linear")
    for example in source:
        classes = [c for c in np.unique(example.mask) if c not in (0, 255)][:2]
        if len(classes) == 2:
            masks = np.stack([example.mask == c for c in classes]).astype(np.float32)
            yield example.image, np.array(classes) - 1, np.asarray(resize(jnp.asarray(masks)))


def _area(ours: np.ndarray, others: np.ndarray) -> float:
    """The probability that one of ours is greater than one of the others; NaN without either."""
    if not len(ours) or not len(others):
        return float("nan")
    greater = (ours[:, None] > others).mean() + (ours[:, None] == others).mean() / 2
    return float(greater)


if __name__ == "__main__":
    main(**parse_options(main))
