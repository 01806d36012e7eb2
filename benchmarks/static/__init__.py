"""Static figures of the compiled kernels: what can be said of their speed where there is no GPU to run them."""
