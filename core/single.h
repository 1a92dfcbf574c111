// A single step, where handling the weights costs more than the products.
//
// Forward of few rows, the weights are read as they lie: see dots.h. Backward too. There all
// products are sums of the lines of a matrix (lines.h), R = G*H; those of the weights are in
// weight_sums.h:
//
//   d_h (B, P) = d_z (B, R) W_hh (R, P)        d_x (B, I) = d_z (B, R) W_ih (R, I)
//
// Workers take panels of units; backward, they meet once, and then take parts of the results.
#pragma once
#include "backward.h"
#include "dots.h"
#include "forward.h"
#include "weight_sums.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 SINGLE_ROWS = 64;  // for more, forward packs the weights as ever
// Two of the large tiles, six of the small ones: where vectors are short, packing is dearer.
inline constexpr i64 DOT_ROWS = VECTOR_REGISTERS >= 32 ? 2 * MR : 6 * MR;

template <class Call>
bool is_one_step(const Call& call) {
  return call.dims.T == 1 && call.dims.D == 1 && !call.direction[0].w.W_hr;
}
template <class T>
bool is_single(const ForwardCall<T>& call) {
  return is_one_step(call) && call.dims.B <= SINGLE_ROWS && !call.in_parts;
}
template <class T>
bool is_single(const BackwardCall<T>& call) {
  return is_one_step(call);
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
  bool rows_are_few() const { return 4 * B <= call.dims.I + H && B <= DOT_ROWS; }

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

template <class T>
struct SingleSpace {
  Units<T> u;
  i64 R, padded;  // G*H; H in whole vectors
  T *d_h, *d_c;   // (B, padded), (B, H)
  T* panels;      // [J][B][W]: d_z as the cell writes it
  T* d_z;         // (B, R), the caller's if it wants them
  T* zeros;
  WeightSums<T> weights;

  SingleSpace(const BackwardCall<T>& call, Carver& carver)
      : SingleSpace(call, call.direction[0], call.dims, carver) {}

 private:
  SingleSpace(const BackwardCall<T>& call, const typename BackwardCall<T>::Direction& dir,
              const Dims& d, Carver& carver)
      : u(d.H, CELLS[call.cell].cell.gates()),
        R(u.G * d.H),
        padded(round_up(d.H, u.U)),
        d_h(carver.take<T>(d.B * padded)),
        d_c(carver.take<T>(d.B * d.H)),
        panels(carver.take<T>(u.K * d.B)),
        d_z(dir.d_z ? dir.d_z : carver.take<T>(d.B * R)),
        zeros(carver.take<T>(d.H)),
        weights({d.B,
                 R,
                 d.I,
                 d.H,
                 false,
                 {d_z, R},
                 {call.x.data, call.x.row},
                 dir.h0 ? Lines<const T>{dir.h0, d.H} : Lines<const T>{zeros, 0},
                 dir.d_W_ih,
                 dir.d_W_hh,
                 dir.d_b},
                carver) {}
};

template <class T>
struct SingleBackward {
  static constexpr int L = LANES<T>;
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
    ws.weights.run(team);
  }

  // d_x and d_h0, a part of their columns; d_c0.
  void states() const {
    const auto columns = [&](i64 width, const T* weight, Lines<T> out) {
      const Share mine = team.of(ceil_div(width, L));
      const i64 begin = mine.begin * L, end = smaller(width, mine.end * L);
      if (begin >= end) return;
      const Lines<const T> part{weight + begin, width};
      if (rows_are_few(B))
        long_product<T>(B, end - begin, {ws.d_z, ws.R, 1}, ws.R, part, out.right(begin));
      else
        block_product<T>(B, end - begin, {ws.d_z, ws.R}, ws.R, part, out.right(begin), false);
    };
    if (call.d_x.data) columns(I, dir.w.W_ih, {call.d_x.at(call.sequence, 0, 0), call.d_x.row});
    if (dir.d_h0) columns(H, dir.w.W_hh, {dir.d_h0, H});
    if (dir.d_c0 && team.id == 0) __builtin_memcpy(dir.d_c0, ws.d_c, size_t(B * H) * sizeof(T));
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
