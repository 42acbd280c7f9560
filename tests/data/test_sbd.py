import io
import random
import zlib

import numpy as np
import pytest
import scipy.io

from tests import made_voc
from vitx.data.formats import sbd


def mat(content, **options):
    file = io.BytesIO()
    scipy.io.savemat(file, content, **options)
    return file.getvalue()


@pytest.mark.parametrize("compress", [True, False])
def test_masks_are_read_as_scipy_reads_them(compress):
    generator = np.random.default_rng(0)
    for shape in ((1, 1), (1, 2), (2, 2), (1, 5), (7, 3), (375, 500)):
        mask = generator.integers(0, 21, shape, np.uint8)
        data = made_voc.sbd_mat(mask, compress)
        found = sbd.segmentation(data, "x")
        loaded = scipy.io.loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
        np.testing.assert_array_equal(found, loaded)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.uint8
    other = mat({"first": np.eye(3), "GTcls": {"Segmentation": mask}}, do_compression=compress)
    np.testing.assert_array_equal(sbd.segmentation(other, "x"), mask)


STRUCTURES = np.zeros((1, 2), [("Segmentation", object)])
STRUCTURES["Segmentation"][0, 0] = STRUCTURES["Segmentation"][0, 1] = np.ones((2, 2), np.uint8)


BYTE = np.uint8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin as one"),
        (b"\x89HDF\r\n\x1a\n" * 99, "does not begin as one"),
        (mat({"GTinst": {"Segmentation": np.eye(3, dtype=BYTE)}}), "has no GTcls"),
        (mat({"GTcls": np.eye(3, dtype=BYTE)}), r"GTcls is of class 9 and shape \(3, 3\)"),
        (mat({"GTcls": {"Boundaries": np.eye(3)}}), "GTcls has no Segmentation"),
        (mat({"GTcls": STRUCTURES}), r"GTcls is of class 2 and shape \(1, 2\)"),
        (mat({"GTcls": {"Segmentation": np.eye(3)}}), r"of class 6 and shape \(3, 3\), not uint8"),
        (mat({"GTcls": {"Segmentation": np.zeros((2, 2, 2), BYTE)}}), r"shape \(2, 2, 2\), not"),
        (mat({"GTcls": {"Segmentation": np.zeros((0, 2), BYTE)}}), r"shape \(0, 2\), not uint8"),
        (mat({"GTcls": {"Segmentation": "text"}}), r"of class 4 and shape"),
        (mat({"GTcls": {"Segmentation": {"Segmentation": 1}}}), r"of class 2 and shape \(1, 1\)"),
    ],
)
def test_other_matlab_files_are_refused(data, message):
    with pytest.raises(
        ValueError, match=f"^x is damaged or no MATLAB 5 file .*{message}.*get it again$"
    ):
        sbd.segmentation(data, "x")


@pytest.mark.parametrize("compress", [True, False])
def test_damaged_masks_never_do_worse(compress):
    """scipy's reader ends the process on some of these."""
    whole = made_voc.sbd_mat(np.arange(120, dtype=np.uint8).reshape(12, 10) % 21, compress)
    generator = random.Random(0)
    outcomes = []
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 4))):
            data[generator.randrange(124, len(data))] = generator.choice(
                (0, 1, 255, generator.randrange(256))
            )
        try:
            outcomes.append(
                sbd.segmentation(bytes(data[: generator.randrange(128, 9999)]), "x").dtype
            )
        except ValueError as error:
            outcomes.append(str(error)[:12])
    assert set(outcomes) == {np.dtype(np.uint8), "x is damaged"}


def test_what_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(sbd, "_LARGEST_MASK", 10**5)
    bomb = zlib.compress(bytes(10**6))
    head = made_voc.sbd_mat(np.eye(3, dtype=np.uint8))[:128]
    data = head + bytes([15, 0, 0, 0]) + len(bomb).to_bytes(4, "little") + bomb
    with pytest.raises(ValueError, match="what it inflates to is too large"):
        sbd.segmentation(data, "x")
