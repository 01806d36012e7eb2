// One cell, for one instruction set. Compiled by isa_kernels.inl.

// scratch: 3 * padded width + cell * cell floats.
inline void attend_cell(const CellProblem& p, int64_t b, int64_t h, int64_t cell, float* scratch) {
  const int64_t padded = ceil_div(p.width, 16) * 16, side = p.cell, count = side * side, size = element_size(p.dtype);
  float *query = scratch, *row = query + padded, *sum = row + padded, *weight = sum + padded;
  const auto load_row = [&](const Heads& t, int64_t at, float* to) {
    return floats_of(t.data + (b * t.batch + h * t.head + at * t.row) * size, p.dtype, p.width, t.dim, to);
  };
  const float* q = load_row(p.query, cell, query);
  const int64_t top = cell / p.columns * side * p.columns * side + cell % p.columns * side;
  const auto position = [&](int64_t i) { return top + i / side * p.columns * side + i % side; };
  float highest = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    const float* k = load_row(p.key, position(i), row);
    Vector lanes = {};
    int64_t d = 0;
    for (; d + kLanes <= p.width; d += kLanes) lanes += load(q + d) * load(k + d);
    float product = total(lanes);
    for (; d < p.width; ++d) product += q[d] * k[d];
    weight[i] = product * p.scale;
    highest = weight[i] > highest || weight[i] != weight[i] ? weight[i] : highest;
  }
  float mass = 0;
  for (int64_t i = 0; i < count; ++i) mass += weight[i] = std::exp(weight[i] - highest);
  std::fill_n(sum, p.width, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* v = load_row(p.value, position(i), row);
    const float share = weight[i] / mass;
    for (int64_t d = 0; d < p.width; ++d) sum[d] += share * v[d];
  }
  narrow(sum, p.dtype, p.width, p.out + (b * p.out_batch + h * p.out_head + cell * p.out_row) * size);
}
