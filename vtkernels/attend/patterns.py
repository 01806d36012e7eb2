"""Masks and biases of published models, as `mask_mod` and `score_mod` of `torch.nn.attention.flex_attention`.

A factory returns a function of (score,) batch, head, query position and key position that works elementwise, so it
serves `flex_attention`, compiled or not, and `create_mask`. A library's attention beats our own for all of these; give
it the function and a `BlockMask` made by `create_block_mask`. `and_masks` and `or_masks` of torch combine masks.

Tensors that a factory is given must be on the device of the attention. Positions are those of the whole sequence.

Example:
    >>> from torch.nn.attention.flex_attention import create_mask
    >>> mask = create_mask(neighbour_window(0, 4, 4, 3), 1, 1, 16, 16, device="cpu")
    >>> int(mask[0, 0, 5].sum())  # a token inside the grid sees its 3 x 3 neighbours
    9
"""

from collections.abc import Callable

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _positive(function: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{function}: `{name}` is {value}, allowed: at least 1")


def neighbour_window(start: int, height: int, width: int, window: int) -> MaskMod:
    """Visual tokens see their neighbours on the grid, both ways; all other pairs are causal.

    Args:
        start: position of the first of `height * width` visual tokens, which lie in raster order.
        window: side of the square window, odd: a token sees those at most (window - 1) / 2 rows and columns away.

    Source: YOPO (arXiv 2410.06169), where the visual block of the mask is replaced; also the content-dependent form of
    the local relation of UniFormer (ICLR 2022).
    """
    _positive("neighbour_window", height=height, width=width, window=window)
    if window % 2 == 0:
        raise ValueError(f"neighbour_window: `window` is {window}, allowed: an odd number")
    radius, end = window // 2, start + height * width

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        both = (query >= start) & (query < end) & (key >= start) & (key < end)
        q, k = query - start, key - start
        rows, columns = (q // width - k // width).abs(), (q % width - k % width).abs()
        return torch.where(both, (rows <= radius) & (columns <= radius), query >= key)

    return mask


def same_segment(segment_ids: Tensor) -> MaskMod:
    """Tokens see those of their own segment: packed images, or the registers of all crops of one image.

    Args:
        segment_ids: `[B, N]` integers. A negative id is padding, which sees nothing and is not seen.

    Source: the attention among registers of FALCON (arXiv 2501.16297) and its crops, without padding to equal counts.
    """

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment_ids[batch, query]
        return (own == segment_ids[batch, key]) & (own >= 0)

    return mask


def frame_causal(frame_ids: Tensor) -> MaskMod:
    """Tokens see all tokens of their own frame and of earlier ones.

    Args:
        frame_ids: `[B, N]` integers, the frame of each token.

    Source: FAR (Show Lab, 2025).
    """

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return frame_ids[batch, key] <= frame_ids[batch, query]

    return mask


def frame_decay(frame_ids: Tensor, slope: float | Tensor) -> ScoreMod:
    """Adds `slope * (frame of the key - frame of the query)`: earlier frames weigh less.

    Args:
        frame_ids: `[B, N]` integers, the frame of each token.
        slope: one number, or `[H]`, one for each head.

    Source: the linear temporal bias of FAR's released code (Show Lab, 2025).
    """
    slopes = torch.as_tensor(slope, dtype=torch.float32, device=frame_ids.device)

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = frame_ids[batch, key] - frame_ids[batch, query]
        return score + (slopes[head] if slopes.dim() else slopes) * distance

    return score_mod


def temporal_column(tokens_per_frame: int) -> MaskMod:
    """Token i of frame t sees token i of the frames up to t.

    Source: the causal temporal attention of PVC (CVPR 2025), as its abstract and model card describe it; the
    model's code was not public.
    """
    _positive("temporal_column", tokens_per_frame=tokens_per_frame)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query % tokens_per_frame == key % tokens_per_frame) & (key <= query)

    return mask


def banded(width: int) -> MaskMod:
    """Tokens see those at most `width // 2` positions away, on both sides.

    Source: the static sparse set of Re-ttention (NeurIPS 2025). See `band_share` for its rescaling.
    """
    _positive("banded", width=width)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key).abs() <= width // 2

    return mask


def band_share(lse_band: Tensor, lse_all: Tensor) -> Tensor:
    """Share of the softmax mass that lies inside a mask: `exp(lse_band - lse_all)`, shape of the inputs.

    Multiply the output of the masked attention by it (`out * share[..., None]`) and the weights are those of full
    attention, cut to the mask. Both log-sum-exps come from `flex_attention(.., return_lse=True)`.

    Source: the statistic of Re-ttention (NeurIPS 2025), which is cached over denoising steps.
    """
    return (lse_band - lse_all).exp()


def proxy_window(frames: int, height: int, width: int, window: tuple[int, int, int], shift: bool = False) -> MaskMod:
    """Tokens of a `[frames, height, width]` grid see those of their own window; with `shift`, of windows moved by half.

    Args:
        window: frames, rows and columns of a window. Windows at the border may be smaller.

    Source: the window and shifted-window attention of PT-DiT (ICLR 2025); its proxies are the window means, see
    `pool_span`.
    """
    _positive("proxy_window", frames=frames, height=height, width=width)
    _positive("proxy_window", **{f"window[{i}]": size for i, size in enumerate(window)})
    moved = [size // 2 if shift else 0 for size in window]

    def cell(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, row, column = place // (height * width), place // width % height, place % width
        return (t + moved[0]) // window[0], (row + moved[1]) // window[1], (column + moved[2]) // window[2]

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        (t, row, column), (kt, krow, kcolumn) = cell(query), cell(key)
        return (t == kt) & (row == krow) & (column == kcolumn)

    return mask


def text_focus(text_to_text: Tensor, text_to_image: Tensor) -> Tensor:
    """How much each text token focuses on each image token, through the text that it attends to: `A_tt @ A_ti`.

    Args:
        text_to_text: `[.., T, T]` attention weights among the text tokens.
        text_to_image: `[.., T, N]` attention weights of the text tokens on the image tokens.

    Source: cross-modal attention inhibition, CMAI (arXiv 2411.15453), from its description; no code was public.
    """
    return text_to_text @ text_to_image


def cross_modal_inhibition(allowed: Tensor, text_start: int, image_start: int) -> MaskMod:
    """Causal, and a text token sees only the image tokens that it is allowed to.

    Args:
        allowed: `[B, T, N]` bool: for instance the largest part of each row of `text_focus`.
        text_start, image_start: positions of the first of the T text and of the N image tokens.

    Source: cross-modal attention inhibition, CMAI (arXiv 2411.15453); the softmax runs over what is left.
    """
    _, texts, images = allowed.shape

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        t, i = query - text_start, key - image_start
        crossing = (t >= 0) & (t < texts) & (i >= 0) & (i < images)
        pair = allowed[batch, t.clamp(0, texts - 1), i.clamp(0, images - 1)]
        return (query >= key) & (pair | ~crossing)

    return mask


def log_size_bias(sizes: Tensor) -> ScoreMod:
    """Adds `log(size of the key)`: a token merged of s tokens draws the attention of s (proportional attention).

    Args:
        sizes: `[B, N]` float32, as `merge_tokens` returns them. A size of 0 hides the token.

    Source: ToMe (arXiv 2210.09461), also in Turbo (ECCV 2024).
    """
    bias = sizes.log()

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[batch, key]

    return score_mod
