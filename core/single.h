// A single step forward, where handling the weights costs more than the products: of few rows they
// are read as they lie (dots.h), of more they are packed in parts. Workers take panels of units.
#pragma once
#include "dots.h"
#include "forward.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 SINGLE_ROWS = 64;  // for more, forward packs the weights as ever
// Two of the large tiles, six of the small ones: where vectors are short, packing is dearer.
inline constexpr i64 DOT_ROWS = VECTOR_REGISTERS >= 32 ? 2 * MR : 6 * MR;

template <class T>
bool is_single(const ForwardCall<T>& call) {
  return call.dims.T == 1 && call.dims.D == 1 && !call.direction[0].w.W_hr &&
         call.dims.B <= SINGLE_ROWS && !call.in_parts;
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
    const Lines<const T> x{dir.x.at(call.sequence, 0, 0), dir.x.row},
        h = dir.h0 ? Lines<const T>{dir.h0, H} : Lines<const T>{zeros, 0};
    if (dir.brief_W_ih)
      brief(j, x, h, {z, u.W});
    else if (rows_are_few())
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
    for (i64 b = 0; b < B; b++) copy(p.h[b], dir.h_n + b * H + unit, units);
  }

  // Adding up the lanes of a dot product costs as much as packing four numbers of each weight row;
  // and each further tile of rows reads the weights again, from wherever in a cache line they
  // begin.
  bool rows_are_few() const { return 4 * B <= call.dims.I + H && B <= DOT_ROWS; }

  void brief(i64 j, Lines<const T> x, Lines<const T> h, Lines<T> z) const {
    const i64 I = call.dims.I;
    if constexpr (sizeof(T) == 4)
      dots<T, Bf16>(u, j, B, {{x, {dir.brief_W_ih, I}, I}, {h, {dir.brief_W_hh, H}, H}}, {}, z);
  }

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

}  // namespace gatewise::GATEWISE_ISA
