"""Adaptively-recalibrated feature distillation: kernel regression of feature tokens, and how well two sets of them align (CKA).

The public outline of LIX (Guo et al., arXiv 2403.08215) says that features are recalibrated by kernel regression with a Laplace kernel
and that their consistency is centred kernel alignment through HSIC. The bandwidth, the tokens and the reductions are this project's
reconstruction; docs/distillation.md has the formulas.

Shape letters: B batch, D E channels, H W cells of a feature, N tokens of an image. Computed in the dtype of the arguments.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lix_core.errors import TrainingError
from lix_core.labels import UNLABELLED

FLAT = 1e-10
"""Tokens whose variance is a smaller share of their mean square say nothing but rounding errors."""

SMALLEST_HSIC = 1e-6
"""Of standardised tokens with themselves. Less, or less than one rounding error for each token, is rounding: where none varies, or where
a single one stands out, of which the unbiased form, without the diagonal of the Gram matrix, sees nothing."""

SMALLEST_SIGMA = 1e-12
"""Where all tokens coincide, so that no gradient overflows."""


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The largest grid of about the same aspect with at most `tokens` cells and no more rows and columns than the feature.

    A single row or column may be longer than its share: it uses what the other side leaves.
    """
    if height * width <= tokens:
        return height, width
    rows = min(height, max(1, math.floor(math.sqrt(tokens * height / width))))
    columns = min(width, max(1, tokens // rows))
    return min(height, tokens // columns), columns


def pool_tokens(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, D, H, W) -> (B, N, D): averages over a grid of N cells, row by row."""
    pooled = feature if feature.shape[-2:] == grid else F.adaptive_avg_pool2d(feature, grid)
    return pooled.flatten(2).transpose(1, 2)


def draw_points(classes: Tensor, count: int, balanced: bool) -> Tensor:
    """Cells drawn from each image without replacement; with `balanced` every class of an image is as likely as any other.

    Cells of class 255 come last: only where an image has fewer than `count` others. Weighted as of Efraimidis and Spirakis (Information
    Processing Letters 97, 2006). From torch's global generator.

    Shape:
        classes (B, H, W) int64 -> (B, N, 2): x and y of the cells' centres, -1 to 1 from edge to edge; N = min(count, H W)
    """
    height, width = classes.shape[1:]
    flat = classes.flatten(1)
    weights = (flat != UNLABELLED).float()
    if balanced:
        areas = torch.zeros(len(flat), UNLABELLED + 1, device=flat.device).scatter_add_(1, flat, torch.ones_like(weights))
        weights = weights / areas.gather(1, flat)
    arrival = torch.empty_like(weights).exponential_() / weights  # infinite where the weight is 0
    cells = arrival.topk(min(count, height * width), largest=False).indices
    rows, columns = cells.div(width, rounding_mode="floor"), cells % width
    return torch.stack([(2 * columns + 1) / width, (2 * rows + 1) / height], 2) - 1


def tokens_at(feature: Tensor, points: Tensor) -> Tensor:
    """A feature at points, interpolated bilinearly: (B, D, H, W) and (B, N, 2) as `draw_points` gives them -> (B, N, D)."""
    return F.grid_sample(feature, points[:, :, None].to(feature.dtype), padding_mode="border", align_corners=False)[..., 0].transpose(1, 2)


def laplace_regression(tokens: Tensor) -> Tensor:
    """Nadaraya-Watson regression of the tokens of each image on themselves: x~ = K x / K 1.

    K_ij = exp(-|x_i - x_j|_1 / sigma), sigma = the mean distance between two different tokens of that image.

    Shape:
        (B, N, D) -> (B, N, D)
    """
    count = tokens.shape[1]
    if count < 2:
        return tokens
    # pdist sees each pair once; measured on CPUs it is several times faster than cdist, forward and backward.
    distance = torch.stack([F.pdist(image.contiguous(), p=1.0) for image in tokens])
    sigma = distance.mean(1, keepdim=True).clamp(min=SMALLEST_SIGMA)
    rows, columns = torch.triu_indices(count, count, 1, device=tokens.device)
    above = tokens.new_zeros(len(tokens), count, count)
    above[:, rows, columns] = (-distance / sigma).exp()
    others = above + above.transpose(1, 2)
    return (tokens + others @ tokens) / (1 + others.sum(2, keepdim=True))


RECALIBRATIONS = {"laplace": laplace_regression, "none": lambda tokens: tokens}
"""(B, N, D) -> (B, N, D), by the name of the kernel."""


def standardised(tokens: Tensor) -> Tensor:
    """Tokens about their mean, of unit norm over the image; 0 where they do not vary.

    CKA does not change by it, and products of HSICs stay within float32. For the same reason the norm needs no gradient.
    """
    centred = tokens - tokens.mean(1, keepdim=True)
    norm = centred.detach().norm(dim=(1, 2), keepdim=True)
    return torch.where(varies(tokens)[:, None, None], centred / norm.clamp(min=torch.finfo(tokens.dtype).tiny), 0.0)


def varies(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B,) bool: whether an image's tokens differ by more than rounding."""
    tokens = tokens.detach()
    return tokens.var(1, correction=0).sum(1) > FLAT * tokens.square().mean(1).sum(1)


def linear_gram(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N) inner products."""
    return tokens @ tokens.transpose(1, 2)


def rbf_gram(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N) exp(-|x_i - x_j|^2 / (2 m^2)), m = the median distance between two different tokens of that image.

    Where most tokens coincide the median says nothing: m^2 is at least a thousandth of the mean squared distance.
    """
    gram, count = linear_gram(tokens), tokens.shape[1]
    own = gram.diagonal(dim1=1, dim2=2)
    squared = (own[:, :, None] + own[:, None, :] - 2 * gram).clamp(min=0)
    rows, columns = torch.triu_indices(count, count, 1, device=tokens.device)
    pairs = squared[:, rows, columns]
    median = torch.maximum(pairs.median(1).values, 1e-3 * pairs.mean(1)).clamp(min=SMALLEST_SIGMA)
    return (-squared / (2 * median[:, None, None])).exp()


GRAMS = {"linear": linear_gram, "rbf": rbf_gram}


def centred_gram(gram: Tensor, unbiased: bool) -> Tensor:
    """(B, N, N) Gram matrices, so centred that HSIC is a multiple of the sum of products of two of them.

    Biased: H K H with H = I - 1/N (Gretton et al. 2005). Unbiased: without the diagonal, rows and columns then sum to 0
    (U-centring; the estimator is that of Song et al., JMLR 2012, equation 5).
    """
    if not unbiased:
        return gram - gram.mean(1, keepdim=True) - gram.mean(2, keepdim=True) + gram.mean((1, 2), keepdim=True)
    count = gram.shape[1]
    on_diagonal = torch.eye(count, dtype=torch.bool, device=gram.device)
    gram = gram.masked_fill(on_diagonal, 0.0)
    row, total = gram.sum(2, keepdim=True) / (count - 2), gram.sum((1, 2), keepdim=True) / ((count - 1) * (count - 2))
    return (gram - row - row.transpose(1, 2) + total).masked_fill(on_diagonal, 0.0)


def linear_alignment(x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """(B,) sum of products of the centred linear Gram matrices of centred tokens, in feature space: no N x N matrix is made.

    For the unbiased form: without the diagonal, a row of the Gram matrix of centred tokens sums to minus its diagonal entry.
    """
    total = (x.transpose(1, 2) @ y).square().sum((1, 2))
    if not unbiased:
        return total
    count, own_x, own_y = x.shape[1], x.square().sum(2), y.square().sum(2)
    return total - count / (count - 2) * (own_x * own_y).sum(1) + own_x.sum(1) * own_y.sum(1) / ((count - 1) * (count - 2))


def cka(x: Tensor, y: Tensor, kernel: str = "linear", unbiased: bool = False) -> Tensor:
    """Centred kernel alignment of each image's tokens: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

    After Kornblith et al., ICML 2019, arXiv 1905.00414. 1 for tokens that agree up to a rotation and a scale, whatever their
    widths; 0 (or below, in the unbiased form) for unrelated ones; 0 without gradient where the tokens of an image do not vary, or, in the
    unbiased form, all but one are alike.

    Args:
        kernel: a key of GRAMS.

    Raises:
        TrainingError: the unbiased form of fewer than 4 tokens.

    Shape:
        x (B, N, D), y (B, N, E) -> (B,)
    """
    count = x.shape[1]
    if unbiased and count < 4:
        raise TrainingError(f"unbiased HSIC needs at least 4 tokens, a feature has {count}; take finer features or larger images")
    x, y = standardised(x), standardised(y)
    if kernel == "linear" and max(x.shape[2], y.shape[2]) < count:
        cross, own_x, own_y = (linear_alignment(a, b, unbiased) for a, b in ((x, y), (x, x), (y, y)))
    else:
        k, m = (centred_gram(GRAMS[kernel](tokens), unbiased) for tokens in (x, y))
        cross, own_x, own_y = ((a * b).sum((1, 2)) for a, b in ((k, m), (k, k), (m, m)))
    least = max(SMALLEST_HSIC, count * torch.finfo(own_x.dtype).eps)
    tell = (own_x > least) & (own_y > least)
    return torch.where(tell, cross, 0.0) / torch.where(tell, own_x * own_y, 1.0).sqrt()


def recalibrated_feature_loss(
    student: Tensor,
    teacher: Tensor,
    tokens: int = 256,
    kernel: str = "laplace",
    alignment: str = "linear",
    unbiased: bool = False,
    points: Tensor | None = None,
) -> Tensor:
    """1 - CKA of the recalibrated tokens of one feature, the mean over the images; gradients reach the student only.

    Widths and grids may differ: both are pooled to the same grid, or read at the same points. Images in which the teacher's tokens do not
    vary do not count.

    Args:
        tokens: at most so many of each image, where they are pooled. kernel: a key of RECALIBRATIONS. alignment, unbiased: see `cka`.
        points: where the tokens are read, as `draw_points` gives them; None: they are pooled.

    Shape:
        student (B, D, H, W), teacher (B, E, H', W'), points (B, N, 2) -> scalar
    """
    recalibrate = RECALIBRATIONS[kernel]
    if points is None:
        height, width = (min(sizes) for sizes in zip(student.shape[-2:], teacher.shape[-2:]))
        read = partial(pool_tokens, grid=token_grid(height, width, tokens))
    else:
        read = partial(tokens_at, points=points)
    # Standardised first: regressed tokens lie close together, and beside a mean far from 0 they would seem not to vary at all.
    with torch.no_grad():
        taught = recalibrate(standardised(read(teacher)))
        counted = varies(taught)
    learned = recalibrate(standardised(read(student)))
    loss = 1 - cka(learned, taught, alignment, unbiased)
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)
