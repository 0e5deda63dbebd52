"""Depth from a rectified stereo pair: semi-global matching, checked from left to right and back.

Disparity d is in pixels of the left image: what is seen in column u of the left image is in column u - d of the right one.
Depth is fx * baseline / d [m]. NaN is unknown. Both images are rectified: rows agree, focal lengths agree.

Matching is OpenCV's (Hirschmueller, PAMI 2008). bench/stereo.py measured every default on simulated streets that it does not report.
`pair_fault` finds pairs that are no pair, before a wrong depth is believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError

MODES = {
    "three_paths": cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    "four_paths": cv2.STEREO_SGBM_MODE_HH4,
    "five_paths": cv2.STEREO_SGBM_MODE_SGBM,
    "eight_paths": cv2.STEREO_SGBM_MODE_HH,
}
"""OpenCV's variants of semi-global matching, by the number of directions in which costs are summed."""

SMALL_STEP, LARGE_STEP = 12, 48
"""Cost of a disparity that changes by one pixel, and by more, per pixel of the window (P1 and P2 of the paper)."""
MOST_COST = {mode: (2**15 - 1) // paths for mode, paths in zip(MODES, (3, 4, 5, 8))}
"""Largest P2: OpenCV sums the costs of all paths in int16, where those of large windows overflow and matches get lost."""
SPECKLE_STEP = 2
"""Neighbours whose disparities differ by up to this many pixels are of one speckle."""
GUIDE_RADIUS, GUIDE_EPSILON = 3, 1e-3
"""Window [pixels] and regularisation [squared intensity, 0..1] of the edge filter."""
NO_CHECK = 1 << 14
"""[pixels]: more than any two disparities differ."""
UNITS = 16
"""OpenCV's disparities are int16 in sixteenths of a pixel, and its largest one a multiple of 16."""
MOST_DISPARITY = (2**15 - 1) // UNITS // 16 * 16
UNKNOWN = -UNITS
_PULL = np.array([0, 0.1, 0.105, 0.11, 0.11, 0.1, 0.08, 0.045], np.float32)
PULL = np.concatenate([_PULL, [0], -_PULL[:0:-1]]).astype(np.float32)
"""What OpenCV's fractions lack, by sixteenth [pixels]: its parabola draws disparities towards whole pixels (Shimizu and Okutomi, IJCV
2005, on the cause). The median error on simulated streets, alike for all modes and block sizes, by day, by night and on a real pair."""

FEATURES, FEATURE_WIDTH, LEAST_SIDE = 800, 800, 32
"""`pair_fault` takes up to so many features, of images reduced to this width [pixels]; shorter sides than the last have too few."""
NOISE_FACTOR, LEAST_CONTRAST = 3.0, 10
"""A corner must stand out by this many standard deviations of the image's Laplacian, and by this many gray levels."""
ALIKE_BITS = 40
"""Descriptors (256 bits) that differ by up to this many are of one thing."""
ROW_SLACK = 1.5
"""Matches within this many pixels (of the reduced image) of a common change of rows belong to it."""
ENOUGH_MATCHES, ENOUGH_SHARE = 30, 0.5
"""Fewer matches that agree on the rows, or a smaller share of all, say nothing."""
MANY_FEATURES, CHANCE_SHARE = 400, 0.03
"""Where both images have so many features and not even this share match, they show different scenes: simulated streets matched by 11 %
and more with their own right image, and by 2.5 % at most with another street's."""
SWAPPED_SHARE = 0.9
"""Share of the matches that must lie farther right in the right image."""
UNRECTIFIED = "not rectified"
"""So begins what `pair_fault` says of a pair that gives depth all the same."""


@dataclass(frozen=True)
class StereoOptions:
    """How a pair is matched.

    max_disparity: largest disparity searched, a multiple of 16 up to 2032 [pixels], 0 being infinitely far; time grows with it, and
        what is nearer than fx * baseline / max_disparity cannot be measured.
    block_size: side of the window compared, odd [pixels]. Larger is smoother and loses thin things.
    consistency: disparities that differ by more between left to right and right to left are unknown [pixels]; 0 = no check, which
        guesses where only one camera sees.
    quick_check: the way from right to left at half size: less time, fewer thin things kept.
    mode: one of MODES. More paths are not always better, and slower.
    uniqueness: percent by which the best match must beat the second [0..100].
    speckle: patches of disparity smaller than this are unknown [pixels]; 0 keeps them.
    blur: sigma of the Gaussian applied first, against camera noise [pixels]; 0 = none.
    edge_filter: smooth disparity inside the edges of the left image (guided filter). Surfaces get better, depth edges a little worse.

    Raises:
        GeometryError: a value outside of these.
    """

    max_disparity: int = 128
    block_size: int = 5
    consistency: float = 1.0
    quick_check: bool = False
    mode: str = "three_paths"
    uniqueness: int = 10
    speckle: int = 100
    blur: float = 0.7
    edge_filter: bool = False

    def __post_init__(self) -> None:
        for name in ("max_disparity", "block_size", "uniqueness", "speckle"):
            if not isinstance(getattr(self, name), (int, np.integer)):
                raise GeometryError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.max_disparity > MOST_DISPARITY:
            raise GeometryError(f"max_disparity must be up to {MOST_DISPARITY} pixels, all that int16 holds; got {self.max_disparity}")
        if self.max_disparity < 16 or self.max_disparity % 16:
            nearest = max(16, round(self.max_disparity / 16) * 16)
            raise GeometryError(f"max_disparity must be a multiple of 16 pixels, got {self.max_disparity}; take {nearest}")
        if not 1 <= self.block_size <= 21 or self.block_size % 2 == 0:
            raise GeometryError(f"block_size must be odd and 1 to 21 pixels, got {self.block_size}")
        if self.mode not in MODES:
            raise GeometryError(f"there is no stereo mode {self.mode!r}; there are {', '.join(MODES)}")
        for name, high in (("consistency", 16), ("uniqueness", 100), ("speckle", 10_000), ("blur", 5)):
            if not 0 <= getattr(self, name) <= high:
                raise GeometryError(f"{name} must be 0 to {high}, got {getattr(self, name)}")


class StereoMatcher:
    """Turns pairs into disparity. Not for use by several threads at once.

    Raises:
        GeometryError: options that cannot be; from `match`, images that are no pair by their types or sizes.
    """

    def __init__(self, options: StereoOptions = StereoOptions()):
        self.options = options
        self._there = self._matcher(options.max_disparity)
        self._scale = 2 if options.quick_check else 1
        # Rounded up to what OpenCV takes.
        self._back = self._matcher(-(-options.max_disparity // (UNITS * self._scale)) * UNITS)

    def match(self, left: np.ndarray, right: np.ndarray, infinity: float = 0.0) -> np.ndarray:
        """Disparity of every pixel of the left image.

        infinity: columns by which infinitely far things are apart, see pair_geometry [pixels]. The search begins there, and it is
            taken off every disparity.

        Shape:
            left, right: (H, W) or (H, W, 3) uint8, gray or RGB, rectified -> (H, W) float32 [pixels], above 0, NaN where it is
            unknown: not alike from both sides, a speckle, farther than infinity, or the match would lie beyond the right image.

        Raises:
            GeometryError: other types or shapes, sizes that differ, an image no wider than max_disparity, or than infinity is off.
        """
        left, right = _gray_pair(left, right)
        options = self.options
        width = left.shape[1]
        if width <= options.max_disparity:
            raise GeometryError(f"max_disparity {options.max_disparity} does not fit into images {width} pixels wide; lower it")
        if not abs(infinity) <= width - 1:
            raise GeometryError(
                f"infinitely far things are {infinity:.1f} columns apart in images {width} pixels wide, so that nothing far is in both; "
                "check the principal points, p[2] of both camera_info"
            )
        guide = left
        if options.blur > 0:
            left, right = (cv2.GaussianBlur(image, (0, 0), options.blur) for image in (left, right))
        # OpenCV searches from 0 on: borders put what is infinitely far into one column. Nothing has its match in a border.
        shift = math.floor(infinity)
        before_left, before_right = max(-shift, 0), max(shift, 0)
        left = cv2.copyMakeBorder(left, 0, 0, before_left, before_right, cv2.BORDER_REPLICATE)
        right = cv2.copyMakeBorder(right, 0, 0, before_right, before_left, cv2.BORDER_REPLICATE)
        found = _search(self._there, left, right)
        columns = np.arange(found.shape[1], dtype=np.float32)
        target = columns - found * np.float32(1 / UNITS)
        known = (found > 0) & (target >= before_right) & (target <= before_right + width - 1)
        if options.consistency > 0:
            known &= self._agrees(found, self._right_to_left(left, right), target)
        found[~known] = UNKNOWN
        found = np.ascontiguousarray(found[:, before_left : before_left + width])
        if options.speckle > 0:
            cv2.filterSpeckles(found, UNKNOWN, options.speckle, SPECKLE_STEP * UNITS)
        disparity = found * np.float32(1 / UNITS) + PULL[found % UNITS] - np.float32(infinity - shift)
        disparity[(found <= 0) | (disparity <= 0)] = np.nan
        return _smooth_within_edges(disparity, guide) if options.edge_filter else disparity

    def _matcher(self, max_disparity: int) -> cv2.StereoSGBM:
        options = self.options
        area = options.block_size**2
        large = min(LARGE_STEP * area, MOST_COST[options.mode])
        return cv2.StereoSGBM_create(
            minDisparity=0,
            numDisparities=max_disparity,
            blockSize=options.block_size,
            P1=large * SMALL_STEP // LARGE_STEP,
            P2=large,
            # OpenCV's own check, of whole pixels and one-sided costs, takes 0 and less for 1: only a huge value switches it off.
            disp12MaxDiff=max(1, round(options.consistency)) if options.consistency > 0 else NO_CHECK,
            preFilterCap=31,
            uniquenessRatio=options.uniqueness,
            mode=MODES[options.mode],
        )

    def _right_to_left(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Disparity of the right image [sixteenths of its own pixels]: mirrored, the right image is the left one of a pair."""
        images = [cv2.flip(image, 1) for image in (right, left)]
        if self._scale > 1:
            height, width = left.shape
            size = (-(-width // self._scale), -(-height // self._scale))
            images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
        return cv2.flip(_search(self._back, *images), 1)

    def _agrees(self, found: np.ndarray, back: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(H, W) bool: the disparity at the match in the right image is the same."""
        height, width = found.shape
        # Pixel centres of an image of another size.
        sx, sy = back.shape[1] / width, back.shape[0] / height
        rows = np.repeat(((np.arange(height, dtype=np.float32)[:, None] + 0.5) * sy - 0.5), width, axis=1)
        there = cv2.remap(back, (target + 0.5) * np.float32(sx) - np.float32(0.5), rows, cv2.INTER_NEAREST, borderValue=UNKNOWN)
        return (there > 0) & (np.abs(there * np.float32(1 / sx) - found) <= self.options.consistency * UNITS)


def pair_geometry(left: Camera, right: Camera) -> tuple[float, float]:
    """Baseline [m] of a rectified pair, and by how many columns infinitely far things are apart [pixels].

    The latter is 0 where the principal points share a column. StereoMatcher.match takes it off, and pair_fault judges by it.

    Raises:
        GeometryError: two cameras that are no rectified pair.
    """
    if left.shape != right.shape:
        raise GeometryError(f"the left camera_info is for {left.width}x{left.height}, the right one for {right.width}x{right.height}")
    if not np.allclose((left.fx, left.fy, left.cy), (right.fx, right.fy, right.cy), rtol=1e-3):
        raise GeometryError(
            f"p of a rectified pair has the same focal lengths and cy, got fx {left.fx:.2f} and {right.fx:.2f}, fy {left.fy:.2f} and "
            f"{right.fy:.2f}, cy {left.cy:.2f} and {right.cy:.2f}; calibrate the two as a stereo pair"
        )
    baseline = right.baseline - left.baseline
    if baseline < 0:
        raise GeometryError(
            f"left and right camera_info are swapped: by their p[3] the right camera is {-baseline:.3f} m left of the left one"
        )
    if baseline == 0:
        raise GeometryError("p[3] of right/camera_info is 0: it must be -fx * baseline, as the calibration of a stereo pair writes it")
    return baseline, left.cx - right.cx


def disparity_to_depth(disparity: np.ndarray, fx: float, baseline: float) -> np.ndarray:
    """Disparity [pixels], any shape -> depth fx * baseline / disparity [m], float32; NaN where disparity is not above 0 and finite.

    fx: focal length of the rectified image [pixels]. baseline: distance of the cameras [m].

    Raises:
        GeometryError: fx or baseline is not above 0.
    """
    if not (np.isfinite(fx) and fx > 0):
        raise GeometryError(f"fx must be above 0 pixels, got {fx}; the camera_info is of an uncalibrated camera")
    if not (np.isfinite(baseline) and baseline > 0):
        cure = "left and right camera_info are swapped" if baseline < 0 else "p[3] of the right camera_info must be -fx * baseline"
        raise GeometryError(f"the baseline of a stereo pair must be above 0 m, got {baseline}; {cure}")
    disparity = np.asarray(disparity, np.float32)
    with np.errstate(all="ignore"):
        depth = np.float32(fx * baseline) / disparity
    return np.where((disparity > 0) & (depth > 0) & np.isfinite(depth), depth, np.float32(np.nan))


def depth_to_disparity(depth: np.ndarray, fx: float, baseline: float) -> np.ndarray:
    """Depth [m], any shape -> disparity [pixels], float32; NaN where depth is not above 0 and finite. Raises as disparity_to_depth."""
    return disparity_to_depth(depth, fx, baseline)  # z = f b / d is its own inverse


def pair_fault(left: np.ndarray, right: np.ndarray, infinity: float = 0.0, row_tolerance: float = 1.0) -> str:
    """What is wrong with a pair that should be rectified, in words; "" where it is fine or where it cannot be told (blank, dark, fog).

    Found are: the same image twice, different scenes, left and right swapped, rows that differ by more than `row_tolerance` [pixels]
    for half of the image. Swapped means that things are farther right in the right image than if they were infinitely far, when they
    are `infinity` columns apart [pixels], see pair_geometry. Some 15 to 20 ms: for the first frames, and now and then.

    Shape:
        left, right: as in StereoMatcher.match.

    Raises:
        GeometryError: other types or shapes, sizes that differ.
    """
    left, right = _gray_pair(left, right)
    scale = min(1.0, FEATURE_WIDTH / left.shape[1])
    if min(left.shape) * scale < LEAST_SIDE:
        return ""
    (at_left, codes_left), (at_right, codes_right) = (_features(image, scale) for image in (left, right))
    least = min(len(at_left), len(at_right))
    if least >= ENOUGH_MATCHES and np.array_equal(left, right):
        return "left and right are the same image; one camera is published as both"
    if least < ENOUGH_MATCHES:
        return ""
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(codes_left, codes_right)
    matches = [match for match in matches if match.distance <= ALIKE_BITS]
    if least >= MANY_FEATURES and len(matches) < CHANCE_SHARE * least:
        return f"left and right show different scenes: of {least} features {len(matches)} are in both; these cameras are no pair"
    if len(matches) < ENOUGH_MATCHES:
        return ""
    at_left, at_right = at_left[[match.queryIdx for match in matches]], at_right[[match.trainIdx for match in matches]]
    agree, rows = _row_change(at_left, at_right)
    if agree.sum() < ENOUGH_MATCHES or agree.mean() < ENOUGH_SHARE:
        return ""
    shift = (at_left - at_right)[agree, 0] / scale - infinity
    faults = []
    if np.mean(shift < -1) >= SWAPPED_SHARE:
        faults.append("left and right are swapped")
    off = float(np.median(np.abs(rows))) / scale
    if off > row_tolerance:
        faults.append(f"{UNRECTIFIED}: rows differ by {off:.1f} px; rectify with the pair's calibration, or calibrate anew")
    return "; ".join(faults)


def _features(image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) float32 columns and rows of corners in the image reduced by `scale`, and their (N, 32) uint8 ORB descriptors."""
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), 1.0)
    # Noise has corners too, others in each image, and would make two dark images different scenes.
    noise = 1.4826 * float(np.median(np.abs(cv2.Laplacian(image, cv2.CV_16S))))
    detector = cv2.ORB_create(FEATURES, edgeThreshold=16, fastThreshold=int(min(100, max(LEAST_CONTRAST, NOISE_FACTOR * noise))))
    points, codes = detector.detectAndCompute(image, None)
    return np.array([point.pt for point in points], np.float32).reshape(-1, 2), codes


def _row_change(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The change of row that most matches share, affine in the place, so that a turned or zoomed camera has one too (RANSAC).

    left, right: (N, 2) places of the matches -> (N,) bool which agree with it, and the changes of rows of those [pixels].
    """
    change = right[:, 1] - left[:, 1]
    terms = np.column_stack([np.ones(len(left)), (left - left.mean(0)) / max(1.0, float(np.ptp(left)))])
    triples = np.random.default_rng(0).integers(0, len(left), (200, 3))
    triples = triples[np.abs(np.linalg.det(terms[triples])) > 1e-3]
    models = np.linalg.solve(terms[triples], change[triples][..., None])[..., 0]
    # No change at all is always tried.
    models = np.vstack([np.zeros(3), models])
    agree = np.abs(change - models @ terms.T) < ROW_SLACK
    best = agree[agree.sum(1).argmax()]
    model = np.linalg.lstsq(terms[best], change[best], rcond=None)[0]
    return best, terms[best] @ model


def _gray_pair(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both images as (H, W) uint8. Raises GeometryError where they are no images or differ in size."""
    for name, image in (("left", left), ("right", right)):
        array = isinstance(image, np.ndarray)
        if not (array and image.dtype == np.uint8 and image.size and (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3)):
            found = f"{image.dtype} of shape {image.shape}" if array else type(image).__name__
            raise GeometryError(f"the {name} image must be (H, W) or (H, W, 3) uint8, got {found}")
    if left.shape[:2] != right.shape[:2]:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (left, right)]
        raise GeometryError(f"left and right image differ in size, {' and '.join(sizes)}; both must be of one rectified pair")
    left, right = (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (left, right))
    return left, right


def _search(matcher: cv2.StereoSGBM, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(H, W) int16 disparity [sixteenths of a pixel], below 0 where there is none."""
    # OpenCV leaves out the first max_disparity columns, whose far things the right camera may well see; a margin takes their place.
    margin = matcher.getNumDisparities()
    left, right = (cv2.copyMakeBorder(image, 0, 0, margin, 0, cv2.BORDER_REPLICATE) for image in (left, right))
    return np.ascontiguousarray(matcher.compute(left, right)[:, margin:])


def _smooth_within_edges(disparity: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Guided filter (He et al., PAMI 2013) of the known disparities; unknown ones have no weight and stay unknown."""
    side = (2 * GUIDE_RADIUS + 1,) * 2
    known = np.isfinite(disparity)
    weight, image = known.astype(np.float32), guide.astype(np.float32) / 255
    values = np.where(known, disparity, np.float32(0))
    count = np.maximum(cv2.boxFilter(weight, -1, side, normalize=False), 1)

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(array, -1, side, normalize=False) / count

    masked = weight * image
    mean_image, mean_value = mean(masked), mean(values)
    slope = (mean(masked * values) - mean_image * mean_value) / (mean(masked * image) - mean_image**2 + GUIDE_EPSILON)
    offset = mean_value - slope * mean_image
    smooth = mean(weight * slope) * image + mean(weight * offset)
    return np.where(known & (smooth > 0), smooth, np.float32(np.nan)).astype(np.float32)
