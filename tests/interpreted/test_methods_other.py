"""The methods of the family "other" on Triton's kernels."""

from methods_suite import interpreted_tests

test_against_its_loop = interpreted_tests("other")
