// The clustering ops as torch ops on the CPU.
#include "../../cpu/select/cluster.h"

#include "../box.h"
#include "common.h"

namespace vtkernels {
namespace {

using cpu::ClusterProblem;
using cpu::KmeansProblem;
using Optional = std::optional<Tensor>;
using Pair = std::tuple<Tensor, Tensor>;
using ClusterTokens = void (*)(const Parallel&, const ClusterProblem&, const cpu::CentreTokens&);

void check_features(const char* op, const Tensor& features, int64_t clusters, ClusterProblem& p) {
  check_device(op, "features", features, cpu_type());
  const View x(features);
  p.dtype = float_dtype(op, "features", x.dtype);
  check_rank(op, "features", x, 3, "a 3-D tensor [B, N, D]");
  p.features = x.data();
  p.batch_stride = x.strides[0], p.token_stride = x.strides[1], p.dim_stride = x.strides[2];
  p.batch = x.sizes[0], p.n = x.sizes[1], p.width = x.sizes[2], p.clusters = clusters;
  const int64_t least = std::min<int64_t>(1, p.n);
  VTK_CHECK(clusters >= least && clusters <= p.n, op, "clusters", clusters,
            std::to_string(least) + " to " + std::to_string(p.n) + " (the row has N tokens)");
}

void check_iterations(const char* op, int64_t iterations, const std::string& metric, ClusterProblem& p) {
  VTK_CHECK(iterations >= 0 && iterations <= INT32_MAX, op, "iterations", iterations,
            "0 to 2147483647 (0 assigns to the initial centres)");
  VTK_CHECK(metric == "l2" || metric == "cosine", op, "metric", "'" + metric + "'", "'l2' or 'cosine'");
  p.iterations = iterations;
  p.cosine = metric == "cosine";
}

// [B, N] or [B, K, D] of float32, strides of up to three dimensions.
View check_floats(const char* op, const char* arg, const Tensor& t, Shape shape, const char* dims) {
  check_device(op, arg, t, cpu_type());
  const View v(t);
  VTK_CHECK(v.dtype == aoti_torch_dtype_float32(), op, arg, dtype_name(v.dtype), "float32");
  VTK_CHECK(Shape(v.sizes, v.dims) == shape, op, arg, "of shape " + text(v.shape()), dims + (" here " + text(shape)));
  return v;
}

KmeansProblem kmeans_problem(const char* op, const Tensor& features, int64_t clusters, int64_t iterations,
                             const std::string& metric, const Optional& weights, const Optional& initial) {
  KmeansProblem p{};
  check_features(op, features, clusters, p);
  check_iterations(op, iterations, metric, p);
  if (weights.has_value()) {
    const View v = check_floats(op, "weights", *weights, {p.batch, p.n}, "[B, N],");
    p.weights = reinterpret_cast<const float*>(v.data());
    p.weight_batch = v.strides[0], p.weight_token = v.strides[1];
  }
  if (initial.has_value()) {
    const View v = check_floats(op, "initial", *initial, {p.batch, clusters, p.width}, "[B, K, D],");
    p.initial = reinterpret_cast<const float*>(v.data());
    p.initial_batch = v.strides[0], p.initial_row = v.strides[1], p.initial_dim = v.strides[2];
  }
  return p;
}

void set_assignment(const Tensor& assignment, ClusterProblem& p) {
  p.assignment = index_out(assignment);
  p.assignment_batch = View(assignment).strides[0];
}

void run_kmeans(KmeansProblem p, const Tensor& assignment, const Tensor& centres) {
  const View c(centres);
  set_assignment(assignment, p);
  p.centres = reinterpret_cast<float*>(c.mutable_data());
  p.centre_batch = c.strides[0], p.centre_row = c.strides[1];
  cpu::cluster_kmeans(torch_pool(), p);
}

Pair cluster_kmeans(const Tensor& features, int64_t clusters, int64_t iterations, const std::string& metric,
                    const Optional& weights, const Optional& initial) {
  const KmeansProblem p = kmeans_problem("cluster_kmeans", features, clusters, iterations, metric, weights, initial);
  Pair out{empty_cpu({p.batch, p.n}, aoti_torch_dtype_int64()),
           empty_cpu({p.batch, clusters, p.width}, aoti_torch_dtype_float32())};
  run_kmeans(p, std::get<0>(out), std::get<1>(out));
  return out;
}

void cluster_kmeans_out(const Tensor& features, int64_t clusters, int64_t iterations, const std::string& metric,
                        const Optional& weights, const Optional& initial, const Tensor& assignment,
                        const Tensor& centres) {
  const char* op = "cluster_kmeans.out";
  const KmeansProblem p = kmeans_problem(op, features, clusters, iterations, metric, weights, initial);
  check_output(op, "out_assignment", assignment, {p.batch, p.n}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_centres", centres, {p.batch, clusters, p.width}, aoti_torch_dtype_float32(), false, cpu_type());
  run_kmeans(p, assignment, centres);
}

void run_tokens(ClusterTokens cluster, ClusterProblem p, const Tensor& assignment, const Tensor& centres) {
  set_assignment(assignment, p);
  cluster(torch_pool(), p, {index_out(centres), View(centres).strides[0]});
}

Pair allocate_and_run(ClusterTokens cluster, const ClusterProblem& p) {
  const int32_t index = aoti_torch_dtype_int64();
  Pair out{empty_cpu({p.batch, p.n}, index), empty_cpu({p.batch, p.clusters}, index)};
  run_tokens(cluster, p, std::get<0>(out), std::get<1>(out));
  return out;
}

void check_and_run(const char* op, const char* centre_arg, ClusterTokens cluster, const ClusterProblem& p,
                   const Tensor& assignment, const Tensor& centres) {
  const int32_t index = aoti_torch_dtype_int64();
  check_output(op, "out_assignment", assignment, {p.batch, p.n}, index, true, cpu_type());
  check_output(op, centre_arg, centres, {p.batch, p.clusters}, index, true, cpu_type());
  run_tokens(cluster, p, assignment, centres);
}

ClusterProblem peaks_problem(const char* op, const Tensor& features, int64_t clusters, int64_t neighbours) {
  ClusterProblem p{};
  check_features(op, features, clusters, p);
  const int64_t most = std::max<int64_t>(1, p.n);
  VTK_CHECK(neighbours >= 1 && neighbours <= most, op, "neighbours", neighbours,
            "1 to " + std::to_string(most) + " (the row has N tokens, each its own first neighbour)");
  p.neighbours = neighbours;
  return p;
}

Pair cluster_density_peaks(const Tensor& features, int64_t clusters, int64_t neighbours) {
  return allocate_and_run(cpu::cluster_density_peaks,
                          peaks_problem("cluster_density_peaks", features, clusters, neighbours));
}

void cluster_density_peaks_out(const Tensor& features, int64_t clusters, int64_t neighbours, const Tensor& assignment,
                               const Tensor& centres) {
  const char* op = "cluster_density_peaks.out";
  check_and_run(op, "out_centres", cpu::cluster_density_peaks, peaks_problem(op, features, clusters, neighbours),
                assignment, centres);
}

ClusterProblem medoids_problem(const char* op, const Tensor& features, int64_t clusters, int64_t iterations,
                               const std::string& metric) {
  ClusterProblem p{};
  check_features(op, features, clusters, p);
  check_iterations(op, iterations, metric, p);
  return p;
}

Pair cluster_kmedoids(const Tensor& features, int64_t clusters, int64_t iterations, const std::string& metric) {
  return allocate_and_run(cpu::cluster_kmedoids,
                          medoids_problem("cluster_kmedoids", features, clusters, iterations, metric));
}

void cluster_kmedoids_out(const Tensor& features, int64_t clusters, int64_t iterations, const std::string& metric,
                          const Tensor& assignment, const Tensor& medoids) {
  const char* op = "cluster_kmedoids.out";
  check_and_run(op, "out_medoids", cpu::cluster_kmedoids, medoids_problem(op, features, clusters, iterations, metric),
                assignment, medoids);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("cluster_density_peaks", VTK_BOX(cluster_density_peaks));
  m.impl("cluster_density_peaks.out", VTK_BOX(cluster_density_peaks_out));
  m.impl("cluster_kmeans", VTK_BOX(cluster_kmeans));
  m.impl("cluster_kmeans.out", VTK_BOX(cluster_kmeans_out));
  m.impl("cluster_kmedoids", VTK_BOX(cluster_kmedoids));
  m.impl("cluster_kmedoids.out", VTK_BOX(cluster_kmedoids_out));
}
