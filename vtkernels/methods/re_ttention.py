"""Re-ttention: a narrow band of attention, rescaled to the weights of full attention, plus what the band misses."""

from dataclasses import dataclass
from functools import partial

from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from ..attend.patterns import band_share, banded
from ._attend import attend, joined, needs_all_rows
from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("re_ttention", "Re-ttention", "NeurIPS 2025, arXiv 2505.22918", "attention", "other", ("decoder",),
               "attention", "code", "none"))
@dataclass(frozen=True)
class ReTtention(Method):
    """Self-attention of a diffusion transformer over its denoising steps. With the band `|i - j| <= width / 2`:

    a full step gives `full = softmax(S) v` and keeps `rho_i`, the share of the softmax of row i inside the band, and
    `residual = full - rho * (softmax_band(S) v)`; a sparse step gives `rho * (softmax_band(S) v) + residual` with what
    was kept, and adds `drift` to rho.

    Args:
        step: the denoising step that runs, from 0.
        warmup, every: a step is full when it is one of the first `warmup`, or a multiple of `every`. PixArt: 5, 5;
            Hunyuan: 10, 5; CogVideoX: 15, 5.
        sparsity: width of the band, as a share of the sequence.
        drift: what rho grows by in each sparse step; it is not clamped.

    Inputs: `decoder[-1]` with the whole sequence as rows; `cache` is `Result.kv` of the step before, for sparse steps.
    Result: `hidden` `[B, S, Hq * dv]`; `kv`: residual `[B, S, Hq * dv]` and rho `[B, Hq, S]` float32; `mask_mod`, the
    band. A NaN may reach every token of its own row. The projection that follows is linear, so that a residual of the
    whole block, as in the official code, is this residual projected.

    Source: Chen et al., "Re-ttention: Ultra Sparse Visual Generation via Attention Statistical Reshape", NeurIPS 2025,
    arXiv 2505.22918; details as in the official code.
    """

    kernels = False

    step: int = 0
    warmup: int = 5
    every: int = 5
    sparsity: float = 0.03125
    drift: float = 0.04

    @property
    def full(self) -> bool:
        """Whether this step computes full attention."""
        return self.step < self.warmup or self.step % self.every == 0

    def run(self, inputs: Inputs) -> Result:
        layer = needs_all_rows("re_ttention", "decoder", inputs.decoder[-1])
        n, device = layer.query.shape[2], layer.query.device
        mask = banded(max(1, int(self.sparsity * n)))
        if not self.full:
            if len(inputs.cache) != 2:
                raise ValueError(f"re_ttention: `inputs.cache` has {len(inputs.cache)} tensors, allowed: the 2 of the "
                                 f"`kv` of the step before (step {self.step} is sparse)")
            residual, rho = inputs.cache
            out = attend(layer, mask) * rho[..., None].to(layer.query.dtype)
            return Result(joined(out) + residual, kv=(residual, rho + self.drift), mask_mod=mask)
        assert layer.value is not None
        attention = partial(flex_attention, layer.query, layer.key, layer.value, scale=layer.scale,
                            enable_gqa=layer.query.shape[1] != layer.key.shape[1], return_aux=AuxRequest(lse=True))
        full, whole = attention()
        band, inside = attention(block_mask=create_block_mask(mask, None, None, n, n, device))
        # In float64, where the vector and the scalar exp that torch mixes round to the same float32.
        rho = band_share(inside.lse.double(), whole.lse.double()).float()
        residual = joined(full - band * rho[..., None].to(band.dtype))
        return Result(joined(full), kv=(residual, rho), mask_mod=mask)
