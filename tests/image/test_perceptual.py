"""The hash of copies is nearly the same and that of other images is not; the bits are those of a plain loop."""

import numpy as np
import pytest

from stimg.image.perceptual import LUMA, hamming, image_hash


def tissue(seed, shape=(400, 360)):
    """A white slide with a pink shape of uneven darkness."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n)[:, None] / n for n in shape)
    x = x.T
    waves = sum(
        rng.normal() * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * y + rng.uniform(0.5, 3) * x) + rng.uniform(0, 6)) for _ in range(8)
    )
    inside = ((y - rng.uniform(0.3, 0.7)) / rng.uniform(0.5, 1.2)) ** 2 + ((x - rng.uniform(0.3, 0.7)) / rng.uniform(0.5, 1.2)) ** 2 < 0.16
    dark = np.where(inside, 0.35 + 0.06 * waves, 0.02)[..., None] * [0.7, 1.2, 0.8]
    return np.clip(255 * 10**-dark + rng.normal(0, 4, (*shape, 3)), 0, 255).astype(np.uint8)


def plain_hash(image):
    """Average whole cells of an image whose sides are multiples of 8 and 9."""
    grey = image.astype(float) @ np.array(LUMA) if image.ndim == 3 else image.astype(float)
    height, width = grey.shape[0] // 8, grey.shape[1] // 9
    bits = 0
    for i in range(8):
        row = [grey[i * height : (i + 1) * height, j * width : (j + 1) * width].mean() for j in range(9)]
        for j in range(8):
            bits = 2 * bits + (row[j] - row[j + 1] >= 1)
    return bits


@pytest.mark.parametrize("seed", range(5))
def test_bits_are_those_of_a_plain_loop(seed):
    image = tissue(seed)
    assert int(image_hash(image)) == plain_hash(image)
    assert int(image_hash(image[..., 1])) == plain_hash(image[..., 1])
    assert isinstance(image_hash(image), np.uint64)


def test_copies_are_near_and_others_are_far():
    from scipy.ndimage import zoom

    hashes = []
    for seed in range(10):
        image = tissue(seed)
        original = image_hash(image)
        hashes.append(original)
        copies = {
            "darker": (image * 0.9).astype(np.uint8),
            "smaller": np.clip(zoom(image, (0.37, 0.37, 1), order=1), 0, 255),
            "stretched": np.clip(zoom(image, (1.5, 1.2, 1), order=1), 0, 255),
            "coarse": image // 16 * 16,
            "noisy": np.clip(image + np.random.default_rng(seed).normal(0, 8, image.shape), 0, 255).astype(np.uint8),
        }
        distances = {name: int(hamming(original, image_hash(copy))) for name, copy in copies.items()}
        assert max(distances.values()) <= 3, distances
        mirrored = hamming(original, image_hash(image[:, ::-1]))
        assert mirrored > max(distances.values())
    pairs = hamming(np.array(hashes)[:, None], np.array(hashes))
    np.testing.assert_array_equal(np.diag(pairs), 0)
    np.testing.assert_array_equal(pairs, pairs.T)
    assert pairs[np.triu_indices(10, 1)].min() >= 8


def test_plain_and_almost_plain_images_have_no_bit():
    assert image_hash(np.full((50, 50, 3), 255, np.uint8)) == 0
    noise = np.random.default_rng(0).integers(250, 256, (300, 300, 3)).astype(np.uint8)
    assert image_hash(noise) == 0


def test_memory_mapped_and_odd_sizes(tmp_path):
    image = tissue(3, (203, 157))
    np.save(tmp_path / "image.npy", image)
    assert image_hash(np.load(tmp_path / "image.npy", mmap_mode="r")) == image_hash(image)
    # cut pixels count by their share: each pixel repeated 8 × 9 times makes the cells whole
    assert int(image_hash(image)) == plain_hash(np.repeat(np.repeat(image, 8, axis=0), 9, axis=1))
    assert image_hash(image[::-1][::-1]) == image_hash(image)


def test_hamming_counts_differing_bits():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2**63, (2, 20), dtype=np.uint64)
    assert hamming(a, b).tolist() == [bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True)]
    assert hamming(np.uint64(0), np.uint64(2**64 - 1)) == 64


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (np.zeros((20, 20, 3)), TypeError, "float64"),
        (np.zeros((20, 20, 4), np.uint8), ValueError, r"\(20, 20, 4\)"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, "8 × 9"),
        (np.zeros(20, np.uint8), ValueError, r"\(20,\)"),
    ],
)
def test_errors_say_what_was_found(image, error, match):
    with pytest.raises(error, match=match):
        image_hash(image)
