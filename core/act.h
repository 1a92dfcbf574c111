// Activations and their derivatives. All are fixed-order vector code, so a value does not depend on
// the lane or the tail it is computed in.
//
//                 range of x            largest error (float | double)        source
//   sigmoid       all; saturates        absolute 1.8e-7 | 3.4e-16             1 / (1 + exp(-x))
//   tanh          all; saturates        absolute 2.4e-7 | 4.5e-16             m / (m + 2), where
//                                                                             m = expm1(2x)
//   and, rough, where products are rounded to bfloat16 (bf16.h):
//   sigmoid       all; saturates        absolute 1.5e-4
//   tanh          all; saturates        absolute 1.5e-4, relative 6e-4
// test_activation_error in tests/test_core.py and tests/test_bf16.py measures these. NaN stays NaN.
// e^(k x), for k = -1 in sigmoid and 2 in tanh, is 2^(n / 2^bits) e^(k r) with n the integer
// nearest to 2^bits k x / ln 2, and |k r| <= ln2 / 2^(bits + 1). Where a vector register holds a
// table of the roots of two, n has that many bits behind the point, and the polynomial is short.
// e^y - 1 is y q(y) with q a minimax polynomial (own Remez run). k is a power of two, so it goes
// into the constants without rounding.
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
  static constexpr int bits = TABLE_BITS;
};
template <>
struct ExpTable<double> {
  static constexpr double least = -708.0, most = 709.0;
  static constexpr double saturated = 19.5;
  static constexpr double inv_ln2 = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr int bits = 0;
};

// The coefficients of q, and its largest relative error.
template <class T, int bits, bool rough>
inline constexpr T EXP[] = {0};
template <>
inline constexpr double EXP<double, 0, false>[] = {// 1.8e-17
                                                   1.0,
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
template <>
inline constexpr float EXP<float, 0, false>[] = {// 1.1e-8
                                                 1.00000001069157737f,    0.499999981138970584f,
                                                 0.166665055786208576f,   0.0416671379429845439f,
                                                 0.00836914001052344338f, 0.0013888882442091173f};
template <>
inline constexpr float EXP<float, 3, false>[] = {
    // 3.7e-9
    0.999999996f, 0.500000003f, 0.166682306f, 0.0416666666f};
template <>
inline constexpr float EXP<float, 4, false>[] = {1.0f, 0.500014662f, 0.166666667f};  // 1.1e-7
template <>
inline constexpr float EXP<float, 0, true>[] = {1.00019622f, 0.504134595f, 0.165178359f};  // 4e-4
template <>
inline constexpr float EXP<float, 4, true>[] = {1.0000391f, 0.5f};  // 3.9e-5

// 2^(j / 16), and by which part of it the true root is larger.
inline constexpr float ROOTS[16] = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f,
                                    1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                                    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                                    1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
inline constexpr float ROOT_RESTS[16] = {
    0.0f,           4.628547e-08f,  -1.199216e-08f, 4.729782e-08f,  3.193418e-08f, 3.621057e-08f,
    -3.099072e-08f, -7.475213e-09f, 1.711427e-08f,  -3.047683e-08f, 5.233334e-09f, 6.107592e-09f,
    -1.471961e-08f, -5.258795e-09f, -6.12826e-09f,  5.140609e-09f};

// The tables of so many bits. A root is what is added to the bits of a power of two to multiply it,
// where the exponent has been left with the lowest bits of n behind it.
template <int bits>
struct Roots {
  int32_t factor[1 << bits] = {};
  float rest[1 << bits] = {};
  constexpr Roots() {
    for (int j = 0; j < 1 << bits; j++) {
      const int k = j << (4 - bits);
      factor[j] = __builtin_bit_cast(int32_t, ROOTS[k]) - __builtin_bit_cast(int32_t, 1.0f) -
                  (j << (23 - bits));
      rest[j] = ROOT_RESTS[k];
    }
  }
};
template <int bits>
inline constexpr Roots<bits> ROOTS_OF_TWO{};

// Coefficient j of q, see below.
template <int k, class T>
constexpr T coefficient(T p, int j) {
  for (; j >= 0; j--) p *= k;
  return p;
}

// e^(k x) = power (1 + rest) (1 + r q).
template <class T>
struct Exponential {
  Vec<T> power, rest, r, q;
};
template <class T, class E, int k>
GATEWISE_INLINE Exponential<T> exponential(Vec<T> x) {
  using Table = ExpTable<T>;
  constexpr int bits = Table::bits, parts = k * (1 << bits);
  const Power<T> n = nearest_power<T, bits>(x, k * Table::inv_ln2);
  Exponential<T> e;
  e.power = n.of_two;
  if constexpr (bits > 0) {
    const Roots<bits>& roots = ROOTS_OF_TWO<bits>;
    e.power = (Vec<T>)((IntV)n.of_two + lookup(roots.factor, n.bits_of_n));
    e.rest = (Vec<T>)lookup(roots.rest, n.bits_of_n);
  }
  // One step is enough for a float where the product is not rounded: n ln2 is off by at
  // most 2.4e-7.
  if constexpr (sizeof(T) == 4 && FUSED_MULTIPLY_ADD)
    e.r = fma(n.n, set1(T(-0.693147182) / parts), x);
  else
    e.r = fma(n.n, set1(-Table::ln2_low / parts), fma(n.n, set1(-Table::ln2_high / parts), x));
  constexpr auto& p = EXP<T, bits, IS_PAIR<E>>;
  constexpr int degree = sizeof p / sizeof p[0] - 1;
  const auto c = [](int j) { return set1(coefficient<k>(p[j], j)); };
  if constexpr (degree == 5) {  // short chains: several rows are in flight at once
    const Vec<T> rr = e.r * e.r;
    const Vec<T> low = fma(c(1), e.r, c(0)), middle = fma(c(3), e.r, c(2)),
                 high = fma(c(5), e.r, c(4));
    e.q = fma(fma(high, rr, middle), rr, low);
  } else {
    e.q = c(degree);
#pragma GCC unroll 16
    for (int j = degree - 1; j >= 0; j--) e.q = fma(e.q, e.r, c(j));
  }
  return e;
}

template <class T, class E>
GATEWISE_INLINE Vec<T> quotient_of(Vec<T> n, Vec<T> d) {
  if constexpr (IS_PAIR<E>)
    return rough_quotient(n, d);
  else
    return quotient(n, d);
}

// The error of a rough division, 6e-5, must not carry a value past 1, where slopes change their
// sign; so it stops 9e-5 before.
inline constexpr float ROUGHLY_OPEN = 9.3f, ROUGHLY_SATURATED = 5.0f;

template <class T, class E = T>
GATEWISE_INLINE Vec<T> sigmoid(Vec<T> x) {
  using Table = ExpTable<T>;
  const Vec<T> one = set1(T(1)), open = set1(IS_PAIR<E> ? T(ROUGHLY_OPEN) : -Table::least);
  const Exponential<T> e = exponential<T, E, -1>(clamp(x, set1(-Table::most), open));
  return quotient_of<T, E>(one, fma(e.power, fma(e.q, e.r, one), one));
}

template <class T, class E = T>
GATEWISE_INLINE Vec<T> tanh(Vec<T> x) {
  const T limit = IS_PAIR<E> ? T(ROUGHLY_SATURATED) : ExpTable<T>::saturated;
  const Exponential<T> e = exponential<T, E, 2>(clamp(x, set1(-limit), set1(limit)));
  const Vec<T> rq = ExpTable<T>::bits > 0 && !IS_PAIR<E> ? fma(e.q, e.r, e.rest) : e.q * e.r;
  const Vec<T> m = fma(e.power, rq, e.power - set1(T(1)));
  return quotient_of<T, E>(m, m + set1(T(2)));
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
