"""Small defects put into kernels and host code, to see whether the tests find them."""
