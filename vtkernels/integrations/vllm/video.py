"""vLLM's two video scores, `vllm.multimodal.video_prune`, on the ops of vtkernels: same arguments, same masks.

They take the place of `compute_retention_mask` of vLLM's `evs` and `vidcom2`. No value is read back to the host.
"""

import torch
from torch import Tensor

from ...score.temporal_scores import temporal_scores
from ...select.counting import evs_select
from ...select.select_topk import select_topk
from ...select.select_topk_varlen import select_topk_varlen

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the Gaussians
TEMPERATURE = 0.01                     # of the softmax over frames


def evs_retention_mask(video_embeds: Tensor, video_size_thw: tuple[int, int, int], spatial_merge_size: int,
                       q: float) -> Tensor:
    """Which tokens EVS keeps: the first frame, and what changed most since the frame before.

    Args:
        video_embeds: `[N, D]` float32, float16 or bfloat16, frame after frame.
        video_size_thw: frames, rows and columns in patches, on the host.
        spatial_merge_size: patches of a token in each direction.
        q: the part to remove, 0 to 1.

    Returns:
        `[N]` bool, `max(tokens of a frame, int(N (1 - q)))` of them set. Cosines are in float32 whatever the dtype,
        where vLLM computes them in the dtype of the tokens. Ties go to the lower position; NaN ranks last.

    Example:
        >>> frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # two frames of two tokens
        >>> evs_retention_mask(frames, (2, 2, 4), 2, 0.25)
        tensor([ True,  True, False,  True])

    Source: Efficient Video Sampling (arXiv 2510.14624).
    """
    frames, tokens = _frames(video_embeds, video_size_thw, spatial_merge_size)
    changed = 1 - temporal_scores(video_embeds.view(1, frames, tokens, -1)).view(1, -1)
    return _mask(evs_select(changed, tokens, q), frames * tokens)


def vidcom2_retention_mask(video_embeds: Tensor, video_size_thw: tuple[int, int, int], spatial_merge_size: int,
                           q: float) -> Tensor:
    """Which tokens VidCom2 keeps, as vLLM runs it: scored in the half of the channels with the lowest variance, each
    frame's budget rounded by itself, at least 1, and the total made exact by the scores of all frames.

    Args:
        video_embeds, video_size_thw, spatial_merge_size, q: as for `evs_retention_mask`.

    Returns:
        `[N]` bool, `max(frames, int(N (1 - q)))` of them set. Scores are in float32 whatever the dtype, where vLLM
        computes them in the dtype of the tokens. Ties go to the lower position; NaN ranks last.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> int(vidcom2_retention_mask(torch.randn(32, 8), (2, 8, 8), 2, 0.75).sum())
        8

    Source: VidCom2 (arXiv 2505.14454).
    """
    frames, tokens = _frames(video_embeds, video_size_thw, spatial_merge_size)
    total, channels = video_embeds.shape
    lowest = _variance(video_embeds).topk(max(1, channels // 2), largest=False).indices
    x = video_embeds.index_select(1, lowest.sort().values).float().view(frames, tokens, -1)
    of_video, of_frame = _gaussians(x)
    similar = of_video + of_frame

    share = (-of_video.mean(1) / TEMPERATURE).softmax(0)
    scale = ((1 - q) * (1 + share - share.mean())).clamp(max=1)
    budgets = (scale * tokens).round().clamp(1, tokens).to(torch.int32)
    bounds = torch.arange(0, total + 1, tokens, dtype=torch.int32, device=x.device)
    best, _ = select_topk_varlen(similar.flatten(), bounds, budgets, total, largest=False)
    within = torch.zeros(total + 1, dtype=torch.bool, device=x.device)
    within.index_fill_(0, best.masked_fill(best < 0, total), True)  # unused slots go to the place past the end
    count = max(frames, int(total * (1 - q)))
    return _mask(select_topk(similar.view(1, -1), count, largest=False, protected=within[None, :total]), total)


def _frames(video_embeds: Tensor, video_size_thw: tuple[int, int, int], merge: int) -> tuple[int, int]:
    frames, rows, columns = map(int, video_size_thw)
    tokens = (rows // merge) * (columns // merge)
    if video_embeds.dim() != 2 or video_embeds.shape[0] != frames * tokens:
        raise ValueError(f"vllm: `video_embeds` is of shape {tuple(video_embeds.shape)}, allowed: "
                         f"[{frames * tokens}, D] for {frames} frames of {tokens} tokens")
    return frames, tokens


def _variance(x: Tensor) -> Tensor:
    """Of each channel of `[N, D]`, times N. Two passes by blocks that stay in the cache, in float32."""
    blocks = x.split(256)
    mean = torch.stack([block.sum(0, dtype=torch.float32) for block in blocks]).sum(0) / len(x)
    return torch.stack([(block - mean).square_().sum(0) for block in blocks]).sum(0)


def _gaussians(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens `[F, n, C]`: `sum_a exp(-|x / |x| - c|^2 / 2a)`, `[F, n]`, c the mean of the video and of the frame."""
    norm = torch.linalg.vector_norm(x, dim=2)
    rnorm = 1 / norm.clamp_min(1e-12)
    of_frame = torch.bmm(rnorm[:, None], x) / x.shape[1]
    centres = torch.cat([of_frame.mean(0, keepdim=True).expand_as(of_frame), of_frame], 1)  # [F, 2, C]
    # |x / |x| - c|^2 = 1 + |c|^2 - 2 <x, c> / |x|, and |c|^2 for x = 0
    products = torch.bmm(x, centres.transpose(1, 2)) * rnorm[..., None]
    distance = (norm * rnorm).square()[..., None] + centres.square().sum(2)[:, None] - 2 * products
    scores = sum((distance / (-2 * a)).exp() for a in SCALES)
    assert isinstance(scores, Tensor)
    return scores[..., 0], scores[..., 1]


def _mask(indices: Tensor, total: int) -> Tensor:
    return torch.zeros(total, dtype=torch.bool, device=indices.device).index_fill_(0, indices[0], True)
