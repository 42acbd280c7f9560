import colorsys
import io
import struct
import zlib
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.resizing import bilinear
from vitx.data import transforms
from vitx.data.palette import decode_mask, encode_mask, voc_palette
from vitx.data.transforms import Augment, image_size

Preprocess = namedtuple("Preprocess", "mean std size")
PREPROCESS = Preprocess((0.5,) * 3, (0.5,) * 3, (9, 7))


def picture(shape=(9, 7, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


# Reading


def test_reads_files_and_bytes_alike(tmp_path):
    image = picture()
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    for source in (path, str(path), path.read_bytes()):
        read = transforms.read_image(source)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, image)


def test_reads_every_mode_as_rgb():
    grey = picture((9, 7))
    expected = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(transforms.read_image(encode(Image.fromarray(grey))), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(transforms.read_image(encode(deep)), expected)
    wide = Image.fromarray(grey.astype(np.int32) * 256 + 77)
    np.testing.assert_array_equal(transforms.read_image(encode(wide, "TIFF")), expected)
    palette = Image.fromarray(grey)
    palette.putpalette(voc_palette().tobytes())
    colours = voc_palette()[grey]
    np.testing.assert_array_equal(transforms.read_image(encode(palette)), colours)
    np.testing.assert_array_equal(transforms.read_image(encode(palette, transparency=3)), colours)
    image = picture()
    opaque = np.concatenate([image, picture((9, 7, 1), 1)], -1)
    np.testing.assert_array_equal(transforms.read_image(encode(Image.fromarray(opaque))), image)
    cmyk = Image.new("CMYK", (7, 9), (0, 255, 255, 0))
    red = transforms.read_image(encode(cmyk, "TIFF"))
    assert red.shape == (9, 7, 3) and np.all(red == [255, 0, 0])
    bits = transforms.read_image(encode(Image.fromarray(grey > 99)))
    np.testing.assert_array_equal(bits, np.where(expected > 99, 255, 0))


UPRIGHT = {  # EXIF's orientation: how stored pixels are turned
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_sizes_are_those_of_the_pictures_read(orientation, kind):
    """Pillow turns TIFF files itself, also in the size that it says."""
    image, exif = picture(), Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(image), kind, exif=exif)
    for upright in (True, False):
        read = transforms.read_image(data, upright=upright)
        assert image_size(data, "x", upright=upright) == read.shape[:2]
    if kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(transforms.read_image(data), UPRIGHT[orientation](image))
        np.testing.assert_array_equal(transforms.read_image(data, upright=False), image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_pictures_with_damaged_exif_are_read_as_stored(kind):
    data = encode(Image.fromarray(picture()), kind, exif=b"Exif\0\0damaged, and no TIFF")
    assert image_size(data, "x", upright=True) == (9, 7)
    stored = transforms.read_image(data, upright=False)
    np.testing.assert_array_equal(transforms.read_image(data), stored)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_orientation_is_all_that_is_read_of_exif():
    """Pillow's own turning writes EXIF again, which fails where another entry is of a wrong type."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8825] = 6, "Maker", {1: "N"}
    data = exif.tobytes()
    generator = np.random.default_rng(0)
    for _ in range(1000):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[generator.integers(6, len(data), 3)] = generator.integers(0, 256, 3)
        file = encode(Image.fromarray(picture()), "JPEG", exif=damaged.tobytes())
        assert transforms.read_image(file).shape[:2] == image_size(file, "x", upright=True)


def test_sizes_are_read_without_the_pixels():
    data = encode(Image.fromarray(picture((64, 64, 3))))
    assert image_size(data[: len(data) // 2], "x", upright=True) == (64, 64)


def test_names_the_file_that_it_cannot_read(tmp_path):
    data = encode(Image.fromarray(picture((50, 50, 3))), "JPEG")
    cases = {"half.jpg": data[: len(data) // 2], "empty.png": b"", "text.png": b"no picture at all"}
    png = encode(Image.fromarray(picture((50, 50, 3))))
    cases["half.png"] = png[: len(png) // 2]
    cases["scrambled.png"] = png[:60] + bytes(200) + png[260:]
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}"):
            transforms.read_image(path)
    with pytest.raises(ValueError, match="image seven"):
        transforms.read_image(b"", "seven")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        transforms.read_image(tmp_path / "missing.png")


def test_names_a_tiff_whose_offsets_are_text(tmp_path):
    """Pillow raises TypeError then."""
    data = encode(Image.fromarray(picture()), "TIFF")
    entry = data.index(struct.pack("<HHI", 273, 4, 1))  # StripOffsets, of 32-bit numbers
    path = tmp_path / "odd.tif"
    path.write_bytes(data[: entry + 2] + struct.pack("<H", 2) + data[entry + 4 :])
    with pytest.raises(ValueError, match=r"cannot read the image .*odd\.tif"):
        transforms.read_image(path)


# Resizing


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((4, 4), (16, 16)),
        ((7, 5), (12, 13)),
        ((1, 3), (4, 2)),
        ((12, 11), (5, 4)),
        ((9, 4), (3, 8)),
    ],
)
def test_resize_maps_is_bilinear_without_antialiasing(old, new):
    maps = np.random.default_rng(0).standard_normal((2, *old))
    with jax.enable_x64(True):
        resized = np.asarray(jax.jit(transforms.resize_maps, static_argnums=1)(maps, new))
    assert resized.dtype == np.float64
    np.testing.assert_allclose(resized, [bilinear(m, new) for m in maps], atol=1e-12)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 99),
)
def test_numpy_resizes_maps_as_well(old, new, seed):
    maps = np.random.default_rng(seed).random((2, *old)).astype(np.float32)
    resized = transforms.resize_maps(maps, new)
    assert isinstance(resized, np.ndarray) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, [bilinear(m, new) for m in maps], atol=3e-7)
    np.testing.assert_array_equal(
        transforms.resize_maps(np.full(old, 0.3, np.float32), new), np.full(new, np.float32(0.3))
    )


def test_numpy_and_jax_resize_maps_alike():
    maps = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    resized = transforms.resize_maps(jnp.asarray(maps), (8, 6))
    assert resized.shape == (2, 3, 8, 6)
    np.testing.assert_allclose(transforms.resize_maps(maps, (8, 6)), resized, atol=3e-7)
    with pytest.raises(ValueError, match="wants floats, got uint8"):
        transforms.resize_maps(jnp.zeros((4, 5), jnp.uint8), (8, 6))


def antialiased(line, length):
    """A triangle over each output pixel, as wide as the larger of the two pixels."""
    scale = len(line) / length
    support = max(scale, 1)
    out = []
    for place in range(length):
        centre = (place + 0.5) * scale
        weights = np.maximum(1 - np.abs(np.arange(len(line)) + 0.5 - centre) / support, 0)
        out.append(np.tensordot(weights / weights.sum(), line, 1))
    return np.array(out)


@pytest.mark.parametrize("size", [(5, 4), (20, 30), (9, 30), (4, 7)])
def test_resize_image_antialiases(size):
    image = picture((9, 13, 3))
    resized = transforms.resize_image(image, size)
    expected = antialiased(image.astype(float), size[0]).swapaxes(0, 1)
    expected = antialiased(expected, size[1]).swapaxes(0, 1)
    assert resized.dtype == np.uint8 and resized.shape == (*size, 3)
    assert np.abs(resized - expected).max() <= 1.01  # Pillow rounds after each axis


def test_resize_mask_takes_the_nearest():
    mask = picture((9, 13))
    for size in ((5, 4), (18, 39), (9, 13)):
        rows = ((np.arange(size[0]) + 0.5) * 9 / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * 13 / size[1]).astype(int)
        np.testing.assert_array_equal(transforms.resize_mask(mask, size), mask[rows][:, columns])


def test_normalise():
    preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (9, 7))
    image = picture()
    normalised = transforms.normalise(image, preprocess)
    assert normalised.dtype == np.float32
    expected = (image / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    np.testing.assert_allclose(normalised, expected, atol=1e-6)


# Augmenting


def luma(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def each_pixel(pixels, function):
    return np.array([[function(*pixel) for pixel in row] for row in pixels.astype(float)])


FACTORS = (0.0, 0.6, 1.0, 1.7)


@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_contrast_and_saturation(factor):
    pixels = transforms.to_fractions(picture())
    mean = np.mean([luma(pixel) for row in pixels for pixel in row])

    def blend(value, other):
        return min(max(factor * value + (1 - factor) * other, 0), 1)

    expected = {
        transforms.adjust_brightness: lambda *rgb: [blend(v, 0) for v in rgb],
        transforms.adjust_contrast: lambda *rgb: [blend(v, mean) for v in rgb],
        transforms.adjust_saturation: lambda *rgb: [blend(v, luma(rgb)) for v in rgb],
    }
    for adjust, pixelwise in expected.items():
        adjusted = adjust(pixels, factor)
        assert adjusted.dtype == np.float32
        np.testing.assert_allclose(adjusted, each_pixel(pixels, pixelwise), atol=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.1, 0.5, -0.5])
def test_hue(turn):
    pixels = transforms.to_fractions(picture())
    corners = np.indices((2, 2, 2)).reshape(3, -1).T.astype(np.float32)  # greys, pure colours
    pixels[0], pixels[1] = corners[:7], corners[-1:]

    def turned(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    adjusted = transforms.adjust_hue(pixels, turn)
    assert adjusted.dtype == np.float32
    np.testing.assert_allclose(adjusted, each_pixel(pixels, turned), atol=2e-6)


def test_jitter_draws_factors_and_order_at_random():
    pixels = transforms.to_fractions(picture())
    original = pixels.copy()
    generator = np.random.default_rng(0)
    factors = []
    for _ in range(300):
        jittered = transforms.colour_jitter(pixels * 0.5, Augment(brightness=0.3), generator)
        ratio = jittered[pixels > 0] / (pixels[pixels > 0] * 0.5)
        assert np.ptp(ratio) < 1e-5
        factors.append(ratio[0])
    assert 0.7 <= min(factors) < 0.72 and 1.28 < max(factors) <= 1.3
    # Brightness and contrast do not commute: both orders come up with the same two factors.
    both = Augment(brightness=0.9, contrast=0.9)
    orders = set()
    for seed in range(30):
        order = np.random.default_rng(seed)
        permutation, (bright, contrast) = order.permutation(4), order.random(4)[:2] * 1.8 + 0.1
        first = transforms.adjust_brightness, bright
        second = transforms.adjust_contrast, contrast
        if list(permutation).index(0) > list(permutation).index(1):
            first, second = second, first
        expected = second[0](first[0](pixels, first[1]), second[1])
        jittered = transforms.colour_jitter(pixels, both, np.random.default_rng(seed))
        np.testing.assert_allclose(jittered, expected, atol=1e-6)
        orders.add(first[0])
    assert len(orders) == 2
    np.testing.assert_array_equal(pixels, original)


def test_jitter_never_leaves_the_range():
    generator = np.random.default_rng(0)
    augment = Augment(brightness=2, contrast=2, saturation=2, hue=0.5)
    for seed in range(50):
        pixels = transforms.to_fractions(picture(seed=seed))
        jittered = transforms.colour_jitter(pixels, augment, generator)
        assert jittered.min() >= -1e-6 and jittered.max() <= 1 + 1e-6


def test_no_jitter_changes_nothing():
    pixels = transforms.to_fractions(picture())
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(transforms.colour_jitter(pixels, Augment(), generator), pixels)


@pytest.mark.parametrize(("field", "value"), [("brightness", -0.1), ("hue", -0.2), ("hue", 0.6)])
def test_augment_checks_its_values(field, value):
    with pytest.raises(ValueError, match=rf"augment\.{field} = {value}"):
        Augment(**{field: value})


def test_mirror():
    image = picture()
    np.testing.assert_array_equal(transforms.mirror(image), image[:, ::-1])
    np.testing.assert_array_equal(transforms.mirror(image[..., 0]), image[:, ::-1, 0])


# Palettes


def test_voc_palette():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, colour in known.items():
        assert tuple(palette[label]) == colour
    assert len({tuple(colour) for colour in palette}) == 256


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_masks_survive_their_png(size):
    mask = picture(size)
    mask[0, 0] = 255
    data = encode_mask(mask)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), voc_palette()[mask])
    np.testing.assert_array_equal(decode_mask(data), mask)
    np.testing.assert_array_equal(decode_mask(encode(Image.fromarray(mask))), mask)


def test_only_label_masks_pass():
    with pytest.raises(ValueError, match=r"\(H, W\) uint8, but got \(9, 7, 3\) uint8"):
        encode_mask(picture())
    with pytest.raises(ValueError, match="int64"):
        encode_mask(np.zeros((4, 4), np.int64))
    with pytest.raises(ValueError, match="cannot read the label mask cat"):
        decode_mask(encode_mask(picture((9, 7)))[:50], "cat")
    with pytest.raises(ValueError, match="its mode is I;16, wanted"):
        decode_mask(encode(Image.fromarray(np.full((2, 2), 300, np.uint16))))
    with pytest.raises(ValueError, match="its format is JPEG, wanted PNG"):
        decode_mask(encode(Image.fromarray(np.zeros((8, 8), np.uint8)), "JPEG"))
    for channels, mode in ((2, "LA"), (3, "RGB"), (4, "RGBA")):
        with pytest.raises(ValueError, match=f"mask of cat: its mode is {mode}, wanted"):
            decode_mask(encode(Image.fromarray(picture((2, 2, channels)))), "mask of cat")


def test_sizes_and_types_that_cannot_be_are_named():
    for size in ((0, 4), (3, 0)):
        for xp in (np, jnp):
            with pytest.raises(ValueError, match=r"of at least 1 x 1, not"):
                transforms.resize_maps(xp.ones((2, 2), np.float32), size)
    for shape in ((0, 2), (2, 0)):
        for xp in (np, jnp):
            with pytest.raises(ValueError, match=r"resize_maps wants maps of at least 1 x 1, got"):
                transforms.resize_maps(xp.ones(shape, np.float32), (3, 4))
            assert transforms.resize_maps(xp.ones((0, 2, 2), np.float32), (3, 4)).shape == (0, 3, 4)
    for dtype in (object, np.float32, np.int64):
        image = np.zeros((2, 2, 3), dtype)
        with pytest.raises(ValueError, match=f"images must be uint8 .*, not {np.dtype(dtype)}"):
            transforms.to_fractions(image)
        with pytest.raises(ValueError, match=f"images must be uint8 .*, not {np.dtype(dtype)}"):
            transforms.normalise(image, PREPROCESS)
        with pytest.raises(ValueError, match=f"wants uint8, got {np.dtype(dtype)}"):
            transforms.resize_image(image, (4, 4))


@pytest.mark.parametrize("dtype", [object, np.uint8, np.int64])
def test_pixels_that_are_no_fractions_are_named(dtype):
    pixels = np.zeros((2, 2, 3), dtype)
    jitter = transforms.Augment(brightness=0.5)
    for function in (
        lambda: transforms.normalise_fractions(pixels, PREPROCESS),
        lambda: transforms.colour_jitter(pixels, jitter, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match=f"pixels must be floats .*, not {np.dtype(dtype)}"):
            function()


def png_of_few_bits(mask, bits, kind, *before):
    """A PNG of a mask with so many bits a pixel, and chunks before its first."""
    height, width = mask.shape
    colours = 0 if kind == "grey" else 3
    chunks = [*before, b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)]
    if kind == "palette":
        chunks.append(b"PLTE" + bytes(range(3)) * 2**bits)
    rows = [np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel() for row in mask]
    packed = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    chunks += [b"IDAT" + zlib.compress(packed), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize("kind", ["grey", "palette"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_values(bits, kind):
    """Pillow stretches greys of few bits to 0..255: {0, 1, 15} would become {0, 17, 255}."""
    mask = np.random.default_rng(bits).integers(0, 2**bits, (5, 13), dtype=np.uint8)
    mask[0, 0] = 2**bits - 1
    data = png_of_few_bits(mask, bits, kind)
    np.testing.assert_array_equal(decode_mask(data), mask)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_of_masks_are_not_taken_from_a_place_in_the_file(bits):
    """Pillow reads PNGs that have a text before their header."""
    mask = np.array([[0, 1, 2**bits - 1]], np.uint8)
    for length in range(20):
        data = png_of_few_bits(mask, bits, "grey", b"tEXta\0" + bytes(length))
        np.testing.assert_array_equal(decode_mask(data), mask)
