"""A linear layer whose bits do not depend on the batch."""

from torch import Tensor, nn

from ._attend import linear


class Linear(nn.Linear):
    """`nn.Linear` for `[B, T, D]` with the same parameters, a product for each row of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
