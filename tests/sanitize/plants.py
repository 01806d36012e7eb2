"""Defects that the sanitizers must report: a change of a kernel, and the op whose samples run into it."""

from typing import NamedTuple

GATHER = "csrc/cpu/compact/gather.cpp"


class Plant(NamedTuple):
    name: str
    sanitizer: str
    file: str
    code: str
    replacement: str
    op: str
    report: str


PLANTS = (
    Plant("index used unchecked", "address", GATHER, "if (token < 0 || token >= tokens) {", "if (token < 0) {",
          "gather_tokens", "AddressSanitizer"),
    Plant("row longer by one byte", "address", GATHER, "{ memcpy(to, from, bytes); }",
          "{ memcpy(to, from, bytes + 1); }", "gather_tokens", "AddressSanitizer"),
    Plant("product of 32 bits", "address", GATHER, "int64_t j = begin % kept;",
          "int64_t j = begin % kept; volatile int32_t rows = 1 << 30; rows = rows * 2;", "gather_tokens",
          "signed integer overflow"),
    Plant("flag without an atomic", "thread", GATHER,
          "memset(dst + j * c.dst_token, 0, row);\n          bad.store(true, std::memory_order_relaxed);",
          "memset(dst + j * c.dst_token, 0, row);\n          *reinterpret_cast<bool*>(&bad) = true;",
          "gather_tokens", "data race"),
    Plant("parts that overlap", "thread", GATHER,
          "const int64_t row = c.width * c.element, stop = std::min(kept, j + end - done);",
          "const int64_t row = c.width * c.element, stop = kept;", "gather_tokens", "data race"),
)
