// Backward of few tokens, those of a single step among them: to pack the weights, and to unpack the
// sums of their gradients, would cost more than the products. All of these are sums of the lines of
// a matrix as it lies (lines.h), R = G*H; those of the weights are in weight_sums.h:
//
//   d_h (B, P) = d_z (B, R) W_hh (R, P)        d_x (N, I) = d_z (N, R) W_ih (R, I)
//
// Where operands are pairs (bf16.h), a single step is such, of however many rows.
// Workers take panels of units, meet, and then take parts of the results, step by step.
#pragma once
#include "backward.h"
#include "weight_sums.h"

namespace gatewise::GATEWISE_ISA {

// Each token costs more than in backward.h (FEW_TOKENS, groups.h); and so does each reading of
// W_hh, of which a step has one for a tile of rows, and never more than two: of many rows a part of
// it is packed.
inline constexpr i64 FEW_READINGS = 24;

template <class T, class E = T>
bool is_few(const BackwardCall<T>& call) {
  const Dims& d = call.dims;
  if (call.direction[0].w.W_hr) return false;
  if (d.T == 1 && d.D == 1) return true;
  return !IS_PAIR<E> && FEW_TOKENS * d.N <= d.I + d.P &&
         d.T * smaller(2, ceil_div(d.B, MR)) <= FEW_READINGS;
}

// The caller's own place for the d_z of a single step.
template <class K, class Direction>
GATEWISE_INLINE K* d_z_of(const Direction& dir) {
  if constexpr (sizeof(K) == sizeof(Bf16))
    return dir.rounded_d_z;
  else
    return dir.d_z;
}

// The workspace of one direction. Where operands are pairs, it is that of a single step.
template <class T, class E = T>
struct FewSpace {
  using K = Number<E>;
  Units<T> u;
  i64 R, row;    // G*H; numbers of a row of d_z
  i64 padded;    // H in whole vectors
  T *d_h, *d_c;  // (B, padded), (B, H): towards the step before
  K* panels;     // [J][B][W]: d_z of a step as the cell writes it
  K* d_z;        // (N, row), the caller's if it wants them
  K* c0;         // (B, padded): as the tape would have it, where it is rounded
  T* x;          // (N, I); null where the caller's are such numbers, at equal distances
  T* h;          // (N, H): h(t-1); null where that is h0
  T* zeros;
  T* own_d_x;  // (N, I), where it is added, or rounded
  WeightSums<T, E> weights;

  FewSpace(const BackwardCall<T>& call, i64 k, Carver& carver)
      : u(call.dims.H, CELLS[call.cell].cell.gates()) {
    const Dims& d = call.dims;
    const auto& dir = call.direction[k];
    R = u.G * d.H;
    row = even_row(R);
    padded = round_up(d.H, u.U);
    d_h = carver.take<T>(d.B * padded);
    d_c = carver.take<T>(d.B * d.H);
    panels = carver.take<K>(u.K * d.B);
    d_z = d_z_of<K>(dir) ? d_z_of<K>(dir) : carver.take<K>(d.N * row);
    c0 = IS_PAIR<E> && dir.c0 ? carver.take<K>(d.B * padded) : nullptr;
    const bool as_given = in_line(d, call.sequence, dir.x) && !dir.brief_x.data;
    x = as_given ? nullptr : carver.take<T>(d.N * d.I);
    h = d.T > 1 ? carver.take<T>(d.N * d.H) : nullptr;
    zeros = carver.take<T>(d.H);
    own_d_x = adds_inputs(call, k) || dir.brief_d_x.data ? carver.take<T>(d.N * d.I) : nullptr;
    Tokens<T> tokens{d.N, R, d.I, d.H, call.adds};
    if constexpr (IS_PAIR<E>)
      tokens.rounded_d_z = {d_z, row};
    else
      tokens.d_z = {d_z, row};
    tokens.x = x ? Lines<const T>{x, d.I} : Lines<const T>{dir.x.data, dir.x.row};
    tokens.h = {h ? h : dir.h0 ? dir.h0 : zeros, h || dir.h0 ? d.H : 0};
    tokens.d_W_ih = dir.d_W_ih, tokens.d_W_hh = dir.d_W_hh, tokens.d_b = dir.d_b;
    weights = WeightSums<T, E>(tokens, carver);
  }
  template <class View>
  static bool in_line(const Dims& d, const Sequence& seq, const View& tokens) {
    return d.T == 1 || seq.offsets || tokens.step == d.B * tokens.row;
  }
};

// One worker's part of one direction.
template <class T, class E = T>
struct FewBackward {
  using K = Number<E>;
  static constexpr int L = LANES<T>;
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const Pointwise<T, E> cell;
  const Team team;
  const FewSpace<T, E> ws;
  const Units<T>& u;
  const i64 B, I, H, S;
  const Share panels;

  FewBackward(const BackwardCall<T>& call_, i64 d, Team team_, Carver& carver)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(dir.reverse),
        cell(pointwise_of<T, E>(call_.cell)),
        team(team_),
        ws(call_, d, carver),
        u(ws.u),
        B(dims.B),
        I(dims.I),
        H(dims.H),
        S(cell.cell.slots()),
        panels(team.of(u.J)) {}

  i64 before(i64 t) const { return reverse ? t + 1 : t - 1; }

  void run() const {
    start();
    for (i64 s = 0; s < dims.T; s++) {
      const i64 t = reverse ? s : dims.T - 1 - s, rows = seq.active(t);
      for (i64 j = panels.begin; j < panels.end; j++) panel(j, t, rows);
      team.meet();
      const bool last = s + 1 == dims.T;
      if (!last || dir.d_h0) product_with(rows, H, d_z(t, 0), dir.w.W_hh, {ws.d_h, ws.padded});
      if (!last) team.meet();
    }
    if (dir.wants_inputs()) inputs();
    if (dir.d_h0) initial_states();
    if (dir.d_c0 && team.id == 0) copy(ws.d_c, dir.d_c0, B * H);
    ws.weights.run(team);
  }

  // What arrives behind the last step of every sequence; and what the sums over tokens read.
  void start() const {
    const i64 begin = panels.begin * u.U, end = panels.end * u.U;  // my units
    const i64 units = larger(0, smaller(H, end) - begin);
    const auto take = [&](const T* from, T* to) {
      from ? copy(from, to, units) : clear(to, units);
    };
    for (i64 b = 0; b < B; b++) {
      T* const d_h = ws.d_h + b * ws.padded + begin;
      take(dir.d_h_n ? dir.d_h_n + b * H + begin : nullptr, d_h);
      clear(d_h + units, end - begin - units);
      take(dir.d_c_n ? dir.d_c_n + b * H + begin : nullptr, ws.d_c + b * H + begin);
    }
    for (int k = 0; k < 3 && dir.d_peep && !call.adds; k++)
      clear(dir.d_peep + k * H + begin, units);
    if (team.id == 0) clear(ws.zeros, H);
    if constexpr (IS_PAIR<E>)
      for (i64 b = 0; ws.c0 && b < B; b++)
        for (i64 n = begin; n < begin + units; n += L)
          store(ws.c0 + b * ws.padded + n, load(dir.c0 + b * H + n, int(smaller(L, H - n))));
    for (i64 t = team.id; t < dims.T; t += team.count)
      for (i64 b = 0; b < seq.active(t); b++) {
        const i64 token = seq.token(t) + b;
        if (dir.brief_x.data)
          widen_row(dir.brief_x.at(seq, t, b), I, ws.x + token * I);
        else if (ws.x)
          copy(dir.x.at(seq, t, b), ws.x + token * I, I);
        if (!ws.h) continue;
        T* const h = ws.h + token * H;
        if (b < seq.active(before(t)))
          copy(dir.y.at(seq, before(t), b), h, H);
        else if (dir.h0)
          copy(dir.h0 + b * H, h, H);
        else
          clear(h, H);
      }
  }

  K* d_z(i64 t, i64 b) const { return ws.d_z + (seq.token(t) + b) * ws.row; }

  // My part of the columns of d_z W, `width` of them.
  void product_with(i64 rows, i64 width, const K* d_z, const T* W, Lines<T> out) const {
    const Share mine = columns(width);
    if (mine.begin >= mine.end) return;
    const Lines<const T> part{W + mine.begin, width};
    const i64 n = mine.end - mine.begin;
    if constexpr (!IS_PAIR<E>)
      if (rows_are_few(rows))
        return long_product<T>(rows, n, {d_z, ws.row, 1}, ws.R, part, out.right(mine.begin));
    block_product<E>(rows, n, {reinterpret_cast<const E*>(d_z), operands<E>(ws.row)}, ws.R, part,
                     out.right(mine.begin), false);
  }
  Share columns(i64 width) const {
    const Share mine = team.of(ceil_div(width, L));
    return {mine.begin * L, smaller(width, mine.end * L)};
  }

  // d_x of all tokens at once where they lie at equal distances, else step by step.
  void inputs() const {
    const View<T>& d_x = dir.d_x;
    if (ws.own_d_x)
      product_with(dims.N, I, ws.d_z, dir.w.W_ih, {ws.own_d_x, I});
    else if (ws.in_line(dims, seq, d_x))
      product_with(dims.N, I, ws.d_z, dir.w.W_ih, {d_x.data, d_x.row});
    else
      for (i64 t = 0; t < dims.T; t++)
        product_with(B, I, d_z(t, 0), dir.w.W_ih, {d_x.at(seq, t, 0), d_x.row});
  }

  // d_h0, the columns that I have written.
  void initial_states() const {
    const Share mine = columns(H);
    for (i64 b = 0; b < B && mine.begin < mine.end; b++)
      copy(ws.d_h + b * ws.padded + mine.begin, dir.d_h0 + b * H + mine.begin,
           mine.end - mine.begin);
  }

  // The cell, backwards, for the units of a panel; then their d_z as a matrix. The rows that were
  // there one step back find c(t-1) in the tape, the others in the initial state.
  void panel(i64 j, i64 t, i64 rows) const {
    const i64 back = before(t), known = smaller(rows, seq.active(back));
    if (known) {
      const i64 c = seq.token(back) * S * H + cell.cell.slot_c() * H;
      gates(j, t, 0, known,
            cell.cell.has_cell_state() ? Lines<const K>{tape_of<K>(dir) + c, S * H}
                                       : Lines<const K>{});
    }
    if (known < rows) gates(j, t, known, rows, initial_cells().from(known));
    const i64 unit = j * u.U;
    for (i64 b = 0; b < rows; b++)
      for (int q = 0; q < u.groups; q++)
        for (int gate = 0; gate < u.G; gate++) {
          const Vec<T> d = load(d_z_line(j, b) + (q * u.G + gate) * L);
          K* to = d_z(t, b) + gate * H + unit + q * L;
          const int n = u.lanes(j, q);
          n == L ? store(to, d) : store(to, d, n);
        }
    for (i64 b = 0; ws.row > ws.R && j == 0 && b < rows; b++) d_z(t, b)[ws.R] = K{};
  }
  K* d_z_line(i64 j, i64 b) const { return ws.panels + (j * B + b) * u.W; }
  // c0, absent where it is zeros.
  Lines<const K> initial_cells() const {
    if (!dir.c0) return {};
    if constexpr (IS_PAIR<E>)
      return {ws.c0, ws.padded};
    else
      return {dir.c0, H};
  }

  // Rows begin .. end-1 of step t; c_before begins at row `begin`.
  void gates(i64 j, i64 t, i64 begin, i64 end, Lines<const K> c_before) const {
    const i64 unit = j * u.U, token = seq.token(t) + begin, slots = token * S * H + unit;
    BackwardRows<T, E> p{};
    p.rows = end - begin;
    p.j = j;
    p.peep = dir.w.peep;
    p.tape = {tape_of<K>(dir) + slots, S * H};
    p.c_before = c_before.right(unit);
    p.d_h = {ws.d_h + begin * ws.padded + unit, ws.padded};
    if (dir.d_y.data) p.d_y = {dir.d_y.at(seq, t, begin) + unit, dir.d_y.row};
    if constexpr (IS_PAIR<E>)
      if (dir.brief_d_y.data)
        p.brief_d_y = {dir.brief_d_y.at(seq, t, begin) + unit, dir.brief_d_y.row};
    if (dir.d_tape) p.d_tape = {dir.d_tape + slots, S * H};
    if (dir.g_tape) p.g_tape = {dir.g_tape + slots, S * H};
    p.d_c = {ws.d_c + begin * H + unit, H};
    p.d_z = {d_z_line(j, begin), u.W};
    if (dir.g_h) keep_hidden_gradient(p, dir.g_h + token * H + unit, smaller(u.U, H - unit));
    (dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward)(u, p);
    if (dir.d_peep) peepholes(p, unit, smaller(u.U, H - unit));
  }

  void keep_hidden_gradient(const BackwardRows<T, E>& p, T* g_h, i64 units) const {
    for (i64 r = 0; r < p.rows; r++)
      for (i64 n = 0; n < units; n++) {
        const T d_y = p.d_y.data         ? p.d_y[r][n]
                      : p.brief_d_y.data ? T(widened(p.brief_d_y[r][n]))
                                         : T(0);
        g_h[r * H + n] = p.d_h[r][n] + d_y;
      }
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peepholes(const BackwardRows<T, E>& p, i64 unit, i64 units) const {
    const int slot[3] = {cell.cell.slot_i(), cell.cell.slot_f(), cell.cell.slot_o()};
    for (int k = 0; k < 3; k++)
      for (i64 r = 0; r < p.rows && slot[k] >= 0; r++)
        for (i64 n = 0; n < units; n++) {
          const K* seen = k == 2 ? p.tape[r] + cell.cell.slot_c() * H : p.c_before[r];
          const i64 at = (n / L * u.G + slot[k]) * L + n % L;
          if (seen) dir.d_peep[k * H + unit + n] += widened(p.d_z[r][at]) * widened(seen[n]);
        }
  }
};

template <class T, class E = T>
i64 few_bytes(const BackwardCall<T>& call) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++) FewSpace<T, E>(call, d, carver);
  return carver.used;
}

template <class T, class E = T>
void few_backward(BackwardCall<T>& call, int id, int count) {
  const Team everybody{id, count, call.barrier};
  each_direction<E>(call, everybody, call.barrier + 1, [&](i64 d, Team team) {
    Carver carver{call.workspace};
    for (i64 before = 0; before < d; before++) FewSpace<T, E>(call, before, carver);
    FewBackward<T, E>(call, d, team, carver).run();
  });
  add_inputs<FewSpace<T, E>, E>(call, everybody);
}

}  // namespace gatewise::GATEWISE_ISA
