"""The methods of the family "codewords" on Triton's kernels."""

from methods_suite import interpreted_tests

test_against_its_loop = interpreted_tests("codewords")
