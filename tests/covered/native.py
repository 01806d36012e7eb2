"""Lines of the C++ sources that ran, from gcov, and the checks of arguments that failed in some test."""

import json
import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

Lines = dict[str, dict[int, int]]  # how often each line ran, by file

# Each failed check writes its place, so that those which no test has seen fail can be listed: all of a check is one
# line to gcov, whether it held or not.
CHECK = "    if (!(condition)) fail(op, arg, got, allowed);  \\\n"
LOGGED = """\
    if (!(condition)) {                             \\
      log_check(__FILE__, __LINE__);                \\
      fail(op, arg, got, allowed);                  \\
    }                                               \\
"""
LOG = """\
inline void log_check(const char* file, int line) {
  const char* path = std::getenv("VTKERNELS_CHECK_LOG");
  if (path == nullptr) return;
  std::FILE* out = std::fopen(path, "a");
  if (out == nullptr) return;
  std::fprintf(out, "%s:%d\\n", file, line);
  std::fclose(out);
}

// Not STD_TORCH_CHECK"""


def log_checks(header: Path) -> None:
    """Change a copy of csrc/torch/tensor.h: lines before the macro move, the lines of its uses elsewhere do not."""
    text = header.read_text()
    for code, changed in ((CHECK, LOGGED), ("// Not STD_TORCH_CHECK", LOG),
                          ("#include <cstdint>\n", "#include <cstdint>\n#include <cstdio>\n#include <cstdlib>\n")):
        if text.count(code) != 1:
            raise SystemExit(f"coverage: {code!r} stands {text.count(code)} times in {header}, allowed: once")
        text = text.replace(code, changed)
    header.write_text(text)


def check_sites(root: Path) -> dict[str, list[range]]:
    """The lines of every VTK_CHECK in the CPU's registration, by file."""
    found = {}
    for path in sorted([*(root / "csrc/torch").glob("*.h"), *(root / "csrc/torch/cpu").iterdir()]):
        text, ranges = path.read_text(), []
        for start in (m.start() for m in re.finditer(r"(?<!define )VTK_CHECK\(", text)):
            end, depth = text.index("(", start), 0
            while True:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                if depth == 0:
                    break
                end += 1
            ranges.append(range(text.count("\n", 0, start) + 1, text.count("\n", 0, end) + 2))
        found[str(path.relative_to(root))] = ranges
    return found


def unfailed_checks(root: Path, log: Path) -> tuple[int, list[str]]:
    """How many checks there are, and those that never failed."""
    failed = defaultdict(set)
    for line in log.read_text().splitlines() if log.exists() else ():
        name, _, number = line.rpartition(":")
        failed[os.path.relpath(name, root)].add(int(number))
    sites = [(name, lines) for name, ranges in check_sites(root).items() for lines in ranges]
    return len(sites), [f"{name}:{lines[0]}" for name, lines in sites if not failed[name] & set(lines)]


def lines(objects: Path, root: Path) -> Lines:
    """The lines of all sources below `root` that were compiled for `objects`; a file counts once for all that include
    it, so that a kernel which is compiled for several instruction sets is covered when one of them ran."""
    counts: Lines = defaultdict(lambda: defaultdict(int))
    for data in sorted(objects.glob("*.gcda")):
        done = subprocess.run(["gcov", "--json-format", "--stdout", str(data)], cwd=objects, capture_output=True,
                              text=True, check=True)
        for document in done.stdout.splitlines():
            for file in json.loads(document)["files"]:
                path = Path(os.path.normpath(root / file["file"]))
                if path.is_relative_to(root / "csrc"):
                    of = counts[str(path.relative_to(root))]
                    for line in file["lines"]:
                        of[line["line_number"]] += line["count"]
    return counts
