"""Seed maps and seed masks, by hand and with a small model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vitx
from tests.models.test_vgg import small_vgg
from tests.resizing import bilinear
from tests.small_models import small_vit
from vitx.pipeline import masks_section
from vitx.pipeline.artifacts import count_seed_maps, write_seed_maps
from vitx.pseudomasks import seeds
from vitx.pseudomasks.attention import box_mask, patch_affinity, spread
from vitx.pseudomasks.crf import background_channel
from vitx.pseudomasks.seeds import (
    class_seed_maps,
    contrasted,
    min_max,
    over_maximum,
    seed_maps_of,
    seed_mask,
)
from vitx.runtime.workdir import Workdir


@pytest.mark.slow
def test_seed_maps_equal_loops(x64):
    """Upsampled, cube root, min-max, resized, in this order."""
    maps = np.random.default_rng(0).uniform(size=(2, 3, 4, 4))
    found = seed_maps_of(jnp.asarray(maps), (8, 8), (11, 6))
    for b in range(2):
        for k in range(3):
            full = np.cbrt(bilinear(maps[b, k], (8, 8)))
            stretched = (full - full.min()) / (full.max() - full.min())
            np.testing.assert_allclose(found[b, k], bilinear(stretched, (11, 6)), atol=1e-12)


def test_root_one_leaves_the_map():
    maps = jnp.asarray([[0.0, 1.0], [2.0, 4.0]])
    np.testing.assert_allclose(seed_maps_of(maps, (2, 2), (2, 2), 1), maps / 4)
    np.testing.assert_allclose(seed_maps_of(maps, (2, 2), (2, 2), 2)[0, 1], 0.5, atol=1e-6)
    with pytest.raises(ValueError, match="root"):
        seed_maps_of(maps, (2, 2), (2, 2), 0)


@pytest.mark.slow
def test_maps_without_contrast_give_zeros():
    """Also after resizing, whose weights leave rounding noise that min-max must not stretch."""
    flat = jnp.full((1, 7, 7), 0.1, jnp.float32)
    assert not min_max(flat).any()
    for value in (0.0, 0.1, 1 / 3, 123.4, 1e-20):
        constant = jnp.full((1, 7, 7), value, jnp.float32)
        assert not seed_maps_of(constant, (64, 64), (50, 40)).any()
    below = jnp.full((1, 3, 3), -1.0).at[0, 1, 1].set(-0.5)  # clamped at zero before the root
    assert not seed_maps_of(below, (3, 3), (3, 3)).any()


@pytest.mark.slow
def test_maps_are_stretched_alone_and_at_any_scale():
    maps = jax.random.uniform(jax.random.key(0), (3, 2, 5, 5))
    found = min_max(maps)
    np.testing.assert_array_equal(found.min((-2, -1)), 0)
    np.testing.assert_allclose(found.max((-2, -1)), 1, atol=1e-6)
    np.testing.assert_allclose(min_max(maps * 1e-12), found, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_map_that_is_not_finite_does_not_look_flat(share, bad):
    broken = jnp.asarray(np.random.default_rng(0).random((1, 1, 14, 14)) < share)
    maps = jnp.where(broken, bad, 0.5).astype(jnp.float32)
    assert jnp.isnan(seed_maps_of(maps, (64, 64), (32, 32))).any()


def test_flat_seed_maps_are_counted_and_reported(tmp_path):
    stage = Workdir(tmp_path).stage("seeds", {})
    seed_maps = np.zeros((3, 4, 4), np.float32)
    seed_maps[1, 2, 2] = 0.5
    write_seed_maps(stage, "val", "a", seed_maps, np.array([0, 2, -1]))
    write_seed_maps(stage, "val", "none", seed_maps[:0], np.array([], np.int32))
    assert count_seed_maps(stage, "val", "a") == (2, 1) and count_seed_maps(
        stage, "val", "none"
    ) == (0, 0)
    (line,) = masks_section._flat({"val": {"cues": 2, "flat": 1}})
    assert line == "Seed maps without contrast, which show nothing: 1 of 2 on val."
    assert masks_section._flat({"val": {"cues": 2, "flat": 0}}) == []


def test_seed_mask_by_hand():
    seed_maps = jnp.asarray(
        [[[0.1, 0.9, 0.2, 0.5]], [[0.0, 0.3, 0.1, 0.7]], [[1.0, 1.0, 1.0, 1.0]]]
    )
    found = seed_mask(seed_maps, jnp.asarray([4, 0, -1]), background=0.2)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, [[0, 5, 0, 1]])  # the background wins its tie
    many = seed_mask(seed_maps[None, None], jnp.asarray([[[4, 0, -1]]]))
    np.testing.assert_array_equal(many[0, 0], found)
    with pytest.raises(ValueError, match="classes"):
        seed_mask(seed_maps, jnp.asarray([1]))


@pytest.fixture
def lopsided(monkeypatch):
    """Stands in for `explain`: a map that shows a class's place in the image it is given."""

    def explain(model, images, classes, **options):
        assert options == {
            "method": "transformer_attribution",
            "start_layer": 1,
            "rules": "stable",
        }
        left_to_right = jnp.moveaxis(images, -1, 1)[:, :1, ::2, ::2]  # (B, 1, h, w)
        return None, jnp.abs(left_to_right - classes[..., None, None].astype(images.dtype) / 10)

    monkeypatch.setattr(seeds, "explain", explain)


@pytest.mark.slow
def test_mirror_images_are_mirrored_back(lopsided):
    """The stand-in commutes with mirroring up to its grid, so both seed maps have the same place."""
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    images = jnp.asarray(images.repeat(2, 1).repeat(2, 2))  # constant under each token
    classes = jnp.asarray([[0, 3], [1, -1]])
    options = {"size": (16, 16), "start_layer": 1, "rules": "stable"}
    found = class_seed_maps(None, images, classes, **options)
    assert found.shape == (2, 2, 16, 16)
    assert not found[1, 1].any()
    plain = seed_maps_of(jnp.abs(images[:, ::2, ::2, 0] - 0.1)[1], (16, 16), (16, 16))
    np.testing.assert_allclose(found[1, 0], plain, atol=1e-6)
    other = class_seed_maps(None, images[:, :, ::-1], classes, **options)
    np.testing.assert_allclose(other[..., ::-1], found, atol=1e-6)


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 4))),
    st.integers(0, 2**32 - 1),
)
def test_contrast_is_the_difference_to_the_mean_of_the_others(present, seed):
    maps = np.random.default_rng(seed).normal(size=(*present.shape, 2, 3))
    with jax.enable_x64(True):
        found = np.asarray(contrasted(jnp.asarray(maps), jnp.asarray(present)))
    for b, k in zip(*np.nonzero(present), strict=True):
        others = [maps[b, j] for j in np.flatnonzero(present[b]) if j != k]
        if others:
            np.testing.assert_allclose(found[b, k], maps[b, k] - np.mean(others, 0), atol=1e-12)
        else:
            np.testing.assert_array_equal(found[b, k], maps[b, k])


def test_contrast_does_not_see_padding():
    maps = jnp.asarray([[[[1.0, 4.0]], [[3.0, 1.0]], [[jnp.nan, 9.0]]]])
    found = contrasted(maps, jnp.asarray([[True, True, False]]))
    np.testing.assert_array_equal(found[0, :2], [[[-2, 3]], [[2, -3]]])


def test_contrast_of_equal_maps_is_zero_to_the_bit():
    maps = np.random.default_rng(0).uniform(size=(1, 1, 7, 7)).astype(np.float32)
    found = contrasted(jnp.asarray(maps.repeat(7, 1)), jnp.ones((1, 7), bool))
    np.testing.assert_array_equal(found, 0)


@pytest.fixture(scope="module")
def model():
    return vitx.create("vit_test_conv_s4_48", num_classes=4, image_size=32)


@pytest.fixture(scope="module")
def seed_maps_of_batch(model):
    return jax.jit(lambda images, classes: class_seed_maps(model, images, classes, size=(40, 24)))


@pytest.mark.slow
def test_seed_maps_of_a_model(model, seed_maps_of_batch):
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    classes = jnp.asarray([[3, 1], [0, -1]])
    found = seed_maps_of_batch(images, classes)
    assert found.shape == (2, 2, 40, 24)
    assert not found[1, 1].any()
    assert 0 <= found.min() < found.max() <= 1
    sides = []
    for picture in (images, images[:, :, ::-1]):
        _, maps = vitx.explain(model, picture, jnp.maximum(classes, 0))
        sides.append(seed_maps_of(maps, (32, 32), (40, 24)))
    expected = (sides[0] + sides[1][..., ::-1]) / 2
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(found[1, 0], expected[1, 0], atol=1e-3)
    assert np.abs(np.asarray(sides[0] - expected))[0].max() > 0.05  # the mirror image counts


@pytest.mark.slow
def test_images_do_not_see_each_other(seed_maps_of_batch):
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    classes = jnp.asarray([[2, 0], [1, 3]])
    before = seed_maps_of_batch(images, classes)
    after = seed_maps_of_batch(images.at[1].set(images[1, ::-1]), classes)
    np.testing.assert_allclose(before[0], after[0], atol=1e-3)
    assert np.abs(np.asarray(before - after))[1].max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("kind", ["", "mctformer", "clip_es"])
def test_options_are_steps_between_the_raw_map_and_the_root(model, kind, contrast):
    """The same by hand for images of two classes and of one; a mirrored input gives mirrored seed maps."""
    images = jax.random.normal(jax.random.key(3), (2, 32, 32, 3))
    classes = np.array([[3, 1], [2, -1]])

    @jax.jit
    def found(images):
        options = {"method": "gradcam", "contrast": contrast, "refine": kind}
        return class_seed_maps(model, images, classes, size=(40, 24), **options)

    seed_maps = np.asarray(found(images))
    assert not seed_maps[1, 1].any()
    assert seed_maps.min() >= 0 and 0.3 < seed_maps.max() <= 1
    np.testing.assert_allclose(found(images[:, :, ::-1]), seed_maps[..., ::-1], atol=1e-3)
    sides = []
    for picture in (images, images[:, :, ::-1]):
        _, maps = vitx.explain(model, picture, np.maximum(classes, 0), method="gradcam")
        if contrast:
            maps = jnp.stack([maps[0] - maps[0, ::-1], maps[1]])
        if kind:
            maps = jnp.maximum(maps, 0)
            if kind == "clip_es":
                maps = min_max(maps)
                maps = jnp.where(box_mask(maps), maps, 0)
            maps = spread(patch_affinity(model, picture, kind), maps)
        sides.append(np.asarray(seed_maps_of(maps, (32, 32), (40, 24))))
    expected = (sides[0] + sides[1][..., ::-1]) / 2
    np.testing.assert_allclose(seed_maps[0], expected[0], atol=2e-3)
    np.testing.assert_allclose(seed_maps[1, 0], expected[1, 0], atol=2e-3)


def test_wrong_options_are_named():
    images, classes = jnp.zeros((1, 8, 12, 3)), jnp.asarray([[1]])
    vit = small_vit()
    with pytest.raises(ValueError, match=r"method must be one of .*, not 'grad'"):
        class_seed_maps(vit, images, classes, size=(8, 12), method="grad")
    with pytest.raises(ValueError, match=r"grid \(2, 3\), not \(8, 12\)"):
        class_seed_maps(vit, images, classes, size=(8, 12), method="lrp", refine="clip_es")
    with pytest.raises(ValueError, match="kind must be one of mctformer, clip_es, not 'clip'"):
        class_seed_maps(vit, images, classes, size=(8, 12), refine="clip")


def test_classes_must_be_a_table(model):
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        class_seed_maps(model, jnp.zeros((1, 32, 32, 3)), jnp.asarray([1]), size=(32, 32))


def test_masks_on_the_host_are_those_of_jax():
    generator = np.random.default_rng(0)
    seed_maps = generator.random((5, 3, 6, 7)).astype(np.float32)
    classes = np.array([[0, 4, -1]] * 4 + [[-1, -1, -1]], np.int32)
    found = seed_mask(seed_maps, classes, 0.4)
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8
    np.testing.assert_array_equal(
        found, seed_mask(jnp.asarray(seed_maps), jnp.asarray(classes), 0.4)
    )
    assert set(np.unique(found)) == {0, 1, 5} and not found[-1].any()


@pytest.mark.parametrize("xp", [np, jnp])
def test_no_class_is_all_background(xp):
    seed_maps, classes = xp.zeros((0, 4, 5), np.float32), xp.zeros(0, np.int32)
    found = seed_mask(seed_maps, classes, 0.2)
    assert found.shape == (4, 5) and found.dtype == np.uint8 and not found.any()
    np.testing.assert_array_equal(background_channel(seed_maps, 4.0), np.ones((4, 5)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_classes_beyond_a_byte_are_refused(xp):
    seed_maps = xp.ones((1, 2, 2), np.float32)
    assert (seed_mask(seed_maps, xp.asarray([253])) == 254).all()
    for bad in (254, 281):
        with pytest.raises(ValueError, match=f"class {bad} does not fit .* at most 254 classes"):
            seed_mask(seed_maps, xp.asarray([bad]))
        classes = jnp.asarray([bad])
        with pytest.raises(ValueError, match="does not fit"):
            jax.jit(lambda seed_maps, classes=classes: seed_mask(seed_maps, classes))(
                jnp.asarray(seed_maps)
            )


@pytest.mark.parametrize("xp", [np, jnp])
def test_bad_seed_maps_and_classes_are_named(xp):
    seed_maps = xp.ones((1, 2, 2), np.float32)
    with pytest.raises(ValueError, match="classes must be integers, not float32"):
        seed_mask(seed_maps, xp.zeros(1, np.float32))
    with pytest.raises(ValueError, match="the seed maps hold NaN or infinite values"):
        seed_mask(seed_maps * xp.asarray(np.nan, np.float32), xp.asarray([0]))


def test_several_backgrounds_are_as_many_masks():
    rng = np.random.default_rng(0)
    seed_maps = rng.uniform(size=(3, 6, 7)).astype(np.float32)
    classes, levels = np.array([4, -1, 0]), np.array([0.2, 0.5, 0.9], np.float32)
    found = seed_mask(seed_maps, classes, levels[:, None, None])
    assert found.shape == (3, 6, 7)
    for mask, level in zip(found, levels, strict=True):
        np.testing.assert_array_equal(mask, seed_mask(seed_maps, classes, float(level)))


def test_maps_over_their_maximum_are_psas(x64):
    """Views of two sizes: square roots, upsampled, mirrored back, added, over the maximum; written out."""
    net = small_vgg()
    size, classes = (16, 24), np.array([[2, 0], [1, -1]])
    generator = np.random.default_rng(0)
    views = [generator.standard_normal((2, *side, 3)) for side in (size, (24, 40))]
    options = {"size": size, "root": 2, "method": "cam", "normalise": "maximum"}
    found = over_maximum(
        2 * sum(np.asarray(class_seed_maps(net, jnp.asarray(v), classes, **options)) for v in views)
    )
    for image, class_ in ((0, 2), (0, 0), (1, 1)):
        total = np.zeros(size)
        for view in views:
            for step in (1, -1):
                seen = jnp.asarray(view[image : image + 1, :, ::step])
                map_ = np.asarray(net.features(seen))[0] @ np.asarray(net.head.kernel)[:, class_]
                total += bilinear(np.sqrt(map_.clip(0)), size)[:, ::step]
        place = list(classes[image]).index(class_)
        expected = total / (total.max() + 1e-5)
        np.testing.assert_allclose(found[image, place], expected, atol=1e-9)
    assert not found[1, 1].any()
