// One vector type per instruction set. Nothing else in the core sees intrinsics.
//
// Arithmetic uses the compiler's vector types (so + - * / are the operators); what differs between
// instruction sets is written here once per set: fused multiply-add, partial loads and stores,
// rounding and scaling by a power of two. GATEWISE_ISA names the namespace of this build.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define GATEWISE_INLINE inline __attribute__((always_inline))

namespace gatewise::GATEWISE_ISA {

// GATEWISE_WIDE: the vectors and tiles of AVX-512 in plain C++. Slow; it is how their layout is
// tested on a machine without AVX-512.
#if defined(__AVX512F__)
inline constexpr int VECTOR_BYTES = 64, VECTOR_REGISTERS = 32;
inline constexpr bool FUSED_MULTIPLY_ADD = true;
#elif defined(GATEWISE_WIDE)
inline constexpr int VECTOR_BYTES = 64, VECTOR_REGISTERS = 32;
inline constexpr bool FUSED_MULTIPLY_ADD = false;
#elif defined(__AVX2__)
inline constexpr int VECTOR_BYTES = 32, VECTOR_REGISTERS = 16;
inline constexpr bool FUSED_MULTIPLY_ADD = true;
#elif defined(__aarch64__)
inline constexpr int VECTOR_BYTES = 16, VECTOR_REGISTERS = 32;
inline constexpr bool FUSED_MULTIPLY_ADD = true;
#else
inline constexpr int VECTOR_BYTES = 16, VECTOR_REGISTERS = 16;
inline constexpr bool FUSED_MULTIPLY_ADD = false;
#endif

typedef float FloatV __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleV __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t IntV __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t LongV __attribute__((vector_size(VECTOR_BYTES)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using V = FloatV;
  using Int = IntV;
  static constexpr int mantissa = 23, bias = 127;
};
template <>
struct VectorOf<double> {
  using V = DoubleV;
  using Int = LongV;
  static constexpr int mantissa = 52, bias = 1023;
};
template <class T>
using Vec = typename VectorOf<T>::V;
template <class T>
inline constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

#if defined(__AVX512F__)
GATEWISE_INLINE FloatV set1(float s) { return (FloatV)_mm512_set1_ps(s); }
GATEWISE_INLINE DoubleV set1(double s) { return (DoubleV)_mm512_set1_pd(s); }
#elif defined(__AVX2__)
GATEWISE_INLINE FloatV set1(float s) { return (FloatV)_mm256_set1_ps(s); }
GATEWISE_INLINE DoubleV set1(double s) { return (DoubleV)_mm256_set1_pd(s); }
#elif defined(GATEWISE_WIDE)
GATEWISE_INLINE FloatV set1(float s) {
  return FloatV{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
}
GATEWISE_INLINE DoubleV set1(double s) { return DoubleV{s, s, s, s, s, s, s, s}; }
#else
GATEWISE_INLINE FloatV set1(float s) { return FloatV{s, s, s, s}; }
GATEWISE_INLINE DoubleV set1(double s) { return DoubleV{s, s}; }
#endif

// Unaligned whole vectors.
template <class T>
GATEWISE_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
GATEWISE_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// A whole vector to an address that is a multiple of its size, past the caches where it is a line
// of theirs: for much that is not read again soon. Others may read it behind settle().
#if defined(__AVX512F__)
GATEWISE_INLINE void store_past(float* p, FloatV v) { _mm512_stream_ps(p, (__m512)v); }
GATEWISE_INLINE void store_past(double* p, DoubleV v) { _mm512_stream_pd(p, (__m512d)v); }
GATEWISE_INLINE void settle() { _mm_sfence(); }
#else
template <class T>
GATEWISE_INLINE void store_past(T* p, Vec<T> v) {
  store(p, v);
}
GATEWISE_INLINE void settle() {}
#endif

// The cache line at this address into the second-level cache; it need not be anybody's memory. (In
// assembly, since the compiler drops the builtin where it sees no use of it.)
GATEWISE_INLINE void fetch([[maybe_unused]] uintptr_t address) {
#if defined(__x86_64__)
  asm volatile("prefetcht1 %0" ::"m"(*reinterpret_cast<const char*>(address)));
#elif defined(__aarch64__)
  asm volatile("prfm pldl2keep, %0" ::"Q"(*reinterpret_cast<const char*>(address)));
#endif
}

template <class T>
GATEWISE_INLINE void copy(const T* from, T* to, int64_t n) {
  __builtin_memcpy(to, from, size_t(n) * sizeof(T));
}
template <class T>
GATEWISE_INLINE void clear(T* numbers, int64_t n) {
  __builtin_memset(numbers, 0, size_t(n) * sizeof(T));
}

// The same vector, in a register: the compiler may not load it a second time instead.
template <class V>
GATEWISE_INLINE V held(V v) {
#if defined(__x86_64__) && !defined(GATEWISE_WIDE)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The first n lanes only (0 <= n <= lanes); the others load as zero and are not touched by a store.
#if defined(__AVX512F__)
GATEWISE_INLINE FloatV load(const float* p, int n) {
  return (FloatV)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
GATEWISE_INLINE void store(float* p, FloatV v, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
GATEWISE_INLINE DoubleV load(const double* p, int n) {
  return (DoubleV)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
GATEWISE_INLINE void store(double* p, DoubleV v, int n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
GATEWISE_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GATEWISE_INLINE FloatV load(const float* p, int n) {
  return (FloatV)_mm256_maskload_ps(p, first_lanes(n));
}
GATEWISE_INLINE void store(float* p, FloatV v, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
GATEWISE_INLINE DoubleV load(const double* p, int n) {
  return (DoubleV)_mm256_maskload_pd(p, first_lanes(2 * n));
}
GATEWISE_INLINE void store(double* p, DoubleV v, int n) {
  _mm256_maskstore_pd(p, first_lanes(2 * n), (__m256d)v);
}
#else
template <class T>
GATEWISE_INLINE Vec<T> load(const T* p, int n) {
  Vec<T> v = {};
  for (int k = 0; k < n; k++) v[k] = p[k];
  return v;
}
template <class T>
GATEWISE_INLINE void store(T* p, Vec<T> v, int n) {
  for (int k = 0; k < n; k++) p[k] = v[k];
}
#endif

// a*b + c. Written out, never left to contraction, so that every path rounds alike.
#if defined(__AVX512F__)
GATEWISE_INLINE FloatV fma(FloatV a, FloatV b, FloatV c) {
  return (FloatV)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
GATEWISE_INLINE DoubleV fma(DoubleV a, DoubleV b, DoubleV c) {
  return (DoubleV)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__AVX2__)
GATEWISE_INLINE FloatV fma(FloatV a, FloatV b, FloatV c) {
  return (FloatV)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
GATEWISE_INLINE DoubleV fma(DoubleV a, DoubleV b, DoubleV c) {
  return (DoubleV)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__aarch64__)
GATEWISE_INLINE FloatV fma(FloatV a, FloatV b, FloatV c) {
  return (FloatV)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
GATEWISE_INLINE DoubleV fma(DoubleV a, DoubleV b, DoubleV c) {
  return (DoubleV)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
template <class V>
GATEWISE_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

// n / d for a normal d, to the last bits; zero where that is below the normal numbers and these are
// flushed. Where the processor offers an approximation of 1 / d, from that and what it leaves of n,
// since its dividers are slow on wide vectors; else a division. And a rough one, to 14 bits.
#if defined(__AVX512F__)
GATEWISE_INLINE FloatV rough_reciprocal(FloatV d) { return (FloatV)_mm512_rcp14_ps((__m512)d); }
GATEWISE_INLINE DoubleV rough_reciprocal(DoubleV d) {
  const DoubleV r = (DoubleV)_mm512_rcp14_pd((__m512d)d);
  return fma(fma(-d, r, set1(1.0)), r, r);
}
template <class V>
GATEWISE_INLINE V quotient(V n, V d) {
  const V r = rough_reciprocal(d), q = n * r;
  return fma(fma(-d, q, n), r, q);
}
GATEWISE_INLINE FloatV rough_quotient(FloatV n, FloatV d) { return n * rough_reciprocal(d); }
#else
template <class V>
GATEWISE_INLINE V quotient(V n, V d) {
  return n / d;
}
template <class V>
GATEWISE_INLINE V rough_quotient(V n, V d) {
  return n / d;
}
#endif

// x where x lies inside [low, high], else the bound; a NaN stays a NaN (the second operand
// survives).
#if defined(__AVX512F__)
GATEWISE_INLINE FloatV clamp(FloatV x, FloatV low, FloatV high) {
  return (FloatV)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
}
GATEWISE_INLINE DoubleV clamp(DoubleV x, DoubleV low, DoubleV high) {
  return (DoubleV)_mm512_min_pd((__m512d)high, _mm512_max_pd((__m512d)low, (__m512d)x));
}
#elif defined(__AVX2__)
GATEWISE_INLINE FloatV clamp(FloatV x, FloatV low, FloatV high) {
  return (FloatV)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
}
GATEWISE_INLINE DoubleV clamp(DoubleV x, DoubleV low, DoubleV high) {
  return (DoubleV)_mm256_min_pd((__m256d)high, _mm256_max_pd((__m256d)low, (__m256d)x));
}
#else
template <class V>
GATEWISE_INLINE V clamp(V x, V low, V high) {
  x = low > x ? low : x;
  return high < x ? high : x;
}
#endif

// The integer n nearest to 2^bits x by, and 2^(n / 2^bits) without the root of two that the lowest
// bits of n stand for (act.h multiplies by it). Adding 1.5 * 2^mantissa pushes the fraction out of
// the register; with the bias on top of it the bits of n are in the place of an exponent.
template <class T>
struct Power {
  Vec<T> n, of_two;
  typename VectorOf<T>::Int bits_of_n;
};
template <class T, int bits>
GATEWISE_INLINE Power<T> nearest_power(Vec<T> x, T by) {
  using V = VectorOf<T>;
  using Int = typename V::Int;
  const Vec<T> magic =
      set1(T(3) * T(int64_t(1) << (V::mantissa - 1)) + T(int64_t(V::bias) << bits));
  const Vec<T> pushed = fma(x, set1(by * T(1 << bits)), magic);
  return {pushed - magic, (Vec<T>)((Int)pushed << (V::mantissa - bits)), (Int)pushed};
}

// The numbers of a table that the lowest TABLE_BITS of each lane stand for.
#if defined(__AVX512F__)
inline constexpr int TABLE_BITS = 4;
template <class E>
GATEWISE_INLINE IntV lookup(const E (&table)[16], IntV index) {
  return (IntV)_mm512_permutexvar_epi32((__m512i)index, _mm512_loadu_si512(table));
}
#elif defined(__AVX2__)
inline constexpr int TABLE_BITS = 3;
template <class E>
GATEWISE_INLINE IntV lookup(const E (&table)[8], IntV index) {
  return (IntV)_mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)table),
                                           (__m256i)index);
}
#else
inline constexpr int TABLE_BITS = 0;
#endif

// The lanes of a and then of b that are named, of the two counted on. (GCC 11 knows its own builtin
// only.)
template <int... lane, class V>
GATEWISE_INLINE V shuffle(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, lane...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){lane...});
#endif
}

// One round of a transpose of LANES x LANES: the rows a and b meet as a0 b0 a1 b1 ...
GATEWISE_INLINE void interleave(FloatV& a, FloatV& b) {
  const FloatV x = a, y = b;
#if defined(__AVX512F__) || defined(GATEWISE_WIDE)
  a = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(x, y);
  b = shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(x, y);
#elif defined(__AVX2__)
  a = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(x, y);
  b = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(x, y);
#else
  a = shuffle<0, 4, 1, 5>(x, y);
  b = shuffle<2, 6, 3, 7>(x, y);
#endif
}
GATEWISE_INLINE void interleave(DoubleV& a, DoubleV& b) {
  const DoubleV x = a, y = b;
#if defined(__AVX512F__) || defined(GATEWISE_WIDE)
  a = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(x, y);
  b = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(x, y);
#elif defined(__AVX2__)
  a = shuffle<0, 4, 1, 5>(x, y);
  b = shuffle<2, 6, 3, 7>(x, y);
#else
  a = shuffle<0, 2>(x, y);
  b = shuffle<1, 3>(x, y);
#endif
}

// bfloat16: the upper half of a float, rounded to nearest even. A dot product takes them in pairs,
// a pair to each 32-bit lane, the even one in the low half, and adds to a float.
typedef uint16_t ShortV __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t BitsV __attribute__((vector_size(VECTOR_BYTES)));
#if defined(__AVX512BF16__) || defined(GATEWISE_WIDE)
#define GATEWISE_PAIRS
#endif
#if defined(__AVX512BF16__)
GATEWISE_INLINE ShortV shortened(FloatV v) { return (ShortV)_mm512_cvtneps_pbh((__m512)v); }
GATEWISE_INLINE FloatV fma(IntV a, IntV b, FloatV sum) {
  return (FloatV)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
GATEWISE_INLINE ShortV load_short(const void* p, int n) {
  return (ShortV)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
}
GATEWISE_INLINE void store_short(void* p, ShortV v, int n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)v);
}
#else
GATEWISE_INLINE ShortV load_short(const void* p, int n) {
  ShortV v = {};
  __builtin_memcpy(&v, p, size_t(n) * 2);
  return v;
}
#endif
#if defined(GATEWISE_WIDE)
GATEWISE_INLINE ShortV shortened(FloatV v) {
  const BitsV bits = (BitsV)v, quiet = (bits >> 16) | 0x40;
  const BitsV rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : quiet, ShortV);
}
GATEWISE_INLINE FloatV fma(IntV a, IntV b, FloatV sum) {
  const IntV high = IntV{} + int32_t(0xffff0000);
  sum = sum + (FloatV)(a & high) * (FloatV)(b & high);  // a product of two is exact
  return sum + (FloatV)(a << 16) * (FloatV)(b << 16);
}
GATEWISE_INLINE void store_short(void* p, ShortV v, int n) {
  __builtin_memcpy(p, &v, size_t(n) * 2);
}
#endif

// LANES x LANES numbers whose rows lie `apart`, as columns, where that is quicker than loads and a
// transpose: here loads put rows r and r + 8 side by side, which spares one of its four rounds; and
// the exchanges of a round have one port, where the insertion of what is loaded has two. Says
// whether it was done.
template <class T, class V, int n>
GATEWISE_INLINE bool load_columns(const T*, int64_t, V (&)[n]) {
  return false;
}
#if defined(__AVX512F__)
GATEWISE_INLINE bool load_columns(const float* rows, int64_t apart, FloatV (&column)[16]) {
#pragma GCC unroll 2
  for (int half = 0; half < 16; half += 8) {
    __m512 row[8];
    __m512d pairs[8], fours[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
      const float* first = rows + r * apart + half;
      row[r] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(first)),
                                  _mm256_loadu_ps(first + 8 * apart), 1);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 8; k += 2) {
      pairs[k] = (__m512d)_mm512_unpacklo_ps(row[k], row[k + 1]);
      pairs[k + 1] = (__m512d)_mm512_unpackhi_ps(row[k], row[k + 1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) {
        fours[k + 2 * j] = _mm512_unpacklo_pd(pairs[k + j], pairs[k + j + 2]);
        fours[k + 2 * j + 1] = _mm512_unpackhi_pd(pairs[k + j], pairs[k + j + 2]);
      }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const DoubleV a = (DoubleV)fours[k], b = (DoubleV)fours[k + 4];
      column[half + k] = (FloatV)shuffle<0, 1, 8, 9, 4, 5, 12, 13>(a, b);
      column[half + k + 4] = (FloatV)shuffle<2, 3, 10, 11, 6, 7, 14, 15>(a, b);
    }
  }
  return true;
}
#endif

// A whole transpose where there is a shorter way than rounds of interleave(): with AVX2 these cross
// the middle of the register, which costs a second instruction each. Says whether it was done.
template <class V, int n>
GATEWISE_INLINE bool transpose_at_once(V (&)[n]) {
  return false;
}
#if defined(__AVX2__) && !defined(__AVX512F__)
GATEWISE_INLINE bool transpose_at_once(FloatV (&row)[8]) {
  FloatV pairs[8], fours[8];
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2) {  // a0 b0 a1 b1 | a4 b4 a5 b5, a2 b2 a3 b3 | ...
    pairs[k] = shuffle<0, 8, 1, 9, 4, 12, 5, 13>(row[k], row[k + 1]);
    pairs[k + 1] = shuffle<2, 10, 3, 11, 6, 14, 7, 15>(row[k], row[k + 1]);
  }
#pragma GCC unroll 2
  for (int k = 0; k < 8; k += 4)  // a0 b0 c0 d0 | a4 b4 c4 d4, a1 ..., a2 ..., a3 ...
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      fours[k + 2 * j] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(pairs[k + j], pairs[k + j + 2]);
      fours[k + 2 * j + 1] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(pairs[k + j], pairs[k + j + 2]);
    }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    row[k] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(fours[k], fours[k + 4]);
    row[k + 4] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(fours[k], fours[k + 4]);
  }
  return true;
}
GATEWISE_INLINE bool transpose_at_once(DoubleV (&row)[4]) {
  const DoubleV a = shuffle<0, 4, 2, 6>(row[0], row[1]), b = shuffle<1, 5, 3, 7>(row[0], row[1]),
                c = shuffle<0, 4, 2, 6>(row[2], row[3]), d = shuffle<1, 5, 3, 7>(row[2], row[3]);
  row[0] = shuffle<0, 1, 4, 5>(a, c);
  row[1] = shuffle<0, 1, 4, 5>(b, d);
  row[2] = shuffle<2, 3, 6, 7>(a, c);
  row[3] = shuffle<2, 3, 6, 7>(b, d);
  return true;
}
#endif

}  // namespace gatewise::GATEWISE_ISA
