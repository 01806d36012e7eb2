// The engine for Python.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "engine.h"

namespace py = pybind11;
using engine::Engine;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::register_exception<engine::OutOfPages>(m, "OutOfPages", PyExc_RuntimeError);
  py::class_<Engine>(m, "Engine")
      .def(py::init([](at::Tensor prototypes, int64_t layers, int64_t pages, int64_t page_size, int64_t heads,
                       int64_t head_dim, int64_t max_requests, int64_t max_tokens) {
             return Engine({layers, pages, page_size, heads, head_dim, max_requests, max_tokens},
                           std::move(prototypes));
           }),
           py::arg("prototypes"), py::kw_only(), py::arg("layers"), py::arg("pages"), py::arg("page_size"),
           py::arg("heads"), py::arg("head_dim"), py::arg("max_requests"), py::arg("max_tokens"))
      .def("admit", &Engine::admit, py::arg("keys"), py::arg("values"), py::arg("span_start"), py::arg("span_len"))
      .def("prune", &Engine::prune, py::arg("requests"), py::arg("hidden"), py::arg("keep"))
      .def("shrink", &Engine::shrink, py::arg("request"), py::arg("keep"))
      .def("decode", &Engine::decode, py::arg("request"), py::arg("queries"), py::arg("keys"), py::arg("values"))
      .def("release", &Engine::release, py::arg("request"))
      .def("length", &Engine::length, py::arg("request"))
      .def("pages", &Engine::pages, py::arg("request"))
      .def_property_readonly("pool", &Engine::pool)
      .def_property_readonly("free_pages", &Engine::free_pages);
}
