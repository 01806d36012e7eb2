"""Launch parameters of the Triton kernels, from tables shipped with the package."""
