"""LiDAR clouds into the camera, batched; see lix_core.geometry.lidar for what each function means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lix_core.errors import GeometryError
from lix_core.geometry import lidar
from lix_core.geometry.lidar import SLACK


def project_clouds(
    points: Tensor,
    matrix: Tensor,
    camera_from_lidar: Tensor,
    size: tuple[int, int],
    hidden_gap: float = 0.05,
    ring_spacing: float = 0.0,
) -> Tensor:
    """LiDAR points -> sparse depth, as `lidar.project_cloud`.

    Args:
        points: (B, N, >= 3) x, y, z [m] in the LiDAR's frame; NaN rows fill up the shorter clouds.
        matrix: (3, 3) or (B, 3, 3) intrinsic matrix of the rectified image [pixels].
        camera_from_lidar: (4, 4) or (B, 4, 4) rigid transform. size: (H, W) [pixels].
        hidden_gap, ring_spacing: see `remove_hidden`; a gap of 0 keeps the hidden points.

    Returns:
        (B, H, W) float32 depth [m], NaN where no point falls.

    Raises:
        GeometryError: as `lidar.project_cloud`.
    """
    if points.ndim != 3 or points.shape[-1] < 3:
        raise GeometryError(f"clouds are (B, N, 3 or more), NaN filling up the shorter ones, got {tuple(points.shape)}")
    lidar.check_options(hidden_gap, ring_spacing)
    for each in camera_from_lidar.reshape(-1, 4, 4):
        lidar.check_rigid(each.detach().cpu().numpy(), "camera_from_lidar")
    height, width = size
    count = len(points)
    matrix, transform = matrix.double().expand(count, 3, 3), camera_from_lidar.double().expand(count, 4, 4)
    projection = matrix @ transform[:, :3]
    u, v, z = (points[..., :3].double() @ projection[:, :, :3].mT + projection[:, None, :, 3]).unbind(-1)
    u, v = torch.floor(u / z + 0.5), torch.floor(v / z + 0.5)
    seen = (points[..., :3] != 0).any(dim=-1) & (z > 0) & (z < torch.inf) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    place = torch.where(seen, v * width + u, 0.0).long()
    depth = torch.full((count, height * width), torch.inf, device=points.device)
    depth.scatter_reduce_(1, place, torch.where(seen, z, torch.inf).float(), "amin")
    depth = torch.where(depth.isinf(), torch.nan, depth).reshape(count, height, width)
    return remove_hidden(depth, matrix, transform[:, :3, 3], hidden_gap, ring_spacing) if hidden_gap > 0 else depth


def remove_hidden(sparse_depth: Tensor, matrix: Tensor, lidar_position: Tensor, gap: float = 0.05, ring_spacing: float = 0.0) -> Tensor:
    """Sparse depth without the points that shine through nearer surfaces, as `lidar.remove_hidden`; image after image.

    Args:
        sparse_depth: (B, H, W) float32 [m], NaN = no point. matrix: (3, 3) or (B, 3, 3) [pixels].
        lidar_position: (3,) or (B, 3) the LiDAR's origin in the camera's optical frame [m].
        gap: share of a point's depth. ring_spacing: [pixels]; 0 measures it, which brings the depth to the CPU.
    """
    count = len(sparse_depth)
    matrix, lidar_position = matrix.expand(count, 3, 3), lidar_position.expand(count, 3)
    return torch.stack([_remove_hidden(*image, gap, ring_spacing) for image in zip(sparse_depth, matrix, lidar_position)])


def _remove_hidden(sparse_depth: Tensor, matrix: Tensor, position: Tensor, gap: float, ring_spacing: float) -> Tensor:
    rows, columns = lidar.window(ring_spacing or lidar.measure_ring_spacing(sparse_depth.cpu().numpy()), sparse_depth.shape)
    known = sparse_depth.isfinite()
    nearness = torch.where(known, 1 / sparse_depth, 0.0)
    cover = surrounding_nearness(nearness, rows, columns)
    doubtful = torch.nonzero(known & (1 / cover < sparse_depth * (1 - gap)))
    around = F.pad(nearness, (columns, columns, rows, rows))
    visible = sparse_depth.clone()
    for v, u in (some.T for some in doubtful.split(lidar.points_at_once(rows, columns))):
        hidden = are_hidden(v, u, nearness[v, u], cover[v, u], around, (rows, columns), matrix, position)
        visible[v[hidden], u[hidden]] = torch.nan
    return visible


def are_hidden(
    v: Tensor, u: Tensor, own: Tensor, cover: Tensor, around: Tensor, reach: tuple[int, int], matrix: Tensor, position: Tensor
) -> Tensor:
    """(N,) bool, which of the points at rows v and columns u the LiDAR sees past what is in front of them.

    own, cover: (N,) inverse depth, of them and of what surrounds them. around: of all points, padded by `reach`, which is how far to look
    [pixels]. matrix, position: see `remove_hidden`, of one image.
    """
    dv, du = (
        offsets.ravel()
        for offsets in torch.meshgrid(*(torch.arange(-far, far + 1, device=v.device) for far in reach), indexing="ij")
    )  # fmt: skip
    windows = around[v[:, None] + (dv + reach[0]), u[:, None] + (du + reach[1])]
    point, neighbour = torch.nonzero(windows >= ((own + cover) / 2)[:, None], as_tuple=True)
    parallax = windows[point, neighbour] - own[point]
    across_x = matrix[0, 0] * position[0] - position[2] * (u - matrix[0, 2])
    across_y = matrix[1, 1] * position[1] - position[2] * (v - matrix[1, 2])
    x, y = du[neighbour] - across_x[point] * parallax, dv[neighbour] - across_y[point] * parallax
    left, right, above, below = x <= SLACK, x >= -SLACK, y <= SLACK, y >= -SLACK
    sides = torch.zeros((4, len(v)), dtype=torch.bool, device=v.device)
    for side, there in zip(sides, (left & above, right & below, right & above, left & below)):
        side[point[there]] = True
    return ~((sides[0] & sides[1]) | (sides[2] & sides[3]))


def surrounding_nearness(nearness: Tensor, rows: int, columns: int) -> Tensor:
    """(H, W) inverse depth, 0 = unknown -> (H, W): the inverse of `lidar.surrounding_depth`."""
    kernel = (rows + 1 + SLACK, columns + 1 + SLACK)

    def window(left: int, above: int) -> Tensor:
        padded = F.pad(nearness[None, None], (left, kernel[1] - 1 - left, above, kernel[0] - 1 - above))
        return F.max_pool2d(padded, kernel, 1)[0, 0]

    upper_left, upper_right = window(columns, rows), window(SLACK, rows)
    lower_left, lower_right = window(columns, SLACK), window(SLACK, SLACK)
    return torch.maximum(torch.minimum(upper_left, lower_right), torch.minimum(upper_right, lower_left))
