"""How well masks follow features: the share of the labels' variance that features explain."""

from typing import NamedTuple

import numpy as np

RIDGE = 1e-3


class FeatureSums(NamedTuple):
    """The number of cells, and the products of their features summed over them (D, D). They add up over images."""

    cells: np.ndarray
    products: np.ndarray


def feature_sums(features: np.ndarray) -> FeatureSums:
    """The sums over an image's cells, of features (N, D) less their mean over the image; float64."""
    centred = _centred(features)
    return FeatureSums(np.array(len(centred), np.float64), centred.T @ centred)


def label_sums(features: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """What `explained_share` needs of an image's labels, float64 (..., C, D + 2). It adds up over images.

    Args:
      features: of the image's cells (N, D).
      shares: how much of each cell each class covers (..., C, N), in [0, 1].

    Returns:
      For each class the sums over cells of share times feature less its mean (D of them), of the share, and of its
      square.
    """
    shares = shares.astype(np.float64)
    own = np.stack([shares.sum(-1), np.square(shares).sum(-1)], -1)
    return np.concatenate([shares @ _centred(features), own], -1)


def explained_share(features: FeatureSums, labels: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """The share of the variance of labels that a ridge regression on features explains (docs/protocol.md).

    Features are taken less their mean over each image, since what all of an image's cells share tells which classes it
    shows, but not where. At unit variance of the features, R their correlations, c_k their covariances with class k's
    share y_k, this is sum_k c_k' (R + ridge I)^-1 c_k / sum_k var(y_k).

    Args:
      features: `feature_sums` over all images.
      labels: `label_sums` (..., C, D + 2) over the same images.
      ridge: above 0.

    Returns:
      (...) in [0, 1]; 0 where all cells have the same label.
    """
    covariances = features.products / features.cells
    variances = covariances.diagonal()
    scale = np.where(variances > 0, 1 / np.sqrt(np.where(variances > 0, variances, 1)), 0)
    correlations = covariances * np.outer(scale, scale) + ridge * np.eye(len(scale))
    means = labels / features.cells
    cross = means[..., :-2] * scale  # (..., C, D)
    solved = np.linalg.solve(correlations, cross.reshape(-1, len(scale)).T).T
    explained = (cross * solved.reshape(cross.shape)).sum((-2, -1))
    total = (means[..., -1] - np.square(means[..., -2])).sum(-1)
    varies = total > 1e-12  # beyond rounding
    return np.where(varies, explained / np.where(varies, total, 1), 0)


def _centred(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features - features.mean(0)
