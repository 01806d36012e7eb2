// 2^x for a vector, through the compiler's vector extension. Included inside a namespace, after the vector type V with
// Int, its vector of as many 32-bit integers. Relative error under 2 units in the last place; 0 below 2^-126.

// Minimax polynomial of 2^f on [-1/2, 1/2], 2e-9 from the truth.
constexpr float kExp2[] = {1.0f,           0.693147182f,   0.240226477f,  0.0555033237f,
                           0.00961843692f, 0.00133988739f, 0.00015353362f};

template <class V>
typename V::Reg exp2_polynomial(typename V::Reg f) {
  typename V::Reg p = V::set1(kExp2[6]);
#pragma GCC unroll 6
  for (int i = 5; i >= 0; --i) p = V::dot(p, f, V::set1(kExp2[i]));
  return p;
}

template <class V>
typename V::Reg exp2_by_bits(typename V::Reg x) {
  using Reg = typename V::Reg;
  using Int = typename V::Int;
  const Reg round = V::set1(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the nearest integer
  const Reg sum = x + round;
  const Reg p = exp2_polynomial<V>(x - (sum - round));
  const Reg power = (Reg)((Int)p + ((Int)sum << 23));
  const Reg low = x < V::set1(-126.0f) ? V::zero() : power;
  const Reg high = x >= V::set1(128.0f) ? V::set1(INFINITY) : low;
  return x == x ? high : x;
}
