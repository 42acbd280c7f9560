"""The dense CRF against loops in NumPy and against the published C++ code; confident labels."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitx.pseudomasks.crf import (
    BACKENDS,
    CRFParameters,
    background_channel,
    confident_labels,
    dense_crf,
    pool_posteriors,
)

# The JAX lattices take seconds to compile.
QUICK_BACKENDS = ("exact", pytest.param("jax", marks=pytest.mark.slow), "pydensecrf")


def reference(
    image: np.ndarray, probabilities: np.ndarray, parameters: CRFParameters
) -> np.ndarray:
    """Mean field in float64, straight from the definition: (L, H, W) -> (L, H, W)."""
    labels, height, width = probabilities.shape
    y, x = np.divmod(np.arange(height * width), width)
    place, colour = np.stack([y, x], -1), image.reshape(-1, 3).astype(np.float64)

    def kernel(features: np.ndarray) -> np.ndarray:
        difference = features[:, None] - features[None]
        k = np.exp(-np.square(difference).sum(-1) / 2)
        return k / np.sqrt(k.sum(0)[:, None] * k.sum(0)[None])

    near = kernel(place / parameters.sxy_gaussian)
    alike = kernel(np.concatenate([place / parameters.sxy_bilateral, colour / parameters.srgb], -1))
    pairwise = parameters.compat_gaussian * near + parameters.compat_bilateral * alike
    unary = np.log(np.clip(probabilities.reshape(labels, -1), 1e-5, 1))  # (L, N)
    q = np.exp(unary) / np.exp(unary).sum(0)
    for _ in range(parameters.iterations):
        energy = unary + q @ pairwise
        q = np.exp(energy - energy.max(0))
        q /= q.sum(0)
    return q.reshape(probabilities.shape)


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A shaded ground with three noisy discs, and blurred, shifted seed maps of them: (3, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = rng.uniform(60, 200, 3) + 20 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None]
    seed_maps = []
    for _ in range(3):
        centre = rng.uniform(0.2, 0.8, 2) * (height, width)
        size = rng.uniform(0.12, 0.25) * height
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < size**2
        image[inside] = rng.uniform(0, 255, 3) + rng.normal(0, 8, (inside.sum(), 3))
        seed_maps.append(
            np.exp(-((y - centre[0] - 2) ** 2 + (x - centre[1] + 2) ** 2) / (1.2 * size) ** 2)
        )
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), np.stack(seed_maps)


def noise(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels (B, H, W, 3) and probabilities of shape (B, ..., L, H, W)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (shape[0], *shape[-2:], 3), dtype=np.uint8)
    return images, rng.uniform(size=shape)


@pytest.mark.parametrize(
    "parameters",
    [
        CRFParameters(),
        CRFParameters(3, 1.5, 2, 5, 40, 4),
        CRFParameters(compat_bilateral=0),
        CRFParameters(compat_gaussian=0, srgb=60),
    ],
)
def test_exact_equals_the_definition(parameters, x64):
    images, probabilities = noise(0, 2, 3, 7, 9)
    found = dense_crf(images, probabilities, parameters=parameters)
    for image, given, posterior in zip(images, probabilities, found, strict=True):
        np.testing.assert_allclose(posterior, reference(image, given, parameters), atol=1e-10)


def test_single_precision_is_close_to_the_definition():
    image, seed_maps = scene(0, 20, 24)
    probabilities = np.concatenate([(1 - seed_maps.max(0, keepdims=True)) ** 4, seed_maps])
    found = dense_crf(image[None], probabilities[None].astype(np.float32))
    assert found.dtype == jnp.float32
    expected = reference(
        image, probabilities.astype(np.float32).astype(np.float64), CRFParameters()
    )
    np.testing.assert_allclose(found[0], expected, atol=2e-4)
    assert np.abs(np.asarray(found[0]) - expected).mean() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [4, 32])
def test_backends_agree_on_scenes(alpha):
    """The published code approximates its kernels, so single pixels at borders may differ."""
    images, seed_maps = (
        np.stack(part) for part in zip(*(scene(s, 40, 48) for s in range(4)), strict=True)
    )
    seed_maps = jnp.asarray(seed_maps, jnp.float32)
    probabilities = jnp.concatenate(
        [background_channel(seed_maps, alpha)[:, None], seed_maps], axis=1
    )
    exact = dense_crf(images, probabilities)
    published = dense_crf(images, probabilities, backend="pydensecrf")
    agreement = np.mean(exact.argmax(1) == published.argmax(1))
    changed = np.mean(exact.argmax(1) != probabilities.argmax(1))
    assert agreement > 0.98
    assert 1 - agreement < changed / 5  # the CRF does something, and the same thing
    assert np.abs(np.asarray(exact - published)).mean() < 0.01


@pytest.mark.slow
def test_backends_agree_on_noise():
    images, probabilities = noise(1, 2, 3, 24, 20)
    probabilities = jnp.asarray(probabilities, jnp.float32)
    parameters = CRFParameters(compat_gaussian=0.5, compat_bilateral=0.5)  # no winner takes all
    exact = dense_crf(images, probabilities, parameters=parameters)
    images.setflags(write=False)  # as a source's images are
    published = dense_crf(images, probabilities, parameters=parameters, backend="pydensecrf")
    difference = np.abs(np.asarray(exact - published))
    assert difference.mean() < 0.01
    assert difference.max() < 0.1
    assert np.mean(exact.argmax(1) == published.argmax(1)) > 0.97


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_without_iterations_probabilities_are_only_normalised(backend):
    images, probabilities = noise(2, 1, 3, 6, 5)
    parameters = CRFParameters(iterations=0)
    found = dense_crf(
        images, probabilities.astype(np.float32), parameters=parameters, backend=backend
    )
    np.testing.assert_allclose(
        found, probabilities / probabilities.sum(1, keepdims=True), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_of_unaries_and_absent_labels(backend):
    """Two sets at once equal one at a time, and an absent label equals one never given."""
    images, probabilities = noise(3, 2, 2, 4, 10, 12)
    probabilities = probabilities.astype(np.float32)
    present = np.array([[True, True, True, True], [True, False, True, False]])
    found = np.asarray(dense_crf(images, probabilities, backend=backend, present=present))
    assert found.shape == probabilities.shape
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-5)
    assert not found[1][:, ~present[1]].any()
    for b in range(2):
        for a in range(2):
            alone = dense_crf(
                images[b : b + 1], probabilities[b : b + 1, a, present[b]], backend=backend
            )
            np.testing.assert_allclose(found[b, a, present[b]], alone[0], atol=2e-5)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_labels_have_no_order(backend):
    images, probabilities = noise(4, 1, 4, 8, 8)
    probabilities = probabilities.astype(np.float32)
    order = [2, 0, 3, 1]
    found = dense_crf(images, probabilities[:, order], backend=backend)
    np.testing.assert_allclose(
        found, dense_crf(images, probabilities, backend=backend)[:, jnp.asarray(order)], atol=2e-5
    )


def test_constant_image_and_probabilities_stay_constant_inside(x64):
    """Equal labels stay equal; with one label ahead it wins everywhere."""
    image = np.full((1, 9, 9, 3), 77, np.uint8)
    np.testing.assert_allclose(dense_crf(image, np.full((1, 4, 9, 9), 0.3)), 0.25, atol=1e-12)
    ahead = np.full((1, 2, 9, 9), 0.4)
    ahead[:, 1] = 0.6
    assert (np.asarray(dense_crf(image, ahead))[:, 1] > 0.99).all()


def test_zero_probability_is_clipped():
    images, probabilities = noise(5, 1, 2, 5, 5)
    probabilities[:, 0] = 0
    assert np.isfinite(dense_crf(images, probabilities.astype(np.float32))).all()


@pytest.mark.parametrize("backend", ["exact", "jax"])
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(dtype, backend):
    """Colours' squared distances reach 195,075, and float16 ends at 65,504."""
    images, probabilities = noise(1, 1, 3, 24, 30)
    half = probabilities.astype(dtype)
    expected = dense_crf(images, half.astype(np.float32), backend=backend)
    found = dense_crf(images, half, backend=backend)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_labels_beyond_a_byte_are_refused(dtype):
    low = np.random.default_rng(0).random((1, 2, 3, 4)).astype(np.float32)
    labels = confident_labels(low, low, np.array([[253]], dtype))
    assert set(np.unique(labels)) <= {0, 254, 255}
    for bad in (254, 281):
        with pytest.raises(ValueError, match=f"class {bad} does not fit .* at most 254 classes"):
            confident_labels(low, low, np.array([[bad]], dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "fast"}, "exact, jax, pydensecrf"),
        ({"images": np.zeros((1, 4, 4, 3), np.float32)}, "uint8"),
        ({"images": np.zeros((1, 4, 5, 3), np.uint8)}, "do not fit the images"),
        ({"probabilities": np.zeros((4, 4), np.float32)}, "do not fit the images"),
        ({"probabilities": np.zeros((1, 2, 4, 4), np.int32)}, "floats"),
        ({"present": np.ones((1, 3), bool)}, "present must be bool"),
        ({"present": np.zeros((1, 2), bool)}, "image 0 has no label present"),
        (
            {
                "backend": "exact",
                "images": np.zeros((1, 129, 128, 3), np.uint8),
                "probabilities": np.zeros((1, 2, 129, 128), np.float32),
            },
            'backend="jax"',
        ),
        ({"probabilities": np.full((1, 2, 4, 4), np.nan, np.float32)}, "image 0 are not finite"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "images": np.zeros((1, 4, 4, 3), np.uint8),
        "probabilities": np.full((1, 2, 4, 4), 0.5, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        dense_crf(**(arguments | change))


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    images, probabilities = noise(6, 1, 2, 4, 4)
    with pytest.raises(ImportError, match=r"vitx\[crf\]"):
        dense_crf(images, probabilities.astype(np.float32), backend="pydensecrf")


def test_background_channel_by_hand():
    seed_maps = jnp.asarray([[[0.5, 0.0]], [[0.2, 1.0]]])  # (2, 1, 2)
    np.testing.assert_allclose(background_channel(seed_maps, 4), [[0.5**4, 0]])
    assert np.isfinite(background_channel(jnp.full((1, 1, 1), 1 + 1e-6), 2.5)).all()


@pytest.mark.slow
def test_pooling_by_hand():
    """At the input's size it is the mean of blocks; doubled first, the borders are half-pixel."""
    x = jnp.asarray(np.arange(16.0).reshape(1, 4, 4), jnp.float32)
    np.testing.assert_allclose(pool_posteriors(x, (2, 2), pool=2)[0], [[2.5, 4.5], [10.5, 12.5]])
    ramp = jnp.asarray([[0.0, 1.0]], jnp.float32)  # resized to 4: 0, 1/4, 3/4, 1
    np.testing.assert_allclose(pool_posteriors(ramp, (1, 2), pool=2), [[0.125, 0.875]], atol=1e-7)
    assert pool_posteriors(jnp.zeros((2, 3, 50, 70)), (7, 5)).shape == (2, 3, 7, 5)


@pytest.mark.slow
def test_pooled_posteriors_still_sum_to_one():
    posteriors = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 3, 11, 13)), axis=1)
    np.testing.assert_allclose(pool_posteriors(posteriors, (4, 4)).sum(1), 1, atol=1e-5)


def test_confident_labels_by_hand():
    """Three pixels: sure object, sure background, undecided; then one whose alphas contradict."""
    low = np.array([[0.1, 0.9, 0.8, 0.2], [0.8, 0.1, 0.1, 0.7], [0.1, 0.0, 0.1, 0.1]])
    high = np.array([[0.0, 0.8, 0.1, 0.9], [0.9, 0.1, 0.2, 0.1], [0.1, 0.1, 0.7, 0.0]])
    found = confident_labels(
        jnp.asarray(low[None, :, None], jnp.float32),
        jnp.asarray(high[None, :, None], jnp.float32),
        jnp.asarray([[6, 2]]),
    )
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, [[[7, 0, 255, 0]]])


def test_confident_labels_leave_padding_out():
    posteriors = jnp.asarray([0.2, 0.3, 0.5], jnp.float32).reshape(1, 3, 1, 1)
    assert confident_labels(posteriors, posteriors, jnp.asarray([[4, -1]])).item() == 5
    assert confident_labels(posteriors, posteriors, jnp.asarray([[-1, -1]])).item() == 0
    with pytest.raises(ValueError, match="do not fit classes"):
        confident_labels(posteriors, posteriors, jnp.asarray([[4]]))


def test_labels_on_the_host_are_those_of_jax():
    generator = np.random.default_rng(0)
    posteriors = generator.random((2, 2, 4, 12, 10)).astype(np.float32)  # low and high, two images
    classes = np.array([[2, 5, -1], [0, -1, -1]], np.int32)
    pooled = pool_posteriors(posteriors, (6, 8), 2)
    assert isinstance(pooled, np.ndarray)
    np.testing.assert_allclose(
        pooled, pool_posteriors(jnp.asarray(posteriors), (6, 8), 2), atol=1e-6
    )
    labels = confident_labels(*pooled, classes)
    assert isinstance(labels, np.ndarray) and labels.dtype == np.uint8
    expected = confident_labels(*map(jnp.asarray, pooled), jnp.asarray(classes))
    np.testing.assert_array_equal(labels, expected)
    seed_maps = posteriors[0, :, 1:]
    np.testing.assert_allclose(
        background_channel(seed_maps, 4.0),
        background_channel(jnp.asarray(seed_maps), 4.0),
        rtol=1e-5,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_stays_empty(backend):
    found = dense_crf(
        np.zeros((0, 4, 5, 3), np.uint8), np.zeros((0, 2, 3, 4, 5), np.float32), backend=backend
    )
    assert found.shape == (0, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"srgb": 0}, "srgb must be above 0 and finite, not 0"),
        ({"sxy_gaussian": -1.0}, "sxy_gaussian must be above 0"),
        ({"sxy_bilateral": np.nan}, "sxy_bilateral must be above 0 and finite, not nan"),
        ({"compat_gaussian": -2.0}, "compat_gaussian must be from 0 up"),
        ({"compat_bilateral": np.inf}, "compat_bilateral must be from 0 up and finite, not inf"),
        ({"iterations": -1}, "iterations must be a whole number from 0 up, not -1"),
        ({"iterations": 2.5}, "iterations must be a whole number"),
    ],
)
def test_parameters_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CRFParameters(**change)
