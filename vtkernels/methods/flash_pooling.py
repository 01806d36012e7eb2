"""FLASH: learned queries pool the visual tokens for a draft model."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ._inputs import Inputs, Result
from ._method import Info, Method
from ._registry import register


@register(Info("flash_pooling", "FLASH", "arXiv 2505.12728", "merging", "projector", ("hidden",), "merged", "code",
               "query"))
@dataclass(frozen=True)
class FlashPooling(Method):
    """`softmax(A V^T) V` over the visual states V of the target model: each of the K learned queries A gives one token.
    Neither projections nor a scale.

    Args:
        queries: A, `[K, D]`, dtype and device of the tokens.

    The draft model reads these K tokens in place of the N; text goes in as `Linear([embedding ; state])`. The attention
    is the library's, with one head of the full width, so it goes with gradients. A NaN spreads over its own image.

    Raises:
        ValueError: queries that are not `[K, D]`.

    Source: FLASH, "Latent-Aware Semi-Autoregressive Speculative Decoding for Multimodal Tasks", arXiv 2505.12728;
    details as in the official code, which leaves A undefined.
    """

    kernels = False

    queries: Tensor

    def run(self, inputs: Inputs) -> Result:
        batch, _, width = inputs.tokens.shape
        if self.queries.dim() != 2 or self.queries.shape[1] != width:
            raise ValueError(f"flash_pooling: `queries` is of shape {tuple(self.queries.shape)}, allowed: [K, {width}]")
        tokens = inputs.tokens[:, None]
        queries = self.queries.expand(batch, 1, -1, -1)
        return Result(scaled_dot_product_attention(queries, tokens, tokens, scale=1.0)[:, 0])
