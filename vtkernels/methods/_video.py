"""Windows of a video that stand still, and clusters among some of the tokens of each frame."""

import torch
from torch import Tensor

from ..select.select_topk import select_topk


def still_windows(same: Tensor) -> Tensor:
    """The frame that each token merges into, `[B, F, n]` int64: the first of its window for one that is still in the
    whole window, else its own.

    The windows are those with the largest sum of `(length - 1) * (tokens still in the whole window)`, by dynamic
    programming over the frames; of equal sums the one with the shorter last windows. All numbers are integers on the
    device.

    Args:
        same: `[B, F, n]` bool: a token is like that of the frame before; not read in frame 0.
    """
    batch, frames, _ = same.shape
    frame = torch.arange(frames, device=same.device)
    since = torch.where(same, 0, frame[:, None]).cummax(1).values  # the token is still from this frame on
    still = (since[:, None] <= frame[:, None, None]).sum(3)  # [B, start, end]
    gain = still * (frame - frame[:, None])
    best, cuts = [gain.new_zeros(batch)], []  # of the first frames, and where their last window starts
    for i in range(frames):
        sums = torch.stack(best, 1) + gain[:, :i + 1, i]
        chosen = (sums * frames + frame[:i + 1]).amax(1)  # the latest start of equal sums
        best.append(chosen // frames)
        cuts.append(chosen % frames)
    windows = []
    start = end = torch.full_like(best[0], frames)
    for i in reversed(range(frames)):
        here = start == i + 1  # a window ends in this frame
        start, end = torch.where(here, cuts[i], start), torch.where(here, i, end)
        windows.append(torch.stack([start, end]))
    starts, ends = torch.stack(windows[::-1], 2)[..., None]  # [B, F, 1] each
    whole = since.gather(1, ends.expand_as(since)) <= starts
    return torch.where(whole, starts, frame[:, None])


def mask_of(indices: Tensor, n: int) -> Tensor:
    """`[R, n]` bool: true at the indices, of which -1 is none."""
    rows = torch.zeros(indices.shape[0], n + 1, dtype=torch.bool, device=indices.device)
    return rows.scatter(1, torch.where(indices < 0, n, indices), True)[:, :n]


def density_peaks(distance: Tensor, near: Tensor, members: Tensor, counts: Tensor, neighbours: int) -> Tensor:
    """The centre that each member joins, `[R, n]` int64, -1 for other tokens and where there is no centre.

    As `cluster_density_peaks`, but among some of the tokens and with counts on the device.

    Args:
        distance: `[R, n, n]` float32, squared, to all tokens of the row, nearest first.
        near: `[R, n, n]` which tokens these are.
        members: `[R, n]` bool.
        counts: `[R]` int32, centres.
        neighbours: of the density, the token itself included.
    """
    n = members.shape[1]
    index = torch.arange(n, device=near.device)

    def of_near(values: Tensor) -> Tensor:
        return values[:, None].expand_as(near).gather(2, near)

    others = of_near(members)
    counted = others & (others.cumsum(2) <= neighbours)
    mean = torch.where(counted, distance, 0).sum(2) / counted.sum(2)
    means = of_near(mean)
    denser = others & ((means < mean[..., None]) | ((means == mean[..., None]) & (near < index[:, None])))
    farthest = torch.where(others & members[..., None], distance, 0).amax((1, 2))[:, None]
    delta = torch.where(denser.any(2), torch.where(denser, distance, torch.inf).amin(2), farthest)
    scores = (-mean).exp() * delta.clamp_min(0).sqrt()
    chosen = select_topk(scores, n, ks=counts, excluded=~members)
    centres = mask_of(chosen, n)
    place = torch.where(of_near(centres), index, n).amin(2)
    joined = near.gather(2, place.clamp(max=n - 1)[..., None])[..., 0]
    joined = torch.where(members & (place < n), joined, -1)
    return torch.where(centres, index, joined)
