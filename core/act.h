// Activations and their derivatives. All are fixed-order vector code, so a value does not depend on
// the lane or the tail it is computed in.
//
//                 range of x            largest error (float | double)        source
//   sigmoid       all; saturates        absolute 1.8e-7 | 3.4e-16             1 / (1 + exp(-x))
//   tanh          all; saturates        absolute 2.4e-7 | 4.5e-16             m / (m + 2), m =
//   expm1(2x)
//   where products are rounded to bfloat16 (bf16.h), with a shorter polynomial:
//   sigmoid       all; saturates        absolute 4e-5, 1 - sigmoid relative 2e-4
//   tanh          all; saturates        absolute 6e-5, relative 6e-4
// test_activation_error in tests/test_core.py and tests/test_bf16.py measures these. NaN stays NaN.
// e^(k x), for k = -1 in sigmoid and 2 in tanh, is 2^n * e^(k r) with n = nearest(k x / ln 2) and
// |k r| <= ln2/2; e^y - 1 is y * p(y) with p a minimax polynomial (own Remez run; relative error
// 1.1e-8 for float, 1.8e-17 for double). k is a power of two, so it goes into the constants without
// rounding.
#pragma once
#include "bf16.h"
#include "cell.h"

namespace gatewise::GATEWISE_ISA {

template <class T>
struct ExpTable;
template <>
struct ExpTable<float> {
  // Powers of e between them are normal numbers; the reciprocal of the largest is flushed to zero.
  static constexpr float least = -87.0f, most = 88.0f;
  static constexpr float saturated = 9.5f;  // tanh(9.5) rounds to 1
  static constexpr float inv_ln2 = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr float p[] = {1.00000001069157737f,    0.499999981138970584f,
                                0.166665055786208576f,   0.0416671379429845439f,
                                0.00836914001052344338f, 0.0013888882442091173f};
};
template <>
struct ExpTable<double> {
  static constexpr double least = -708.0, most = 709.0;
  static constexpr double saturated = 19.5;
  static constexpr double inv_ln2 = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double p[] = {1.0,
                                 0.50000000000000056,
                                 0.166666666666665625,
                                 0.0416666666665731688,
                                 0.00833333333339837149,
                                 0.00138888889325181715,
                                 0.000198412697066041232,
                                 0.0000248015042726684296,
                                 2.75574152363445275e-6,
                                 2.76264000989928318e-7,
                                 2.50520730287076584e-8};
};

// Coefficient j of q, see below.
template <int k, class T>
constexpr T coefficient(T p, int j) {
  for (; j >= 0; j--) p *= k;
  return p;
}

// e^(k x) = 2^n e^(k r); returns q with e^(k r) - 1 = r q(r). n is the exponent of a normal number.
template <class T, class E, int k>
GATEWISE_INLINE Vec<T> reduced(Vec<T> x, Power<T>& n, Vec<T>& r) {
  using Table = ExpTable<T>;
  n = nearest_power<T>(x, set1(k * Table::inv_ln2));
  // One step is enough for a float where the product is not rounded: n ln2 is off by at
  // most 2.4e-7.
  if constexpr (sizeof(T) == 4 && FUSED_MULTIPLY_ADD)
    r = fma(n.n, set1(T(-0.693147182) / k), x);
  else
    r = fma(n.n, set1(-Table::ln2_low / k), fma(n.n, set1(-Table::ln2_high / k), x));
  const auto c = [](T p, int j) { return set1(coefficient<k>(p, j)); };
  if constexpr (IS_PAIR<E>)  // relative error of e^r 1e-4
    return fma(fma(c(T(0.165178359), 2), r, c(T(0.504134595), 1)), r, c(T(1.00019622), 0));
  const auto& p = Table::p;
  if constexpr (sizeof(T) == 4) {  // short chains: several rows are in flight at once
    const Vec<T> rr = r * r;
    const Vec<T> low = fma(c(p[1], 1), r, c(p[0], 0)), middle = fma(c(p[3], 3), r, c(p[2], 2)),
                 high = fma(c(p[5], 5), r, c(p[4], 4));
    return fma(fma(high, rr, middle), rr, low);
  } else {
    constexpr int degree = sizeof(Table::p) / sizeof(Table::p[0]) - 1;
    Vec<T> q = c(p[degree], degree);
#pragma GCC unroll 16
    for (int j = degree - 1; j >= 0; j--) q = fma(q, r, c(p[j], j));
    return q;
  }
}

template <class T, class E = T>
GATEWISE_INLINE Vec<T> sigmoid(Vec<T> x) {
  using Table = ExpTable<T>;
  const Vec<T> one = set1(T(1));
  Power<T> n;
  Vec<T> r;
  const Vec<T> q = reduced<T, E, -1>(clamp(x, set1(-Table::most), set1(-Table::least)), n, r);
  return quotient(one, fma(n.of_two, fma(q, r, one), one));
}

template <class T, class E = T>
GATEWISE_INLINE Vec<T> tanh(Vec<T> x) {
  const T limit = ExpTable<T>::saturated;
  Power<T> n;
  Vec<T> r;
  const Vec<T> q = reduced<T, E, 2>(clamp(x, set1(-limit), set1(limit)), n, r);
  const Vec<T> m = fma(n.of_two, q * r, n.of_two - set1(T(1)));
  return quotient(m, m + set1(T(2)));
}

template <class T, Act A, class E = T>
GATEWISE_INLINE Vec<T> activate(Vec<T> z) {
  static_assert(!welded(A), "a welded gate computes nothing");
  if constexpr (A == Act::sigmoid)
    return sigmoid<T, E>(z);
  else if constexpr (A == Act::tanh)
    return tanh<T, E>(z);
  else if constexpr (A == Act::relu)
    return z < set1(T(0)) ? set1(T(0)) : z;  // NaN stays NaN
  else
    return z;
}

// d loss / d z from d = d loss / d a and the activated value a.
template <class T, Act A>
GATEWISE_INLINE Vec<T> through(Vec<T> d, Vec<T> a) {
  if constexpr (A == Act::sigmoid)
    return d * fma(-a, a, a);
  else if constexpr (A == Act::tanh)
    return d * fma(-a, a, set1(T(1)));
  else if constexpr (A == Act::relu)
    return a <= set1(T(0)) ? set1(T(0)) : d;  // as torch: NaN lets d pass, 0 stops even NaN
  else
    return d;
}

}  // namespace gatewise::GATEWISE_ISA
