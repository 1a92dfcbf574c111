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
// exp is 2^n * e^r with n = nearest(x/ln 2), |r| <= ln2/2, and expm1(r) = r * p(r) with p a minimax
// polynomial (own Remez run; relative error 1.1e-8 for float, 1.8e-17 for double).
#pragma once
#include "bf16.h"
#include "cell.h"

namespace gatewise::GATEWISE_ISA {

template <class T>
struct ExpTable;
template <>
struct ExpTable<float> {
  static constexpr float least = -87.0f;    // the powers of e between are normal numbers; the
  static constexpr float most = 88.7f;      // reciprocal of the largest is flushed to zero
  static constexpr float saturated = 9.5f;  // tanh(9.5) rounds to 1
  static constexpr float inv_ln2 = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr float p[] = {1.00000001069157737f,    0.499999981138970584f,
                                0.166665055786208576f,   0.0416671379429845439f,
                                0.00836914001052344338f, 0.0013888882442091173f};
};
template <>
struct ExpTable<double> {
  static constexpr double least = -708.0, most = 709.7;
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

// x = n ln2 + r, |r| <= ln2 / 2; returns p(r) with expm1(r) = r p(r). least <= x <= most.
template <class T, class E>
GATEWISE_INLINE Vec<T> reduced(Vec<T> x, Rounded<T>& n, Vec<T>& r) {
  using Table = ExpTable<T>;
  n = nearest<T>(x, set1(Table::inv_ln2));
  // One step is enough for a float where the product is not rounded: n ln2 is off by at
  // most 2.4e-7.
  if constexpr (sizeof(T) == 4 && FUSED_MULTIPLY_ADD)
    r = fma(n.n, set1(T(-0.693147182)), x);
  else
    r = fma(n.n, set1(-Table::ln2_low), fma(n.n, set1(-Table::ln2_high), x));
  if constexpr (IS_PAIR<E>)  // relative error of e^r 1e-4
    return fma(fma(set1(T(0.165178359)), r, set1(T(0.504134595))), r, set1(T(1.00019622)));
  if constexpr (sizeof(T) == 4) {  // short chains: several rows are in flight at once
    const Vec<T> rr = r * r;
    const Vec<T> a = fma(set1(Table::p[1]), r, set1(Table::p[0])),
                 b = fma(set1(Table::p[3]), r, set1(Table::p[2])),
                 c = fma(set1(Table::p[5]), r, set1(Table::p[4]));
    return fma(fma(c, rr, b), rr, a);
  } else {
    constexpr int degree = sizeof(Table::p) / sizeof(Table::p[0]) - 1;
    Vec<T> q = set1(Table::p[degree]);
#pragma GCC unroll 16
    for (int k = degree - 1; k >= 0; k--) q = fma(q, r, set1(Table::p[k]));
    return q;
  }
}

template <class T, class E = T>
GATEWISE_INLINE Vec<T> sigmoid(Vec<T> x) {
  using Table = ExpTable<T>;
  const Vec<T> one = set1(T(1));
  Rounded<T> n;
  Vec<T> r;
  const Vec<T> p = reduced<T, E>(clamp(-x, set1(Table::least), set1(Table::most)), n, r);
  return reciprocal(one + scale<T>(fma(p, r, one), n));
}

template <class T, class E = T>
GATEWISE_INLINE Vec<T> tanh(Vec<T> x) {
  const T limit = 2 * ExpTable<T>::saturated;
  const Vec<T> one = set1(T(1));
  Rounded<T> n;
  Vec<T> r;
  const Vec<T> p = reduced<T, E>(clamp(x + x, set1(-limit), set1(limit)), n, r);
  const Vec<T> s = scale<T>(one, n);
  const Vec<T> m = fma(s, p * r, s - one);
  return m * reciprocal(m + set1(T(2)));
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

// d a / d z, from the activated value a.
template <class T, Act A>
GATEWISE_INLINE Vec<T> slope(Vec<T> a) {
  const Vec<T> one = set1(T(1));
  if constexpr (A == Act::sigmoid)
    return fma(-a, a, a);
  else if constexpr (A == Act::tanh)
    return fma(-a, a, one);
  else if constexpr (A == Act::relu)
    return a > set1(T(0)) ? one : set1(T(0));
  else
    return one;
}

}  // namespace gatewise::GATEWISE_ISA
