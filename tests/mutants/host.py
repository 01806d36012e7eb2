"""Mutants of the host code in Python: contracts, dispatch, files, references."""

from .mutant import Mutant, drawn, files

CHECKS, LIBRARY, DISPATCH = "vtkernels/_checks.py", "vtkernels/_library.py", "vtkernels/_dispatch.py"
SELECT, COMPACT, IO = "vtkernels/_contracts/select.py", "vtkernels/_contracts/compact.py", "vtkernels/prototypes/io.py"
MERGE, GATHER = "vtkernels/compact/merge_tokens/reference.py", "vtkernels/compact/gather_tokens/reference.py"
BAD_INPUT, FILES = files("bad_input"), files("prototypes")
REGISTRATION = (*files("registration"), "-k", "environment or explain or forced")

MUTANTS = (
    Mutant("missing device guard", CHECKS, "    if t.device != ref.device:\n", "    if False:\n",
           BAD_INPUT),
    Mutant("a strided output", CHECKS, "out.shape[-1] > 1 and out.stride(-1) != 1:", "out.shape[-1] > 1 and False:",
           BAD_INPUT),
    Mutant("a span behind the end", CHECKS, "in_range(op, len_arg, length, 0, n - start,",
           "in_range(op, len_arg, length, 0, n,", BAD_INPUT + files("pool")),
    Mutant("range + 1", CHECKS, "if got < low or got > high:", "if got < low or got > high + 1:", BAD_INPUT),
    Mutant("no prototypes", CHECKS, "if protos.shape[-2] < 1:", "if protos.shape[-2] < 0:", BAD_INPUT),
    Mutant("an output of another shape", CHECKS, "    if tuple(out.shape) != tuple(like.shape):\n",
           "    if out.dim() != len(like.shape):\n", BAD_INPUT),
    Mutant("a gradient that ends", CHECKS, "isinstance(t, Tensor) and t.requires_grad:",
           "isinstance(t, Tensor) and False:", BAD_INPUT),
    Mutant("a small workspace", LIBRARY, "workspace.shape[0] < words:", "workspace.shape[0] < 0:", BAD_INPUT),
    Mutant("too few buffers", LIBRARY,
           "    check.size(op, arg, len(buffer), len(spec), \"tensors (one for each input)\")\n", "", BAD_INPUT),
    Mutant("the reference before the kernels", DISPATCH, '"cpu": ("cpu", "reference")', '"cpu": ("reference", "cpu")',
           REGISTRATION),
    Mutant("a backend that cannot run is forced", DISPATCH, "        if reason:\n            raise RuntimeError(f\"VTK",
           "        if False:\n            raise RuntimeError(f\"VTK", REGISTRATION),
    Mutant("quotas that do not fit", SELECT, "k // segments if segments else k", "k",
           files("select_segments", "bad_input")),
    Mutant("a threshold that is NaN", SELECT, "isinstance(threshold, float) and math.isnan(threshold)", "False",
           files("select_ragged")),
    Mutant("more merged than there are sources", SELECT,
           "sources = n - protected - targets if targets else 0", "sources = n - protected", files("cluster")),
    Mutant("the batch for the tokens", COMPACT, "if not 1 <= dim < t.dim():", "if not 0 <= dim < t.dim():",
           files("gather", "bad_input")),
    Mutant("one tensor twice in place", COMPACT, "if kv[j] is t:", "if False:", files("gather", "paged")),
    Mutant("bits of any number", COMPACT, "if width not in QUANTIZED_BITS:", "if width < 0:", files("quantize")),
    Mutant("a digest that is not compared", IO, 'metadata["sha256"] != digest:', 'metadata["sha256"] == "":', FILES),
    Mutant("prototypes that are not finite", IO, "if not prototypes.isfinite().all():", "if False:", FILES),
    Mutant("a header of any length", IO, "if length > MAX_HEADER_BYTES:", "if length > 2**62:", FILES),
    Mutant("a header longer than its file", IO, "if not 2 <= length <= size - 8:", "if not 2 <= length:", FILES),
    Mutant("another error of the file", IO, "except (safetensors.SafetensorError, ValueError, KeyError,",
           "except (ValueError, KeyError,", FILES),
    Mutant("a weight of zero is a member", MERGE, "(assignment < groups) & (weight != 0)", "(assignment < groups)",
           drawn("merge_tokens") + files("merge")),
    Mutant("a lost index is not reported", MERGE, "(assignment < -1) | (assignment >= groups)",
           "(assignment >= groups)", drawn("merge_tokens") + files("merge")),
)
