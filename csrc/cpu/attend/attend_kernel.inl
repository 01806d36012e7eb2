// One cell, for one instruction set. Included by attend.cpp inside a namespace, after score_kernel.inl and V.

// A row of d elements as floats: in place where it is dense float32, else in `scratch`, padded to whole vectors.
template <class V>
const float* row_floats(const CellProblem& p, const Heads& t, int64_t b, int64_t h, int64_t row, float* scratch) {
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  const char* from = t.data + (b * t.batch + h * t.head + row * t.row) * size;
  if (p.dtype == DType::kFloat32 && t.dim == 1) return reinterpret_cast<const float*>(from);
  load_units<V>(from, p.dtype, p.width, t.dim, reinterpret_cast<uint32_t*>(scratch));
  return scratch;
}

// scratch: kWidth + 3 * padded width + cell * cell floats.
template <class V>
void attend_cell(const CellProblem& p, int64_t b, int64_t h, int64_t cell, float* scratch) {
  const int64_t padded = ceil_div(p.width, V::kWidth) * V::kWidth, side = p.cell, count = side * side;
  float *lanes = scratch, *query = lanes + V::kWidth, *row = query + padded, *sum = row + padded,
        *weight = sum + padded;
  const float* q = row_floats<V>(p, p.query, b, h, cell, query);
  const int64_t top = cell / p.columns * side * p.columns * side + cell % p.columns * side;
  const auto position = [&](int64_t i) { return top + i / side * p.columns * side + i % side; };
  float highest = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    const float* k = row_floats<V>(p, p.key, b, h, position(i), row);
    typename V::Reg acc = V::zero();
    int64_t d = 0;
    for (; d + V::kWidth <= p.width; d += V::kWidth) {
      acc = V::dot(V::load(reinterpret_cast<const uint32_t*>(q + d)), V::load(reinterpret_cast<const uint32_t*>(k + d)),
                   acc);
    }
    V::store(lanes, acc);
    float product = total<V>(lanes);
    for (; d < p.width; ++d) product += q[d] * k[d];
    weight[i] = product * p.scale;
    highest = weight[i] > highest || weight[i] != weight[i] ? weight[i] : highest;
  }
  float mass = 0;
  for (int64_t i = 0; i < count; ++i) mass += weight[i] = std::exp(weight[i] - highest);
  std::fill_n(sum, p.width, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* v = row_floats<V>(p, p.value, b, h, position(i), row);
    const float share = weight[i] / mass;
    for (int64_t d = 0; d < p.width; ++d) sum[d] += share * v[d];
  }
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  store_floats(p.dtype, sum, p.width, p.out + (b * p.out_batch + h * p.out_head + cell * p.out_row) * size);
}
