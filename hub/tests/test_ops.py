"""What kernel-builder's test shell runs on a build: the ops against plain torch."""

import os

import kernels
import pytest
import torch

vtk = kernels.get_kernel(os.environ["KERNEL_REPO"], version=0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.kernels_ci
def test_prune_topk_keeps_the_least_similar_tokens():
    hidden, prototypes = torch.randn(2, 100, 64, device=DEVICE), torch.randn(8, 64, device=DEVICE)
    kv = torch.randn(2, 2, 4, 100, 16, device=DEVICE)
    kept_hidden, kept_kv, indices, scores = vtk.prune_topk(hidden, prototypes, 25, list(kv))
    cosine = torch.nn.functional.cosine_similarity(hidden.unsqueeze(2), prototypes, dim=3).amax(2)
    torch.testing.assert_close(scores, cosine, rtol=1e-4, atol=1e-5)
    assert torch.equal(indices, scores.topk(25, largest=False).indices.sort().values)
    assert torch.equal(kept_hidden, hidden.gather(1, indices.unsqueeze(2).expand(-1, -1, 64)))
    assert torch.equal(kept_kv[0], kv[0].gather(2, indices[:, None, :, None].expand(-1, 4, -1, 16)))


@pytest.mark.kernels_ci
def test_select_topk_breaks_ties_by_position():
    assert vtk.select_topk(torch.zeros(1, 9, device=DEVICE), 4).tolist() == [[0, 1, 2, 3]]
