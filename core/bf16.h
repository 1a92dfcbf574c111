// A sequence, forward, where the products round what they multiply to bfloat16: W, x and h(t-1), as
// torch does under bfloat16. Sums, gates and cell state stay float. One instruction multiplies and
// adds a pair, so the panels of pack.h hold pairs of k, one 32-bit number each:
//
//   panel j, one line a pair of k      [ i:L | f:L | g:L | o:L ]      low half k even, high half
//   odd
//
// A row of x or h is rounded once a step and then lies in pairs as it is, zeros at its end.
//
// Used where the processor has the instruction and there are rows enough to keep it busy; anything
// else is computed in float.
#pragma once
#include "forward.h"
#include "small.h"

namespace gatewise::GATEWISE_ISA {

#if defined(GATEWISE_PAIRS)
using Pair = int32_t;
inline constexpr i64 PAIR_LANES = LANES<float>;

struct PairStretch {
  Lines<const Pair> rows;
  const Pair* panel;
  i64 length;  // pairs
};

GATEWISE_INLINE void store_pairs(Pair* to, FloatV even, FloatV odd) {
  const IntV pairs = short_bits(even) | (short_bits(odd) << 16);
  __builtin_memcpy(to, &pairs, sizeof pairs);
}

// n numbers as pairs; fills whole vectors of pairs, with zeros behind the last number.
inline constexpr i64 pairs_of(i64 n) { return ceil_div(n, 2); }
inline constexpr i64 room_of(i64 n) { return round_up(pairs_of(n), PAIR_LANES); }
GATEWISE_INLINE void shorten(const float* from, i64 n, Pair* to) {
  constexpr int L = LANES<float>;
  for (i64 k = 0; k < n; k += 2 * L) {
    const int first = int(smaller(L, n - k)), second = int(larger(0, smaller(L, n - k - L)));
    const FloatV a = load(from + k, first), b = load(from + smaller(k + L, n), second);
    store_pairs(
        to + k / 2,
        __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
  }
}

// pack_gates of pack.h, two lines to one.
inline void pack_gate_pairs(const float* weight, i64 K, const Units<float>& u, Pair* panels,
                            i64 j) {
  constexpr int L = LANES<float>;
  Pair* panel = panels + j * pairs_of(K) * u.W;
  for (int q = 0; q < u.groups; q++)
    for (int gate = 0; gate < u.G; gate++) {
      const int n = u.lanes(j, q);
      const float* rows = weight + (gate * u.H + j * u.U + i64(q) * L) * K;
      Pair* column = panel + (q * u.G + gate) * L;
      for (i64 k = 0; k < K; k += L) {
        const int kn = int(smaller(L, K - k));
        FloatV block[L];
        for (int r = 0; r < L; r++) block[r] = r < n ? load(rows + r * K + k, kn) : FloatV{};
        transpose<float>(block);
        for (int r = 0; r < kn; r += 2)
          store_pairs(column + (k + r) / 2 * u.W, block[r], block[r + 1]);
      }
    }
}

template <int rows, int vectors>
__attribute__((noinline)) void tile_of_pairs(int stretches, const PairStretch* stretch,
                                             Lines<float> out) {
  constexpr int L = LANES<float>;
  FloatV acc[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) acc[r][v] = FloatV{};
  for (int s = 0; s < stretches; s++) {
    const Pair* a[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) a[r] = stretch[s].rows[r];
    const Pair* b = stretch[s].panel;
    for (i64 k = 0; k < stretch[s].length; k++, b += vectors * L) {
      IntV w[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) __builtin_memcpy(&w[v], b + v * L, sizeof w[v]);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++) {
        const IntV x = set1(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = dot(x, w[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store(out[r] + v * L, acc[r][v]);
}

// A panel of gates has three vectors or four (see Units).
template <int vectors>
inline constexpr void (*PAIR_TILES[MR])(int, const PairStretch*, Lines<float>) = {
    tile_of_pairs<1, vectors>, tile_of_pairs<2, vectors>, tile_of_pairs<3, vectors>,
    tile_of_pairs<4, vectors>, tile_of_pairs<5, vectors>, tile_of_pairs<6, vectors>};

template <int stretches>
void product_of_pairs(i64 rows, int vectors, const PairStretch (&given)[stretches],
                      Lines<float> out) {
  PairStretch stretch[stretches];
  for (int s = 0; s < stretches; s++) stretch[s] = given[s];
  i64 first = 0;
  for (i64 left = ceil_div(rows, MR); left > 0; left--) {
    const i64 count = ceil_div(rows - first, left);
    (vectors == 3 ? PAIR_TILES<3> : PAIR_TILES<4>)[count - 1](stretches, stretch, out.from(first));
    for (int s = 0; s < stretches; s++) stretch[s].rows = stretch[s].rows.from(count);
    first += count;
  }
}

// Every worker has rows of its own, so the workers meet once, behind packing.
struct ReducedForward : Forward<float> {
  Units<float> out;  // the projection's output as units with one gate
  Pair *Wx, *Wh, *Wr;
  Pair *x, *h, *hidden;  // (B, ...) of the step

  ReducedForward(const ForwardCall<float>& call_, int d, Team team_, Carver& carver)
      : Forward<float>(call_, d, team_, carver, INT64_MAX), out(call_.dims.P, 1) {
    Wx = carver.take<Pair>(u.K * pairs_of(dims.I));
    Wh = carver.take<Pair>(u.K * pairs_of(dims.P));
    Wr = dir.w.W_hr ? carver.take<Pair>(out.K * pairs_of(dims.H)) : nullptr;
    x = carver.take<Pair>(dims.B * room_of(dims.I));
    h = carver.take<Pair>(dims.B * room_of(dims.P));
    hidden = dir.w.W_hr ? carver.take<Pair>(dims.B * room_of(dims.H)) : nullptr;
  }

  void run() const {
    Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) {
      pack_gate_pairs(dir.w.W_ih, dims.I, u, Wx, j);
      pack_gate_pairs(dir.w.W_hh, dims.P, u, Wh, j);
      pack_bias(dir.w.b_ih, dir.w.b_hh, u, ws.bias, j);
    }
    mine = team.of(Wr ? out.J : 0);
    for (i64 j = mine.begin; j < mine.end; j++) pack_gate_pairs(dir.w.W_hr, dims.H, out, Wr, j);
    if (team.id == 0)
      for (i64 k = 0; k < larger(dims.P, dims.H); k++) ws.zeros[k] = 0;
    start();
    team.meet();
    for (i64 s = 0; s < dims.T; s++) {
      const i64 t = time(s), rows = own.among(seq.active(t));
      for (i64 k = 0; k < rows; k++) shorten_inputs(t, own[k]);
      for (i64 k = 0; k < rows; k += ROW_BLOCK) rows_of(t, k, smaller(ROW_BLOCK, rows - k));
      for (i64 k = 0; Wr && k < rows; k += ROW_BLOCK) project(t, k, smaller(ROW_BLOCK, rows - k));
      finish(t, rows);
    }
    settle();
  }

  void shorten_inputs(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    const float* before = b < seq.active(back) ? dir.y.at(seq, back, b)
                          : dir.h0             ? dir.h0 + b * dims.P
                                               : ws.zeros;
    shorten(call.x.at(seq, t, b), dims.I, x + b * room_of(dims.I));
    shorten(before, dims.P, h + b * room_of(dims.P));
  }

  // My rows k .. k+rows-1 of the step, in pairs.
  Lines<const Pair> pairs(const Pair* of, i64 n, i64 k) const {
    return {of + own[k] * room_of(n), own.step * room_of(n)};
  }

  void rows_of(i64 t, i64 k, i64 rows) const {
    alignas(64) float z[ROW_BLOCK * NV * LANES<float>];
    const i64 b = own[k];
    const Lines<float> sums{z, u.W};
    for (i64 j = 0; j < u.J; j++) {
      const i64 unit = j * u.U, I = pairs_of(dims.I), P = pairs_of(dims.P);
      prefetch_rows(t, b, rows, j);
      product_of_pairs<2>(
          rows, u.vectors,
          {{pairs(x, dims.I, k), Wx + j * I * u.W, I}, {pairs(h, dims.P, k), Wh + j * P * u.W, P}},
          sums);
      cell.forward(u, {rows, j, sums, ws.bias + j * u.W, dir.w.peep, cell_rows(b).right(unit),
                       hidden_rows(t, b).right(unit), tape_rows(t, b).right(unit), past});
    }
  }

  void project(i64 t, i64 k, i64 rows) const {
    alignas(64) float block[ROW_BLOCK * NV * LANES<float>];
    for (i64 r = 0; r < rows; r++) {
      const i64 b = own[k + r];
      shorten(ws.hidden + b * dims.H, dims.H, hidden + b * room_of(dims.H));
    }
    for (i64 j = 0; j < out.J; j++) {
      const i64 H = pairs_of(dims.H), first = j * out.U;
      product_of_pairs<1>(rows, out.vectors, {{pairs(hidden, dims.H, k), Wr + j * H * out.W, H}},
                          {block, out.W});
      for (i64 r = 0; r < rows; r++)
        copy(block + r * out.W, dir.y.at(seq, t, own[k + r]) + first,
             smaller(out.U, dims.P - first));
    }
  }
};

inline constexpr i64 REDUCED_ROWS = 4;  // fewer wait for the panels, however narrow these are

inline bool is_reduced(const ForwardCall<float>& call) {
  return call.reduced && call.dims.B >= REDUCED_ROWS && !is_small(call);
}
inline i64 reduced_forward_bytes(const ForwardCall<float>& call) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++) ReducedForward(call, int(d), Team{0, 1, nullptr}, carver);
  return carver.used;
}
inline void reduced_forward(ForwardCall<float>& call, int id, int count) {
  side_by_side(call.dims.D, {id, count, call.barrier}, call.barrier + 1, [&](i64 d, Team team) {
    team.count = int(smaller(team.count, call.dims.B / 2));  // at least two rows each: see Split
    if (team.id >= team.count) return;
    Carver carver{call.workspace};
    for (int before = 0; before < d; before++) ReducedForward(call, before, team, carver);
    ReducedForward(call, int(d), team, carver).run();
  });
}
#else
inline constexpr bool is_reduced(const ForwardCall<float>&) { return false; }
inline i64 reduced_forward_bytes(const ForwardCall<float>&) { return 0; }
inline void reduced_forward(ForwardCall<float>&, int, int) {}
#endif

template <class T>
i64 forward_bytes_of_either(const ForwardCall<T>& call, int threads) {
  if constexpr (sizeof(T) == 4)
    if (is_reduced(call)) return reduced_forward_bytes(call);
  return forward_bytes_of_any(call, threads);
}

template <class T>
void forward_of_either(ForwardCall<T>& call, int id, int count) {
  if constexpr (sizeof(T) == 4)
    if (is_reduced(call)) return reduced_forward(call, id, count);
  forward_of_any(call, id, count);
}

}  // namespace gatewise::GATEWISE_ISA
