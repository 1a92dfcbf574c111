// Backward of few tokens, those of a single step among them: to pack the weights, and to unpack the
// sums of their gradients, would cost more than the products. All of these are sums of the lines of
// a matrix as it lies (lines.h), R = G*H; those of the weights are in weight_sums.h:
//
//   d_h (B, P) = d_z (B, R) W_hh (R, P)        d_x (N, I) = d_z (N, R) W_ih (R, I)
//
// Workers take panels of units, meet, and then take parts of the results, step by step.
#pragma once
#include "backward.h"
#include "weight_sums.h"

namespace gatewise::GATEWISE_ISA {

// Each token costs more than in backward.h (FEW_TOKENS, groups.h); and so does each reading of
// W_hh, of which a step has one for a tile of rows, and never more than two: of many rows a part of
// it is packed.
inline constexpr i64 FEW_READINGS = 24;

template <class T>
bool is_few(const BackwardCall<T>& call) {
  const Dims& d = call.dims;
  if (call.direction[0].w.W_hr) return false;
  if (d.T == 1 && d.D == 1) return true;
  return FEW_TOKENS * d.N <= d.I + d.P && d.T * smaller(2, ceil_div(d.B, MR)) <= FEW_READINGS;
}

// The workspace of one direction.
template <class T>
struct FewSpace {
  Units<T> u;
  i64 R, padded;  // G*H; H in whole vectors
  T *d_h, *d_c;   // (B, padded), (B, H): towards the step before
  T* panels;      // [J][B][W]: d_z of a step as the cell writes it
  T* d_z;         // (N, R), the caller's if it wants them
  T* x;           // (N, I); null where the caller's tokens lie at equal distances
  T* h;           // (N, H): h(t-1); null where that is h0
  T* zeros;
  T* own_d_x;  // (N, I), where it is added
  WeightSums<T> weights;

  FewSpace(const BackwardCall<T>& call, i64 k, Carver& carver)
      : u(call.dims.H, CELLS[call.cell].cell.gates()) {
    const Dims& d = call.dims;
    const auto& dir = call.direction[k];
    R = u.G * d.H;
    padded = round_up(d.H, u.U);
    d_h = carver.take<T>(d.B * padded);
    d_c = carver.take<T>(d.B * d.H);
    panels = carver.take<T>(u.K * d.B);
    d_z = dir.d_z ? dir.d_z : carver.take<T>(d.N * R);
    x = in_line(d, call.sequence, dir.x) ? nullptr : carver.take<T>(d.N * d.I);
    h = d.T > 1 ? carver.take<T>(d.N * d.H) : nullptr;
    zeros = carver.take<T>(d.H);
    own_d_x = adds_inputs(call, k) ? carver.take<T>(d.N * d.I) : nullptr;
    Tokens<T> tokens{d.N, R, d.I, d.H, call.adds};
    tokens.d_z = {d_z, R};
    tokens.x = x ? Lines<const T>{x, d.I} : Lines<const T>{dir.x.data, dir.x.row};
    tokens.h = {h ? h : dir.h0 ? dir.h0 : zeros, h || dir.h0 ? d.H : 0};
    tokens.d_W_ih = dir.d_W_ih, tokens.d_W_hh = dir.d_W_hh, tokens.d_b = dir.d_b;
    weights = WeightSums<T>(tokens, carver);
  }
  template <class View>
  static bool in_line(const Dims& d, const Sequence& seq, const View& tokens) {
    return d.T == 1 || seq.offsets || tokens.step == d.B * tokens.row;
  }
};

// One worker's part of one direction.
template <class T>
struct FewBackward {
  static constexpr int L = LANES<T>;
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const Pointwise<T> cell;
  const Team team;
  const FewSpace<T> ws;
  const Units<T>& u;
  const i64 B, I, H, S;
  const Share panels;

  FewBackward(const BackwardCall<T>& call_, i64 d, Team team_, Carver& carver)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(dir.reverse),
        cell(pointwise_of<T>(call_.cell)),
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
    if (dir.d_x.data) inputs();
    if (dir.d_h0) initial_states();
    if (dir.d_c0 && team.id == 0) copy(ws.d_c, dir.d_c0, B * H);
    ws.weights.run(team);
  }

  // What arrives behind the last step of every sequence; and what the sums over tokens read.
  void start() const {
    const i64 begin = panels.begin * u.U, end = panels.end * u.U;  // my units
    for (i64 b = 0; b < B; b++)
      for (i64 n = begin; n < end; n++) {
        ws.d_h[b * ws.padded + n] = dir.d_h_n && n < H ? dir.d_h_n[b * H + n] : T(0);
        if (n < H) ws.d_c[b * H + n] = dir.d_c_n ? dir.d_c_n[b * H + n] : T(0);
      }
    for (int k = 0; k < 3 && dir.d_peep && !call.adds; k++)
      for (i64 n = begin; n < smaller(H, end); n++) dir.d_peep[k * H + n] = T(0);
    for (i64 n = 0; team.id == 0 && n < H; n++) ws.zeros[n] = T(0);
    for (i64 t = team.id; t < dims.T; t += team.count)
      for (i64 b = 0; b < seq.active(t); b++) {
        const i64 token = seq.token(t) + b;
        if (ws.x) copy(dir.x.at(seq, t, b), ws.x + token * I, I);
        if (!ws.h) continue;
        T* const h = ws.h + token * H;
        if (b < seq.active(before(t)))
          copy(dir.y.at(seq, before(t), b), h, H);
        else if (dir.h0)
          copy(dir.h0 + b * H, h, H);
        else
          for (i64 n = 0; n < H; n++) h[n] = T(0);
      }
  }

  const T* d_z(i64 t, i64 b) const { return ws.d_z + (seq.token(t) + b) * ws.R; }

  // My part of the columns of d_z W, `width` of them.
  void product_with(i64 rows, i64 width, const T* d_z, const T* W, Lines<T> out) const {
    const Share mine = columns(width);
    if (mine.begin >= mine.end) return;
    const Lines<const T> part{W + mine.begin, width};
    const i64 n = mine.end - mine.begin;
    if (rows_are_few(rows))
      long_product<T>(rows, n, {d_z, ws.R, 1}, ws.R, part, out.right(mine.begin));
    else
      block_product<T>(rows, n, {d_z, ws.R}, ws.R, part, out.right(mine.begin), false);
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
            cell.cell.has_cell_state() ? Lines<const T>{dir.tape + c, S * H} : Lines<const T>{});
    }
    if (known < rows)
      gates(j, t, known, rows, dir.c0 ? Lines<const T>{dir.c0 + known * H, H} : Lines<const T>{});
    const i64 unit = j * u.U;
    for (i64 b = 0; b < rows; b++)
      for (int q = 0; q < u.groups; q++)
        for (int gate = 0; gate < u.G; gate++) {
          const Vec<T> d = load(d_z_line(j, b) + (q * u.G + gate) * L);
          T* to = ws.d_z + (seq.token(t) + b) * ws.R + gate * H + unit + q * L;
          const int n = u.lanes(j, q);
          n == L ? store(to, d) : store(to, d, n);
        }
  }
  T* d_z_line(i64 j, i64 b) const { return ws.panels + (j * B + b) * u.W; }

  // Rows begin .. end-1 of step t; c_before begins at row `begin`.
  void gates(i64 j, i64 t, i64 begin, i64 end, Lines<const T> c_before) const {
    const i64 unit = j * u.U, token = seq.token(t) + begin, slots = token * S * H + unit;
    BackwardRows<T> p{};
    p.rows = end - begin;
    p.j = j;
    p.peep = dir.w.peep;
    p.tape = {dir.tape + slots, S * H};
    p.c_before = c_before.right(unit);
    p.d_h = {ws.d_h + begin * ws.padded + unit, ws.padded};
    if (dir.d_y.data) p.d_y = {dir.d_y.at(seq, t, begin) + unit, dir.d_y.row};
    if (dir.d_tape) p.d_tape = {dir.d_tape + slots, S * H};
    if (dir.g_tape) p.g_tape = {dir.g_tape + slots, S * H};
    p.d_c = {ws.d_c + begin * H + unit, H};
    p.d_z = {d_z_line(j, begin), u.W};
    if (dir.g_h) keep_hidden_gradient(p, dir.g_h + token * H + unit, smaller(u.U, H - unit));
    (dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward)(u, p);
    if (dir.d_peep) peepholes(p, unit, smaller(u.U, H - unit));
  }

  void keep_hidden_gradient(const BackwardRows<T>& p, T* g_h, i64 units) const {
    for (i64 r = 0; r < p.rows; r++)
      for (i64 n = 0; n < units; n++)
        g_h[r * H + n] = p.d_h[r][n] + (p.d_y.data ? p.d_y[r][n] : T(0));
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peepholes(const BackwardRows<T>& p, i64 unit, i64 units) const {
    const int slot[3] = {cell.cell.slot_i(), cell.cell.slot_f(), cell.cell.slot_o()};
    for (int k = 0; k < 3; k++)
      for (i64 r = 0; r < p.rows && slot[k] >= 0; r++)
        for (i64 n = 0; n < units; n++) {
          const T* seen = k == 2 ? p.tape[r] + cell.cell.slot_c() * H : p.c_before[r];
          const i64 at = (n / L * u.G + slot[k]) * L + n % L;
          if (seen) dir.d_peep[k * H + unit + n] += p.d_z[r][at] * seen[n];
        }
  }
};

template <class T>
i64 few_bytes(const BackwardCall<T>& call) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++) FewSpace<T>(call, d, carver);
  return carver.used;
}

template <class T>
void few_backward(BackwardCall<T>& call, int id, int count) {
  const Team everybody{id, count, call.barrier};
  each_direction<T>(call, everybody, call.barrier + 1, [&](i64 d, Team team) {
    Carver carver{call.workspace};
    for (i64 before = 0; before < d; before++) FewSpace<T>(call, before, carver);
    FewBackward<T>(call, d, team, carver).run();
  });
  add_inputs<FewSpace<T>, T>(call, everybody);
}

}  // namespace gatewise::GATEWISE_ISA
