// A single step of a small layer, where handling the weights costs more than the products.
//
// Forward, a panel of the weights is packed, used while it is in the first-level cache, and given
// up for the next: the arithmetic is that of forward.h, to the bit.
//
// Backward, nothing is packed. All products are sums of rows that lie in memory as they are, R =
// G*H:
//
//   d_h (B, P) = d_z (B, R) W_hh (R, P)        d_W_hh (R, P) = d_z^T (R, B) h (B, P)
//   d_x (B, I) = d_z (B, R) W_ih (R, I)        d_W_ih (R, I) = d_z^T (R, B) x (B, I)
//
// so the tile is that of tile.h but for its panel, whose lines are the rows of the matrix.
#pragma once
#include "backward.h"
#include "forward.h"

namespace gatewise::GATEWISE_ISA {

template <class Call>
bool is_small(const Call& call) {
  return is_small(call.dims, CELLS[call.cell].cell.gates()) && !call.direction[0].w.W_hr;
}

// Lines of a panel that are packed at once: they, and the weights they come from, stay in the
// first-level cache together.
inline constexpr i64 SMALL_LINES = 64;

template <class T>
struct SmallForwardSpace {
  Units<T> u;
  T *W, *bias;  // of one panel: lines [SMALL_LINES][W], [W]
  T* zeros;     // a state that is not given

  SmallForwardSpace(const ForwardCall<T>& call, Carver& carver)
      : u(call.dims.H, CELLS[call.cell].cell.gates()) {
    W = carver.take<T>(SMALL_LINES * u.W);
    bias = carver.take<T>(u.W);
    zeros = carver.take<T>(u.H);
  }
};

template <class T>
void small_forward(const ForwardCall<T>& call, Carver& carver) {
  const SmallForwardSpace<T> ws(call, carver);
  const Units<T>& u = ws.u;
  const auto& dir = call.direction[0];
  const Pointwise<T> cell = pointwise_of<T>(call.cell);
  const i64 B = call.dims.B, I = call.dims.I, H = u.H, slots = cell.cell.slots() * H;
  for (i64 n = 0; n < H; n++) ws.zeros[n] = T(0);
  for (i64 n = 0; dir.c_n && n < B * H; n++) dir.c_n[n] = dir.c0 ? dir.c0[n] : T(0);
  const Lines<const T> x{call.x.at(call.sequence, 0, 0), call.x.row};
  const Lines<const T> h = dir.h0 ? Lines<const T>{dir.h0, H} : Lines<const T>{ws.zeros, 0};
  const Lines<T> y{dir.y.at(call.sequence, 0, 0), dir.y.row};
  alignas(64) T z[SMALL_ROWS * NV * LANES<T>];
  for (i64 j = 0; j < u.J; j++) {
    const i64 unit = j * u.U;
    Lines<const T> so_far{};
    const auto add = [&](Lines<const T> rows, const T* weight, i64 K) {
      for (i64 first = 0; first < K; first += SMALL_LINES) {
        const i64 end = smaller(K, first + SMALL_LINES);
        pack_gate_lines(weight, K, first, end, u, ws.W, j);
        product<T>(B, u.vectors, {{rows.right(first), ws.W, end - first}}, so_far, {z, u.W});
        so_far = {z, u.W};
      }
    };
    add(x, dir.w.W_ih, I);
    add(h, dir.w.W_hh, H);
    pack_bias(dir.w.b_ih, dir.w.b_hh, u, ws.bias - j * u.W, j);
    ForwardRows<T> p{};
    p.rows = B;
    p.j = j;
    p.z = {z, u.W};
    p.bias = ws.bias;
    p.peep = dir.w.peep;
    if (dir.c_n) p.c = {dir.c_n + unit, H};
    p.h = y.right(unit);
    if (dir.tape) p.tape = {dir.tape + unit, slots};
    cell.forward(u, p);
  }
  for (i64 b = 0; b < B; b++) __builtin_memcpy(dir.h_n + b * H, y[b], size_t(H) * sizeof(T));
}

// A matrix as it lies, or turned: number (r, k) stands at data + r * row + k * column.
template <class T>
struct Matrix {
  const T* data;
  i64 row, column;
  const T* at(i64 r, i64 k) const { return data + r * row + k * column; }
};

// out[r][n] = sum over k of a(r, k) * b[k][n], for n in `last` lanes of the last of the vectors; or
// that much more (`add`).
template <class T, int rows, int vectors, bool whole>
GATEWISE_INLINE void sum_of_lines(Matrix<T> a, i64 length, Lines<const T> b, int last, Lines<T> out,
                                  bool add) {
  constexpr int L = LANES<T>;
  Vec<T> acc[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const T* from = out[r] + v * L;
      acc[r][v] = !add ? set1(T(0)) : whole || v + 1 < vectors ? load(from) : load(from, last);
    }
  for (i64 k = 0; k < length; k++) {
    const T* line = b[k];
    Vec<T> x[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) x[r] = set1(*a.at(r, k));
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const Vec<T> w = whole || v + 1 < vectors ? load(line + v * L) : load(line + v * L, last);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++) acc[r][v] = fma(x[r], w, acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++)
      whole || v + 1 < vectors ? store(out[r] + v * L, acc[r][v])
                               : store(out[r] + v * L, acc[r][v], last);
}

template <class T, int rows, int vectors>
__attribute__((noinline)) void lines_tile(Matrix<T> a, i64 length, Lines<const T> b, int last,
                                          Lines<T> out, bool add) {
  last == LANES<T> ? sum_of_lines<T, rows, vectors, true>(a, length, b, last, out, add)
                   : sum_of_lines<T, rows, vectors, false>(a, length, b, last, out, add);
}

template <class T>
using LinesTile = void (*)(Matrix<T>, i64, Lines<const T>, int, Lines<T>, bool);

template <class T, int rows>
inline constexpr LinesTile<T> LINES_OF[NV] = {lines_tile<T, rows, 1>, lines_tile<T, rows, 2>,
                                              lines_tile<T, rows, 3>, lines_tile<T, rows, 4>};

// [rows - 1][vectors - 1]
template <class T>
inline constexpr const LinesTile<T>* LINES_TILES[6] = {LINES_OF<T, 1>,
                                                       LINES_OF<T, 2>,
                                                       LINES_OF<T, 3>,
                                                       LINES_OF<T, smaller(4, MR)>,
                                                       LINES_OF<T, smaller(5, MR)>,
                                                       LINES_OF<T, MR>};

// out (rows, width) = a (rows, length) b (length, width), or more by that.
template <class T>
void lines_product(i64 rows, i64 width, Matrix<T> a, i64 length, Lines<const T> b, Lines<T> out,
                   bool add = false) {
  constexpr int L = LANES<T>;
  for (i64 n = 0; n < width;) {
    const i64 left = ceil_div(width - n, L);
    if (rows == 1 && left >= 8) {  // one row: twice the chains in flight
      const i64 end = smaller(width, n + 8 * L);
      lines_tile<T, 1, 8>(a, length, b.right(n), int(end - n - 7 * L), out.right(n), add);
      n = end;
      continue;
    }
    const int vectors = int(smaller(NV, left));
    const i64 end = smaller(width, n + vectors * L);
    const int last = int(end - n - (vectors - 1) * L);
    i64 first = 0;
    for (i64 left = ceil_div(rows, MR); left > 0; left--) {  // balanced, as in tile.h
      const i64 count = ceil_div(rows - first, left);
      const Matrix<T> these{a.at(first, 0), a.row, a.column};
      LINES_TILES<T>[count - 1][vectors - 1](these, length, b.right(n), last,
                                             out.from(first).right(n), add);
      first += count;
    }
    n = end;
  }
}

template <class T>
struct SmallSpace {
  Units<T> u;
  i64 R, padded;  // G*H; H in whole vectors
  T *d_h, *d_c;   // (B, padded), (B, H)
  T* panels;      // [J][B][W]: d_z as the cell writes it
  T* d_z;         // (B, R)
  T* zeros;

  SmallSpace(const BackwardCall<T>& call, Carver& carver)
      : u(call.dims.H, CELLS[call.cell].cell.gates()),
        R(u.G * u.H),
        padded(round_up(u.H, LANES<T>)) {
    const i64 B = call.dims.B;
    d_h = carver.take<T>(B * padded);
    d_c = carver.take<T>(B * u.H);
    panels = carver.take<T>(u.K * B);
    d_z = carver.take<T>(B * R);
    zeros = carver.take<T>(larger(padded, u.H));
  }
};

template <class T>
struct SmallBackward {
  static constexpr int L = LANES<T>;
  static constexpr T one = T(1);
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Pointwise<T> cell;
  const SmallSpace<T> ws;
  const Units<T>& u;
  const i64 B, I, H, S;

  SmallBackward(const BackwardCall<T>& call_, Carver& carver)
      : call(call_),
        dir(call_.direction[0]),
        cell(pointwise_of<T>(call_.cell)),
        ws(call_, carver),
        u(ws.u),
        B(call_.dims.B),
        I(call_.dims.I),
        H(call_.dims.H),
        S(cell.cell.slots()) {}

  void run() const {
    start();
    gates();
    const Matrix<T> d_z{ws.d_z, ws.R, 1}, turned{ws.d_z, 1, ws.R};
    const Lines<const T> x = lines(call.x);
    const Lines<const T> h = dir.h0 ? Lines<const T>{dir.h0, H} : Lines<const T>{ws.zeros, 0};
    const bool add = call.add;
    if (call.d_x.data)
      lines_product<T>(B, I, d_z, ws.R, {dir.w.W_ih, I},
                       {call.d_x.at(call.sequence, 0, 0), call.d_x.row});
    if (dir.d_h0) lines_product<T>(B, H, d_z, ws.R, {dir.w.W_hh, H}, {dir.d_h0, H});
    if (dir.d_W_ih) lines_product<T>(ws.R, I, turned, B, x, {dir.d_W_ih, I}, add);
    if (dir.d_W_hh) lines_product<T>(ws.R, H, turned, B, h, {dir.d_W_hh, H}, add);
    if (dir.d_b) lines_product<T>(1, ws.R, {&one, 0, 0}, B, {ws.d_z, ws.R}, {dir.d_b, 0}, add);
    if (dir.d_peep) peepholes();
    if (dir.d_c0) __builtin_memcpy(dir.d_c0, ws.d_c, size_t(B * H) * sizeof(T));
  }

  Lines<const T> lines(const View<const T>& v) const { return {v.at(call.sequence, 0, 0), v.row}; }

  void start() const {
    for (i64 b = 0; b < B; b++) {
      for (i64 n = 0; n < ws.padded; n++)
        ws.d_h[b * ws.padded + n] = dir.d_h_n && n < H ? dir.d_h_n[b * H + n] : T(0);
      for (i64 n = 0; n < H; n++) ws.d_c[b * H + n] = dir.d_c_n ? dir.d_c_n[b * H + n] : T(0);
    }
    for (i64 n = 0; n < ws.padded; n++) ws.zeros[n] = T(0);
    if (!dir.g_h) return;
    for (i64 b = 0; b < B; b++)
      for (i64 n = 0; n < H; n++)
        dir.g_h[b * H + n] =
            ws.d_h[b * ws.padded + n] + (dir.d_y.data ? lines(dir.d_y)[b][n] : T(0));
  }

  // The cell, backwards; then d_z as a matrix.
  void gates() const {
    const auto of_cell = dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward;
    for (i64 j = 0; j < u.J; j++) {
      const i64 unit = j * u.U;
      BackwardRows<T> p{};
      p.rows = B;
      p.j = j;
      p.peep = dir.w.peep;
      p.tape = {dir.tape + unit, S * H};
      if (dir.c0) p.c_before = {dir.c0 + unit, H};
      p.d_h = {ws.d_h + unit, ws.padded};
      if (dir.d_y.data) p.d_y = lines(dir.d_y).right(unit);
      if (dir.d_tape) p.d_tape = {dir.d_tape + unit, S * H};
      if (dir.g_tape) p.g_tape = {dir.g_tape + unit, S * H};
      p.d_c = {ws.d_c + unit, H};
      p.d_z = {ws.panels + j * B * u.W, u.W};
      of_cell(u, p);
      for (i64 b = 0; b < B; b++)
        for (int q = 0; q < u.groups; q++)
          for (int gate = 0; gate < u.G; gate++) {
            const Vec<T> d = load(p.d_z[b] + (q * u.G + gate) * L);
            T* to = ws.d_z + b * ws.R + gate * H + unit + q * L;
            const int n = u.lanes(j, q);
            n == L ? store(to, d) : store(to, d, n);
          }
    }
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peepholes() const {
    const int slot[3] = {cell.cell.slot_i(), cell.cell.slot_f(), cell.cell.slot_o()};
    for (int k = 0; k < 3; k++)
      for (i64 n = 0; n < H; n++) {
        T sum = T(0);
        for (i64 b = 0; b < B && slot[k] >= 0; b++) {
          const T seen = k == 2   ? dir.tape[(b * S + cell.cell.slot_c()) * H + n]
                         : dir.c0 ? dir.c0[b * H + n]
                                  : T(0);
          sum += ws.d_z[b * ws.R + slot[k] * H + n] * seen;
        }
        dir.d_peep[k * H + n] = sum;
      }
  }
};

}  // namespace gatewise::GATEWISE_ISA
