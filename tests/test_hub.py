"""The project for the Hugging Face Hub: complete, free of the namespace, and usable beside the package itself."""

import ast
import copy
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bytes
from torch.utils.cpp_extension import include_paths

import vtkernels
from vtkernels import _dispatch, testing

ROOT = Path(__file__).parents[1]
NAME = "some-kernel"
ALLOWED = {  # of edition 5 of build.toml; "kernel" holds the fields of a kernel of any backend
    "general": {"name", "version", "edition", "license", "backends"},
    "torch": {"src", "pyext", "stable-abi"},
    "kernel": {"backend", "depends", "include", "cxx-flags", "cuda-flags", "src"},
}

# Imported by functions that read codebook files and draw, and by nothing that an op needs.
LAZY = ("safetensors", "matplotlib")

spec = importlib.util.spec_from_file_location("hub_assemble", ROOT / "hub/assemble.py")
hub = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "project"
    hub.assemble(out, NAME)
    return out


@pytest.fixture(scope="module")
def build(project):
    return pytest.importorskip("tomllib").loads((project / "build.toml").read_text())


def package(project):
    return project / "torch-ext" / NAME.replace("-", "_")


def test_build_toml_has_fields_of_the_format_alone(build):
    assert set(build) == set(ALLOWED)
    assert set(build["general"]) == ALLOWED["general"]
    assert set(build["torch"]) == ALLOWED["torch"]
    assert (build["general"]["name"], build["general"]["edition"]) == (NAME, 5)
    assert set(build["torch"]["stable-abi"]) == set(build["general"]["backends"]) == {"cpu", "cuda"}
    for kernel in build["kernel"].values():
        assert set(kernel) <= ALLOWED["kernel"]
        assert kernel["depends"] == ["torch"]
        assert "-DVTK_NAMESPACE=TORCH_EXTENSION_NAME" in kernel["cxx-flags"]


def test_every_source_is_named_and_there(project, build):
    listed = [line.split() for line in (ROOT / "csrc/sources.txt").read_text().splitlines() if line[:1] != "#"]
    sources = {library: {path for kind, path in listed if kind == library} for library in ("cpu", "cuda")}
    named = {backend: build["kernel"][backend]["src"] for backend in sources}
    for backend, own in (("cpu", sources["cpu"]), ("cuda", sources["cpu"] | sources["cuda"])):
        assert {p for p in named[backend] if p.endswith((".cpp", ".cu"))} == own
        assert len(set(named[backend])) == len(named[backend])
    headers = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".inl", ".cuh")}
    assert {p for p in named["cuda"] if not p.endswith((".cpp", ".cu"))} == headers
    for path in (*named["cuda"], *build["torch"]["src"]):
        origin = ROOT / path if path.startswith("csrc/") else ROOT / "hub" / path
        assert (project / path).read_bytes() == origin.read_bytes()
    present = {str(p.relative_to(project)) for p in (project / "csrc").rglob("*") if p.is_file()}
    assert present == set(named["cuda"])


def test_what_the_cpu_build_includes_is_named_for_it(project, build):
    named = {project / path for path in build["kernel"]["cpu"]["src"]}
    for file in named:
        for line in file.read_text().splitlines():
            if line.startswith('#include "'):
                target = line.split('"')[1]
                places = [(file.parent / target).resolve(), project / "csrc/include" / target]
                assert any(place in named for place in places), (file, target)


def test_every_file_of_the_package_is_there_or_left_behind(project, build):
    root = ROOT / "vtkernels"
    all_files = {p.relative_to(root) for p in root.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".so")}
    there = {p.relative_to(package(project)) for p in package(project).rglob("*") if p.is_file()}
    left = {p: {p.parts[0], p.as_posix()} & set(hub.LEFT_BEHIND) for p in all_files}
    assert {p for p in all_files if not left[p]} == there
    assert set().union(*left.values()) == set(hub.LEFT_BEHIND)
    assert {p.suffix for p in there} == {f".{extension}" for extension in build["torch"]["pyext"]}


def code_strings(tree):
    """String constants that are not docstrings."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            and id(n) not in docs]


def test_the_namespace_is_nowhere_hard_coded(project):
    for file in package(project).rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                assert (node.value.attr, node.attr) != ("ops", "vtkernels"), file
        assert not [text for text in code_strings(tree) if text == "vtkernels" or "vtkernels::" in text], file
    for file in (project / "csrc/torch").rglob("*.cpp"):
        registered = [line for line in file.read_text().splitlines() if line.startswith("STABLE_TORCH_LIBRARY")]
        assert all("_IMPL(VTK_NAMESPACE, " in line or "_IMPL(VTK_CUDA_NAMESPACE, " in line for line in registered)
        assert registered


def test_imports_are_those_the_hub_allows(project):
    """Relative ones, the standard library and torch; Triton comes with torch where its kernels run."""
    allowed = {*sys.stdlib_module_names, "torch"}
    for file in package(project).rglob("*.py"):
        tree = ast.parse(file.read_text())
        inner = {child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module.split(".")[0]]
            else:
                continue
            extra = set(names) - allowed
            assert extra <= ({"triton", *LAZY} if node in inner else {"triton"}), (file, names)


@pytest.mark.parametrize(("name", "message"), [("Bad_Name", "`name` is 'Bad_Name'"), ("x-", "`name` is 'x-'")])
def test_a_bad_name_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        hub.assemble(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="not empty"):
        hub.assemble(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def load(project, folder, namespace, extension=None):
    """Import the package as `kernels` would: a build folder of any place, under a name that is not its own.

    `_ops.py` has what kernel-builder generates, but loads the extension through torch, which needs no Python ABI.
    """
    target = folder / namespace
    shutil.copytree(package(project), target)
    lines = ["import torch", f"ops = torch.ops.{namespace}", "def add_op_namespace_prefix(op_name):",
             f'    return f"{namespace}::{{op_name}}"']
    if extension:
        shutil.copy(extension, target / f"{namespace}.abi3.so")
        lines.append(f"torch.ops.load_library({str(target / f'{namespace}.abi3.so')!r})")
    (target / "_ops.py").write_text("\n".join(lines) + "\n")
    module_name = f"loaded{namespace}"
    found = importlib.util.spec_from_file_location(module_name, target / "__init__.py",
                                                   submodule_search_locations=[str(target)])
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    return module


def assert_same_results(namespace, op, backend, count):
    """The first samples of an op: the same bytes under the other namespace as on a backend of this package."""
    ran = 0
    for sample in itertools.islice(testing.SAMPLES[op](), count):
        ours, theirs = copy.deepcopy((sample.args, sample.kwargs)), copy.deepcopy((sample.args, sample.kwargs))
        want = testing.run(op, backend, *ours[0], **ours[1])
        got = getattr(getattr(torch.ops, namespace), op)(*theirs[0], **theirs[1])
        assert_same_bytes(got, want)
        assert_same_bytes(_dispatch._tensors(theirs[0]), _dispatch._tensors(ours[0]))  # what was changed in place
        ran += 1
    assert ran


@pytest.fixture(scope="module")
def pure(project, tmp_path_factory):
    return load(project, tmp_path_factory.mktemp("loaded"), "_some_kernel_cpu_pure")


@pytest.mark.parametrize("op", _dispatch.STAGES)
def test_the_package_without_an_extension_beside_this_one(pure, op):
    assert pure.explain(op).backend == "reference"
    assert vtkernels.explain(op).backend == "cpu"
    assert_same_results("_some_kernel_cpu_pure", op, "reference", 3)


def test_the_public_functions_are_the_same_and_other_objects(pure):
    assert pure.__all__ == vtkernels.__all__
    scores = torch.rand(2, 50)
    assert torch.equal(pure.select_topk(scores, 7), vtkernels.select_topk(scores, 7))
    assert pure.select_topk is not vtkernels.select_topk
    assert pure.select_topk.__module__.startswith("loaded_some_kernel")


def test_the_tests_of_the_project_run_on_it(pure, project, monkeypatch):
    monkeypatch.setenv("KERNEL_REPO", "someone/some-kernel")
    asked = []
    kernels = types.SimpleNamespace(get_kernel=lambda repo, version: asked.append((repo, version)) or pure)
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    spec = importlib.util.spec_from_file_location("hub_tests", project / "tests/test_ops.py")
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    assert asked == [("someone/some-kernel", 0)]
    run = [test() for name, test in vars(tests).items() if name.startswith("test_")]
    assert len(run) == 2


def compile_extension(project, folder, namespace, sources, optimize="-O1"):
    """The sources as kernel-builder compiles them, and its header with REGISTER_EXTENSION."""
    (folder / "registration.h").write_text(
        "#pragma once\n#define VTK_TEXT(x) #x\n"
        "#define REGISTER_EXTENSION(NAME) VTK_REGISTER(NAME)\n"
        '#define VTK_REGISTER(NAME) extern "C" __attribute__((visibility("default"))) void PyInit_##NAME() {}\n')
    flags = [os.environ.get("CXX", "c++"), "-std=c++17", optimize, "-fPIC", "-fno-gnu-unique", "-fvisibility=hidden",
             f"-DTORCH_EXTENSION_NAME={namespace}", "-DVTK_NAMESPACE=TORCH_EXTENSION_NAME",
             "-DTORCH_TARGET_VERSION=0x020A000000000000", "-Icsrc/include", f"-I{folder}",
             *(f"-isystem{path}" for path in include_paths())]
    objects = []
    for i, source in enumerate(sources):
        objects.append(str(folder / f"{i}.o"))
        done = subprocess.run([*flags, "-c", source, "-o", objects[-1]], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    library, out = Path(torch.__file__).parent / "lib", folder / f"{namespace}.so"
    subprocess.run([flags[0], "-shared", "-Wl,--no-undefined", *objects, "-o", str(out), f"-L{library}", "-ltorch",
                    "-ltorch_cpu", "-lc10"], check=True)
    return out


GATHER = ("gather_tokens", "gather_kv", "gather_kv_inplace")


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_an_extension_in_its_own_namespace_beside_this_one(project, tmp_path):
    """One family of ops, which compiles quickly; all of them below."""
    namespace = "_some_kernel_cpu_gather"
    extension = compile_extension(project, tmp_path, namespace, [
        "torch-ext/torch_binding.cpp", "csrc/torch/cpu/gather.cpp", "csrc/cpu/compact/gather.cpp",
        "csrc/cpu/common/isa.cpp"])
    module = load(project, tmp_path, namespace, extension)
    for op in GATHER:
        assert module.explain(op).backend == "cpu"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", "CPU")
        assert_same_results(namespace, op, "cpu", 1000)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::select_topk", "CPU")
    assert module._native.path("_C_cpu").name == f"{namespace}.abi3.so"
    assert "without CUDA kernels" in module._native.load("_C_cuda")


@pytest.mark.long
def test_the_whole_extension_in_its_own_namespace_beside_this_one(project, tmp_path, build):
    namespace = "_some_kernel_cpu_whole"
    sources = [path for path in build["kernel"]["cpu"]["src"] if path.endswith(".cpp")]
    sources.append("torch-ext/torch_binding.cpp")
    extension = compile_extension(project, tmp_path, namespace, sources, "-O3")  # sums of other loops round differently
    load(project, tmp_path, namespace, extension)
    for op in _dispatch.STAGES:
        assert_same_results(namespace, op, "cpu", 1000)
