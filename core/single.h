// A single step, where handling the weights costs more than the products.
//
// Forward of few rows, the weights are read as they lie: see dots.h. Backward too. There all
// products are sums of rows of a matrix, R = G*H:
//
//   d_h (B, P) = d_z (B, R) W_hh (R, P)        d_W_hh (R, P) = d_z^T (R, B) h (B, P)
//   d_x (B, I) = d_z (B, R) W_ih (R, I)        d_W_ih (R, I) = d_z^T (R, B) x (B, I)
//
// so the tile is that of tile.h but for its panel, whose lines are the rows of the matrix.
//
// Workers take panels of units; backward, they meet once, and then take parts of the results.
#pragma once
#include "backward.h"
#include "dots.h"
#include "forward.h"

namespace gatewise::GATEWISE_ISA {

template <class T>
bool is_single(const ForwardCall<T>& call) {
  return is_single(call.dims) && !call.direction[0].w.W_hr && !call.in_parts;
}
template <class T>
bool is_single(const BackwardCall<T>& call) {
  return is_single(call.dims) && !call.direction[0].w.W_hr;
}

// Lines of a panel that are packed at once: they, and the weights they come from, stay in the
// first-level cache together.
inline constexpr i64 SINGLE_LINES = 64;

template <class T>
struct SingleForward {
  const ForwardCall<T>& call;
  const typename ForwardCall<T>::Direction& dir;
  const Pointwise<T> cell;
  const Units<T> u;
  const i64 B, H;
  T* zeros;  // a state that is not given; of this worker

  SingleForward(const ForwardCall<T>& call_, int id, int count, Carver& carver)
      : call(call_),
        dir(call_.direction[0]),
        cell(pointwise_of<T>(call_.cell)),
        u(call_.dims.H, cell.cell.gates()),
        B(call_.dims.B),
        H(call_.dims.H),
        zeros(dir.h0 ? nullptr : carver.take<T>(count * H) + id * H) {}

  void run(Share panels) const {
    for (i64 n = 0; !dir.h0 && n < H; n++) zeros[n] = T(0);
    for (i64 j = panels.begin; j < panels.end; j++) panel(j);
  }

  void panel(i64 j) const {
    alignas(64) T z[SINGLE_ROWS * NV * LANES<T>], bias[NV * LANES<T>];
    const i64 unit = j * u.U, units = smaller(u.U, H - unit), I = call.dims.I;
    const Lines<const T> x{call.x.at(call.sequence, 0, 0), call.x.row},
        h = dir.h0 ? Lines<const T>{dir.h0, H} : Lines<const T>{zeros, 0};
    if (rows_are_few())
      dots<T>(u, j, B, {{x, {dir.w.W_ih, I}, I}, {h, {dir.w.W_hh, H}, H}}, {}, {z, u.W});
    else
      by_panels(j, x, h, {z, u.W});
    pack_bias(dir.w.b_ih, dir.w.b_hh, u, bias - j * u.W, j);
    ForwardRows<T> p{};
    p.rows = B;
    p.j = j;
    p.z = {z, u.W};
    p.bias = bias;
    p.peep = dir.w.peep;
    if (dir.c_n) p.c = {dir.c_n + unit, H};
    p.h = Lines<T>{dir.y.at(call.sequence, 0, 0), dir.y.row}.right(unit);
    if (dir.tape) p.tape = {dir.tape + unit, cell.cell.slots() * H};
    for (i64 b = 0; dir.c_n && b < B; b++)
      for (i64 n = 0; n < units; n++) p.c[b][n] = dir.c0 ? dir.c0[b * H + unit + n] : T(0);
    cell.forward(u, p);
    for (i64 b = 0; b < B; b++)
      __builtin_memcpy(dir.h_n + b * H + unit, p.h[b], size_t(units) * sizeof(T));
  }

  // Adding up the lanes of a dot product costs as much as packing four numbers of each weight row;
  // and each further tile of rows reads the weights again, from wherever in a cache line they
  // begin.
  bool rows_are_few() const { return 4 * B <= call.dims.I + H && B <= 2 * MR; }

  // z of panel j in the order of forward.h: a part of the panel is packed, used while it is in the
  // first-level cache, and given up for the next.
  void by_panels(i64 j, Lines<const T> x, Lines<const T> h, Lines<T> z) const {
    alignas(64) T lines[SINGLE_LINES * NV * LANES<T>];
    Lines<const T> so_far{};
    const auto add = [&](Lines<const T> rows, const T* weight, i64 K) {
      for (i64 first = 0; first < K; first += SINGLE_LINES) {
        const i64 end = smaller(K, first + SINGLE_LINES);
        pack_gate_lines(weight, K, first, end, u, lines, j);
        product<T>(B, u.vectors, {{rows.right(first), lines, end - first}}, so_far, z);
        so_far = z;
      }
    };
    add(x, dir.w.W_ih, call.dims.I);
    add(h, dir.w.W_hh, H);
  }
};

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

// out (rows, width) = a (rows, length) b (length, width), or more by that. The results are written
// row by row, as they lie.
template <class T>
void lines_product(i64 rows, i64 width, Matrix<T> a, i64 length, Lines<const T> b, Lines<T> out,
                   bool add) {
  constexpr int L = LANES<T>;
  i64 first = 0;
  for (i64 left = ceil_div(rows, MR); left > 0; left--) {  // balanced, as in tile.h
    const i64 count = ceil_div(rows - first, left);
    const Matrix<T> these{a.at(first, 0), a.row, a.column};
    for (i64 n = 0, end; n < width; n = end) {
      // One row: twice the chains in flight.
      const int most = count == 1 && width - n > (2 * NV - 1) * L ? 2 * NV : NV;
      const int vectors = int(smaller(most, ceil_div(width - n, L)));
      end = smaller(width, n + vectors * L);
      const auto tile =
          vectors == 2 * NV ? lines_tile<T, 1, 2 * NV> : LINES_TILES<T>[count - 1][vectors - 1];
      tile(these, length, b.right(n), int(end - n - (vectors - 1) * L), out.from(first).right(n),
           add);
    }
    first += count;
  }
}

// The same where b is large: some of its lines at a time, which all rows use while these are in the
// first-level cache; few enough that they are, however far apart they lie.
inline constexpr i64 FEW_LINES = 8, LINES_BYTES = i64(1) << 14;
template <class T>
void long_product(i64 rows, i64 width, Matrix<T> a, i64 length, Lines<const T> b, Lines<T> out) {
  const i64 most = larger(FEW_LINES, LINES_BYTES / (width * i64(sizeof(T))));
  for (i64 k = 0; k < length; k += most)
    lines_product<T>(rows, width, {a.at(0, k), a.row, a.column}, smaller(most, length - k),
                     b.from(k), out, k > 0);
}

template <class T>
struct SingleSpace {
  Units<T> u;
  i64 R, padded;  // G*H; H in whole vectors
  T *d_h, *d_c;   // (B, padded), (B, H)
  T* panels;      // [J][B][W]: d_z as the cell writes it
  T* d_z;         // (B, R)
  T* zeros;

  SingleSpace(const BackwardCall<T>& call, Carver& carver)
      : u(call.dims.H, CELLS[call.cell].cell.gates()), R(u.G * u.H), padded(round_up(u.H, u.U)) {
    const i64 B = call.dims.B;
    d_h = carver.take<T>(B * padded);
    d_c = carver.take<T>(B * u.H);
    panels = carver.take<T>(u.K * B);
    d_z = carver.take<T>(B * R);
    zeros = carver.take<T>(u.H);
  }
};

template <class T>
struct SingleBackward {
  static constexpr int L = LANES<T>;
  static constexpr T one = T(1);
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Pointwise<T> cell;
  const Team team;
  const SingleSpace<T> ws;
  const Units<T>& u;
  const i64 B, I, H, S;

  SingleBackward(const BackwardCall<T>& call_, Team team_, Carver& carver)
      : call(call_),
        dir(call_.direction[0]),
        cell(pointwise_of<T>(call_.cell)),
        team(team_),
        ws(call_, carver),
        u(ws.u),
        B(call_.dims.B),
        I(call_.dims.I),
        H(call_.dims.H),
        S(cell.cell.slots()) {}

  void run() const {
    const Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) panel(j);
    for (i64 n = 0; team.id == 0 && n < H; n++) ws.zeros[n] = T(0);
    team.meet();
    states();
    weights();
  }

  // d_x and d_h0, a part of their columns; d_c0.
  void states() const {
    const auto columns = [&](i64 width, const T* weight, Lines<T> out) {
      const Share mine = team.of(ceil_div(width, L));
      const i64 begin = mine.begin * L, end = smaller(width, mine.end * L);
      if (begin < end)
        long_product<T>(B, end - begin, {ws.d_z, ws.R, 1}, ws.R, {weight + begin, width},
                        out.right(begin));
    };
    if (call.d_x.data) columns(I, dir.w.W_ih, {call.d_x.at(call.sequence, 0, 0), call.d_x.row});
    if (dir.d_h0) columns(H, dir.w.W_hh, {dir.d_h0, H});
    if (dir.d_c0 && team.id == 0) __builtin_memcpy(dir.d_c0, ws.d_c, size_t(B * H) * sizeof(T));
  }

  // d_W_ih, d_W_hh and d_b, a part of their rows.
  void weights() const {
    const Share mine = team.of(ceil_div(ws.R, MR));
    const i64 begin = mine.begin * MR, rows = smaller(ws.R, mine.end * MR) - begin;
    const Matrix<T> turned{ws.d_z + begin, 1, ws.R};
    const auto of = [&](i64 width, Lines<const T> lines, T* d_W) {
      lines_product<T>(rows, width, turned, B, lines, {d_W + begin * width, width}, call.add);
    };
    if (dir.d_W_ih) of(I, lines(call.x), dir.d_W_ih);
    if (dir.d_W_hh)
      of(H, dir.h0 ? Lines<const T>{dir.h0, H} : Lines<const T>{ws.zeros, 0}, dir.d_W_hh);
    if (dir.d_b)
      lines_product<T>(1, rows, {&one, 0, 0}, B, {ws.d_z + begin, ws.R}, {dir.d_b + begin, 0},
                       call.add);
  }

  Lines<const T> lines(const View<const T>& v) const { return {v.at(call.sequence, 0, 0), v.row}; }

  // The cell, backwards, for the units of a panel; then their d_z as a matrix.
  void panel(i64 j) const {
    const i64 unit = j * u.U;
    for (i64 b = 0; b < B; b++)
      for (i64 n = unit; n < unit + u.U; n++) {
        T* d_h = ws.d_h + b * ws.padded + n;
        *d_h = dir.d_h_n && n < H ? dir.d_h_n[b * H + n] : T(0);
        if (n >= H) continue;
        ws.d_c[b * H + n] = dir.d_c_n ? dir.d_c_n[b * H + n] : T(0);
        if (dir.g_h) dir.g_h[b * H + n] = *d_h + (dir.d_y.data ? lines(dir.d_y)[b][n] : T(0));
      }
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
    (dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward)(u, p);
    for (i64 b = 0; b < B; b++)
      for (int q = 0; q < u.groups; q++)
        for (int gate = 0; gate < u.G; gate++) {
          const Vec<T> d = load(p.d_z[b] + (q * u.G + gate) * L);
          T* to = ws.d_z + b * ws.R + gate * H + unit + q * L;
          const int n = u.lanes(j, q);
          n == L ? store(to, d) : store(to, d, n);
        }
    if (dir.d_peep) peepholes(unit, smaller(H, unit + u.U));
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peepholes(i64 begin, i64 end) const {
    const int slot[3] = {cell.cell.slot_i(), cell.cell.slot_f(), cell.cell.slot_o()};
    for (int k = 0; k < 3; k++)
      for (i64 n = begin; n < end; n++) {
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
