"""The published code's numbers in tests/golden, and the models and images that they were computed with."""

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save_file

import vitx

Numbers = dict[str, np.ndarray]
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


class Row(NamedTuple):
    """A quantity, and the largest difference from the published code's over the largest value."""

    what: str
    difference: float


def compare(what: str, found: ArrayLike, expected: ArrayLike) -> Row:
    """A row; both must have one shape, since a broadcast would hide a missing axis."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{what}: shape {a.shape}, the published code's is {b.shape}")
    return Row(what, float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)))


def numbers(name: str) -> Numbers:
    """The published code's numbers in one file of tests/golden."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Every tensor by its name, in float64 and PyTorch's layout."""
    tensors = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        values = random.standard_normal(shape)
        if ("norm" in name or name.startswith("gn.")) and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias") or len(shape) < 2 or name in ("pos_embed", "cls_token"):
            values = 0.02 * values
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        tensors[name] = values
    return tensors


def images(count: int, size: int) -> jax.Array:
    """Normally distributed images (count, size, size, 3)."""
    values = np.random.RandomState(1000).standard_normal((count, 3, size, size))
    return jnp.asarray(values.transpose(0, 2, 3, 1))


def load(name: str, part: str = "", **options: Any) -> Any:
    """A golden model, or a part of one with several, through a file with the published names."""
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    description = description[part] if part else description
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.safetensors"
        save_file(weights(description["shapes"], description["seed"]), path)
        return vitx.load(path, dtype="float64", **options)
