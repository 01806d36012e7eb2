"""Token pruning inside a plain attention layer: one extra line after the attention.

A row is text, then an image of 576 visual tokens, then more text. The layer attends over all of them, then keeps a
quarter of the visual tokens; later layers and the decoding of new tokens see the shorter row and the shorter cache.

    python examples/attention_layer.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vtkernels

TEXT_BEFORE, IMAGE, TEXT_AFTER = 12, 576, 20
WIDTH, HEADS, PROTOTYPES = 256, 8, 64


class Attention(nn.Module):
    """Self-attention with a K/V cache; with `prune`, the visual tokens that look redundant leave after the prefill."""

    def __init__(self, width: int, heads: int, prune: vtkernels.nn.PruneTopK | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.prune = prune
        self.cache: list[Tensor] = []

    def forward(self, hidden: Tensor) -> Tensor:
        prefill = not self.cache
        q, k, v = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x [B, H, N, d]
        if not prefill:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.cache, (k, v), strict=True))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=prefill)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        self.cache = [k, v]
        if self.prune is not None and prefill:
            hidden, self.cache, _, _ = self.prune(hidden, self.cache)
        return hidden


@torch.inference_mode()
def main() -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    codebook = torch.randn(PROTOTYPES, WIDTH)  # a real one comes from vtkernels.prototypes.load(path).prototypes
    prune = vtkernels.nn.PruneTopK(codebook, keep_ratio=0.25, span_start=TEXT_BEFORE, span_len=IMAGE)
    layer = Attention(WIDTH, HEADS, prune)

    prompt = torch.randn(2, TEXT_BEFORE + IMAGE + TEXT_AFTER, WIDTH)
    hidden = layer(prompt)
    print(f"prefill: {prompt.shape[1]} tokens in, {hidden.shape[1]} out, {layer.cache[0].shape[2]} in the K/V cache")

    token = layer(torch.randn(2, 1, WIDTH))
    print(f"decode:  {token.shape[1]} token in and out, {layer.cache[0].shape[2]} in the K/V cache")
    return hidden, layer.cache


if __name__ == "__main__":
    main()
