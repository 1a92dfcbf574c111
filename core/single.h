// A single step forward, where handling the weights costs more than the products: of few rows they
// are read as they lie (dots.h), of more a panel at a time is packed, used and given up. Workers
// take panels of units.
#pragma once
#include "dots.h"
#include "forward.h"

namespace gatewise::GATEWISE_ISA {

// For more, forward packs all weights as ever: of weights that stay in a cache, and of large ones.
inline constexpr i64 SINGLE_ROWS = 128, SINGLE_ROWS_OF_LARGE = 1024;
// Two of the large tiles, six of the small ones: where vectors are short, packing is dearer.
inline constexpr i64 DOT_ROWS = VECTOR_REGISTERS >= 32 ? 2 * MR : 6 * MR;
// Lines of a panel that are packed at once. The second-level cache holds them; and many are packed
// from long pieces of weight rows, which is how memory is read fastest.
inline constexpr i64 SINGLE_LINES = 1024;

template <class T>
bool is_single(const ForwardCall<T>& call) {
  const Dims& d = call.dims;
  const i64 weights = CELLS[call.cell].cell.gates() * d.H * (d.I + d.P) * i64(sizeof(T));
  return d.T == 1 && d.D == 1 && !call.direction[0].w.W_hr && !call.in_parts &&
         d.B <= (weights > LARGE_WEIGHTS ? SINGLE_ROWS_OF_LARGE : SINGLE_ROWS);
}

template <class T, class E = T, class K = Number<E>>
struct SingleForward {
  const ForwardCall<T>& call;
  const typename ForwardCall<T>::Direction& dir;
  const Team team;
  const Pointwise<T, E, K> cell;
  const Units<T> u;
  const i64 B, I, H;
  const Share panels;
  E *x, *h;  // (B, I) and (B, H), or (H) of zeros; rounded. Null where operands are numbers
  // Of this worker:
  T* zeros;      // h0 that is not given, where it is not rounded
  E* lines;      // of a panel
  T* z;          // (B, W), its sums
  E* h_rounded;  // a row that nobody reads: there is no next step

  SingleForward(const ForwardCall<T>& call_, const Team& team_, Carver& carver)
      : call(call_),
        dir(call_.direction[0]),
        team(team_),
        cell(pointwise_of<T, E, K>(call_.cell)),
        u(call_.dims.H, cell.cell.gates()),
        B(call_.dims.B),
        I(call_.dims.I),
        H(call_.dims.H),
        panels(team.of(u.J)),
        x(IS_PAIR<E> ? carver.take<E>(B * room<E>(I)) : nullptr),
        h(IS_PAIR<E> ? carver.take<E>(B * room<E>(H)) : nullptr),
        zeros(IS_PAIR<E> || dir.h0 ? nullptr : of_each<T>(carver, H)),
        lines(are_dots()
                  ? nullptr
                  : of_each<E>(carver, u.W * smaller(SINGLE_LINES, operands<E>(larger(I, H))))),
        z(of_each<T>(carver, B * u.W)),
        h_rounded(IS_PAIR<E> ? of_each<E>(carver, room<E>(H)) : nullptr) {}

  template <class X>
  X* of_each(Carver& carver, i64 n) const {
    const i64 apart = n + (team.count > 1 ? APART / i64(sizeof(X)) : 0);
    X* const all = carver.take<X>(team.count * apart);
    return all ? all + team.id * apart : nullptr;
  }

  // Adding up the lanes of a dot product costs as much as packing four numbers of each weight row;
  // and each further tile of rows reads the weights again, from wherever in a cache line they
  // begin.
  bool are_dots() const {
    return !IS_PAIR<E> && (dir.brief_W_ih || (4 * B <= I + H && B <= DOT_ROWS));
  }

  void run() const {
    if constexpr (IS_PAIR<E>) {
      round_rows();
      team.meet();
    } else {
      for (i64 n = 0; zeros && n < H; n++) zeros[n] = T(0);
    }
    for (i64 j = panels.begin; j < panels.end; j++) panel(j);
  }

  void round_rows() const {
    const Share mine = team.of(B);
    for (i64 b = mine.begin; b < mine.end; b++) {
      Bf16* const to = as_numbers(x + b * room<E>(I));
      if (dir.brief_x.data)
        round_row(dir.brief_x.at(call.sequence, 0, b), I, to);
      else
        round_row(dir.x.at(call.sequence, 0, b), I, to);
      if (dir.h0) round_row(dir.h0 + b * H, H, as_numbers(h + b * room<E>(H)));
    }
    for (i64 k = 0; !dir.h0 && team.id == 0 && k < room<E>(H); k++) h[k] = E{};
  }

  Lines<const E> x_rows() const {
    if constexpr (IS_PAIR<E>)
      return {x, room<E>(I)};
    else
      return {dir.x.at(call.sequence, 0, 0), dir.x.row};
  }
  Lines<const E> h_rows() const {
    if constexpr (IS_PAIR<E>)
      return {h, dir.h0 ? room<E>(H) : 0};
    else
      return dir.h0 ? Lines<const E>{dir.h0, H} : Lines<const E>{zeros, 0};
  }

  void panel(i64 j) const {
    alignas(64) T bias[NV * LANES<T>];
    const i64 unit = j * u.U, units = smaller(u.U, H - unit);
    products(j);
    pack_bias(dir.w.b_ih, dir.w.b_hh, u, bias - j * u.W, j);
    ForwardRows<T, E, K> p{};
    p.rows = B;
    p.j = j;
    p.z = {z, u.W};
    p.bias = bias;
    p.peep = dir.w.peep;
    if (dir.c_n) p.c = {dir.c_n + unit, H};
    if (dir.y.data) p.h = Lines<T>{dir.y.at(call.sequence, 0, 0), dir.y.row}.right(unit);
    if (tape_of<K>(dir)) p.tape = {tape_of<K>(dir) + unit, cell.cell.slots() * H};
    if constexpr (IS_PAIR<E>) {
      p.h_rounded = {as_numbers(h_rounded) + unit, 0};
      if (dir.brief_y.data)
        p.h_brief = Lines<Bf16>{dir.brief_y.at(call.sequence, 0, 0), dir.brief_y.row}.right(unit);
    }
    for (i64 b = 0; dir.c_n && b < B; b++)
      for (i64 n = 0; n < units; n++) p.c[b][n] = dir.c0 ? dir.c0[b * H + unit + n] : T(0);
    cell.forward(u, p);
    for (i64 b = 0; b < B; b++) {
      T* const h_n = dir.h_n + b * H + unit;
      if (dir.brief_y.data)
        widen_row(dir.brief_y.at(call.sequence, 0, b) + unit, units, h_n);
      else
        copy(p.h[b], h_n, units);
    }
  }

  // z of panel j in the order of forward.h.
  void products(i64 j) const {
    const Weights<T>& w = dir.w;
    if constexpr (IS_PAIR<E>) {
      if (dir.brief_W_ih)
        by_panels(j, dir.brief_W_ih, dir.brief_W_hh);
      else
        by_panels(j, w.W_ih, w.W_hh);
    } else if (!are_dots()) {
      by_panels(j, w.W_ih, w.W_hh);
    } else if (dir.brief_W_ih) {
      if constexpr (sizeof(T) == 4) dots_of(j, dir.brief_W_ih, dir.brief_W_hh);
    } else {
      dots_of(j, w.W_ih, w.W_hh);
    }
  }
  template <class N>
  void dots_of(i64 j, const N* W_ih, const N* W_hh) const {
    dots<T, N>(u, j, B, {{x_rows(), {W_ih, I}, I}, {h_rows(), {W_hh, H}, H}}, {}, {z, u.W});
  }
  template <class N>
  void by_panels(i64 j, const N* W_ih, const N* W_hh) const {
    const i64 next = j + 1 < panels.end ? j + 1 : u.J;  // which has no units
    const GateRows<N> x_part{W_ih, I, j}, h_part{W_hh, H, j};
    add_product(x_rows(), x_part, h_part, {});
    add_product(h_rows(), h_part, {W_ih, I, next}, {z, u.W});
  }
  // The rows of panel j in a matrix (G*H, size).
  template <class N>
  struct GateRows {
    const N* matrix;
    i64 size, j;
  };
  template <class N>
  void add_product(Lines<const E> rows, GateRows<N> of, GateRows<N> next,
                   Lines<const T> so_far) const {
    constexpr i64 most = SINGLE_LINES * Operand<E>::numbers;
    const Lines<T> sums{z, u.W};
    for (i64 first = 0; first < of.size; first += most) {
      const i64 end = smaller(of.size, first + most), length = operands<E>(end - first);
      pack_gate_lines(of.matrix, of.size, first, end, u, lines, of.j);
      // Meanwhile what is packed next is fetched: with a part of the sum the rows of each gate,
      // which lie in one piece.
      Stretch<E> part[NV];
      for (int v = 0; v < u.vectors; v++) {
        const Share k = share(length, v, u.vectors);
        part[v] = {rows.right(operands<E>(first) + k.begin), lines + k.begin * u.W,
                   k.end - k.begin};
        const int q = v / u.G, units = u.lanes(next.j, q);
        if (units == 0 || next.size > most) continue;
        const N* const from = next.matrix + ((v % u.G) * H + next.j * u.U + q * LANES<T>)*next.size;
        part[v].ahead = Ahead::of(from, units * next.size * i64(sizeof(N)), B, part[v].length);
      }
      product<E>(B, u.vectors, u.vectors, part, so_far, sums);
      so_far = sums;
    }
  }
};

}  // namespace gatewise::GATEWISE_ISA
