// A sequence, backward through time; equations (7) to (14) of docs/math.md. The gate gradients of a
// chunk are computed step by step (the only part that is bound to the order of time), then used:
// see gradients.h. What a group is, and how its memory lies: group.h.
#pragma once
#include "gradients.h"

namespace gatewise::GATEWISE_ISA {

// One worker's part of one group of rows.
template <class T, class E>
struct GroupWalk {
  using K = Number<E>;  // of the tape
  static constexpr int L = LANES<T>;
  const Group<T, E> g;
  const Pointwise<T, E> cell;
  const BackwardSpace<T, E>& all = g.all;
  const GroupSpace<T, E>& ws = g.ws;
  const typename BackwardCall<T>::Direction& dir = g.dir;
  const Dims& dims = g.dims;
  const Sequence& seq = g.seq;
  const Units<T>& u = g.u;
  const Team& team = g.team;
  const i64 S = g.S;
  const Split split{team, g.rows, seq, g.call.least_rows, weights_are_large()};
  const Rows own = split.rows;
  const Share panels = split.panels(team, u.J);
  const Dealer dealer = split.dealer(team, ws.taken);
  const bool far = split.by_batch && tokens_are_far<E>(dims, S* dims.H);

  bool weights_are_large() const { return u.K * operand_bytes<E>(dims.P) > LARGE_RECURRENT; }

  // Step s of the walk back, s = 0 .. T-1: against the direction of the forward run.
  i64 time(i64 s) const { return g.reverse ? s : dims.T - 1 - s; }
  i64 before(i64 t) const { return g.reverse ? t + 1 : t - 1; }
  i64 active(i64 t) const { return g.rows.among(seq.active(t)); }

  void run() const {
    start();
    team.meet();
    bool first = true;
    for (i64 s = 0; s < dims.T; first = false) {
      i64 end = s, tokens = 0;
      do tokens += active(time(end++));
      while (end < dims.T && tokens + active(time(end)) <= ws.chunk);
      const Chunk c{smaller(time(s), time(end - 1)), larger(time(s), time(end - 1)) + 1, tokens};
      for (i64 k = s; k < end; k++) step(c, time(k));
      if (ws.d_out || IS_PAIR<E>) team.meet();  // d_out is turned, d_z paired: every worker's rows
      Gradients<T, E>{g, c}.all(first);
      s = end;
    }
  }

  // What arrives behind the last step of every sequence: d_h_n and d_c_n.
  void start() const {
    g.dealer.start();
    const Share mine = team.of(g.rows.count());
    for (i64 k = mine.begin; k < mine.end; k++) {
      const i64 b = g.rows[k], padded = all.output.padded;
      for (i64 n = 0; n < padded; n++)
        ws.d_h[g.index(b) * padded + n] =
            dir.d_h_n && n < dims.P ? dir.d_h_n[b * dims.P + n] : T(0);
      for (i64 n = 0; n < dims.H; n++)
        ws.d_c[g.index(b) * dims.H + n] = dir.d_c_n ? dir.d_c_n[b * dims.H + n] : T(0);
      if constexpr (IS_PAIR<E>) {
        if (dir.c0) round_row(dir.c0 + b * dims.H, dims.H, all.c0 + b * all.hidden.padded);
        if (all.h0)
          round_row(dir.h0 ? dir.h0 + b * dims.P : all.zeros, dims.P, all.h0 + b * padded);
      }
    }
    if (team.id) return;
    for (i64 k = 0; k < 3 * dims.H && ws.d_peep; k++) ws.d_peep[k] = T(0);
  }

  void step(const Chunk& c, i64 t) const {
    const i64 rows = own.among(seq.active(t));
    if (ws.d_out) {
      through_projection(c, t, rows);
      split.meet(team);
    }
    gates(c, t, rows);
    if (far) fetch_step(before(t));
    split.meet(team);
    towards_before(c, t, rows);
    split.meet(team);
  }

  void fetch_step(i64 t) const {
    const i64 rows = own.among(seq.active(t)), b = own.first, slots = S * dims.H;
    if (rows == 0) return;
    fetch_rows<const K>({g.slot(t, b, 0), slots}, rows, slots);
    if (dir.d_y.data) fetch_rows<const T>({dir.d_y.at(seq, t, b), dir.d_y.row}, rows, dims.P);
    if (dir.brief_d_y.data)
      fetch_rows<const Bf16>({dir.brief_d_y.at(seq, t, b), dir.brief_d_y.row}, rows, dims.P);
  }

  // With a projection: d_out = d_h + d_y, d_hidden = d_out W_hr, and the hidden state itself for
  // d_W_hr.
  void through_projection(const Chunk& c, i64 t, i64 rows) const {
    const Share mine = split.panels(team, all.hidden.panels);
    for (i64 k = 0; k < rows && (split.by_batch || team.id == 0); k++) {
      const i64 b = own[k];
      T* d_out = ws.d_out + g.place(c, t, b) * dims.P;
      output_gradient(t, b, d_out);
      if constexpr (IS_PAIR<E>) round_row(d_out, dims.P, as_numbers(d_out_rows(c, t, b).data));
    }
    split.meet(team);
    const i64 b = own.first;
    for (i64 p = mine.begin; p < mine.end; p++) {
      const i64 first = all.hidden.first(p);
      product<E>(rows, all.hidden.width(p),
                 {{d_out_rows(c, t, b), all.Wr + first * operands<E>(dims.P), operands<E>(dims.P)}},
                 {}, {ws.d_hidden + g.index(b) * all.hidden.padded + first, all.hidden.padded});
    }
  }
  // d_h + d_y of a token.
  void output_gradient(i64 t, i64 b, T* sum) const {
    const T* d_h = ws.d_h + g.index(b) * all.output.padded;
    if (dir.brief_d_y.data) {
      const Bf16* d_y = dir.brief_d_y.at(seq, t, b);
      for (i64 n = 0; n < dims.P; n++) sum[n] = d_h[n] + widened(d_y[n]);
    } else {
      const T* d_y = dir.d_y.data ? dir.d_y.at(seq, t, b) : all.zeros;
      for (i64 n = 0; n < dims.P; n++) sum[n] = d_h[n] + d_y[n];
    }
  }
  // d_out of step t as the product wants it: my rows from b on.
  Lines<E> d_out_rows(const Chunk& c, i64 t, i64 b) const {
    if constexpr (IS_PAIR<E>)
      return {ws.d_out_rounded + g.index(b) * room<E>(dims.P), room<E>(dims.P)};
    else
      return {ws.d_out + g.place(c, t, b) * dims.P, dims.P};
  }

  // The cell, backwards: d_h and d_c to d_z, d_c towards the step before. The rows that were there
  // one step back find c(t-1) in the tape, the others in the initial state.
  void gates(const Chunk& c, i64 t, i64 rows) const {
    const i64 back = before(t), known = smaller(rows, own.among(seq.active(back)));
    if (known) {
      Lines<const K> c_before;
      if (cell.cell.has_cell_state())
        c_before = {g.slot(back, own.first, cell.cell.slot_c()), S * dims.H};
      gates_of_rows(c, t, 0, known, c_before);
    }
    if (known < rows) {
      const Lines<const K> c0 = g.initial_cells();
      gates_of_rows(c, t, known, rows - known, c0.from(own[known]));
    }
    if (dir.g_h && (split.by_batch || team.id == 0)) keep_hidden_gradient(c, t, rows);
  }

  void gates_of_rows(const Chunk& c, i64 t, i64 begin, i64 rows, Lines<const K> c_before) const {
    const auto run = dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward;
    const i64 b = own[begin], slots = S * dims.H, token = (seq.token(t) + b) * slots;
    const Lines<const K> tape{g.slot(t, b, 0), slots};
    for (i64 j = panels.begin; j < panels.end; j++) {
      const i64 unit = j * u.U;
      BackwardRows<T, E> p{};
      p.rows = rows;
      p.j = j;
      p.peep = dir.w.peep;
      p.tape = tape.right(unit);
      p.c_before = c_before.right(unit);
      const i64 hidden = all.hidden.padded, output = all.output.padded;
      p.d_h = ws.d_out ? Lines<const T>{ws.d_hidden + g.index(b) * hidden + unit, hidden}
                       : Lines<const T>{ws.d_h + g.index(b) * output + unit, output};
      if (dir.d_y.data && !ws.d_out) p.d_y = {dir.d_y.at(seq, t, b) + unit, dir.d_y.row};
      if constexpr (IS_PAIR<E>)
        if (dir.brief_d_y.data && !ws.d_out)
          p.brief_d_y = {dir.brief_d_y.at(seq, t, b) + unit, dir.brief_d_y.row};
      if (dir.d_tape) p.d_tape = {dir.d_tape + token + unit, slots};
      if (dir.g_tape) p.g_tape = {dir.g_tape + token + unit, slots};
      p.d_c = {ws.d_c + g.index(b) * dims.H + unit, dims.H};
      p.d_z = {g.d_z(j, g.place(c, t, b)), u.W};
      run(u, p);
    }
  }

  void keep_hidden_gradient(const Chunk& c, i64 t, i64 rows) const {
    for (i64 k = 0; k < rows; k++) {
      const i64 b = own[k];
      T* g_h = dir.g_h + (seq.token(t) + b) * dims.P;
      if (ws.d_out)
        copy(ws.d_out + g.place(c, t, b) * dims.P, g_h, dims.P);
      else
        output_gradient(t, b, g_h);
    }
  }

  // d_h(t-1) = d_z(t) W_hh, up and down in turn as forward.
  void towards_before(const Chunk& c, i64 t, i64 rows) const {
    const Axis<T>& output = all.output;
    const i64 b = own.first;
    // One row: two panels at once, if that leaves some for everybody.
    const i64 most = rows == 1 && output.panels > (split.by_batch ? 1 : team.count) ? 2 : 1;
    dealer.deal(ceil_div(output.panels, most), 1, t % 2, [&](i64, i64 visit, i64 next) {
      const i64 p = most * visit, last = smaller(output.panels, p + most) - 1;
      const auto of_panels = [&](i64 first, int count) {
        g.gate_product(all.Wh, output, first, most * next, count, rows, g.place(c, t, b),
                       {ws.d_h + g.index(b) * output.padded + output.first(first),
                        count == 2 ? output.first(1) : output.padded});
      };
      if (last > p && output.width(p) == output.width(last)) {
        of_panels(p, 2);
      } else {
        for (i64 k = p; k <= last; k++) of_panels(k, 1);
      }
    });
  }
};

// One worker's part of one direction: what all its groups share.
template <class T, class E>
struct Backward {
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Dims& dims;
  const BackwardSpace<T, E>& ws;
  const Units<T>& u;
  const Team team;
  const i64 groups;

  void run(i64 d, Barrier* barrier) const {
    pack();
    team.meet();
    side_by_side(groups, team, barrier, [&](i64 k, Team of_group) {
      GroupWalk<T, E>{{call, d, k, ws, of_group}, pointwise_of<T, E>(call.cell)}.run();
    });
    team.meet();
    finish();
  }

  void pack() const {
    const auto each = [&](i64 n, auto f) {
      const Share mine = team.of(n);
      for (i64 p = mine.begin; p < mine.end; p++) f(p);
    };
    if (ws.Wx) each(ws.input.panels, [&](i64 p) { pack_back(dir.w.W_ih, ws.input, u, ws.Wx, p); });
    each(ws.output.panels, [&](i64 p) { pack_back(dir.w.W_hh, ws.output, u, ws.Wh, p); });
    if (ws.Wr)
      each(ws.hidden.panels, [&](i64 p) { pack_lines(dir.w.W_hr, dims.P, ws.hidden, ws.Wr, p); });
    for (i64 k = 0; team.id == 0 && k < larger(dims.P, dims.H); k++) ws.zeros[k] = T(0);
  }

  // The groups' sums, added, into the caller's arrays.
  void finish() const {
    const Share mine = team.of(u.J);
    const i64 columns = dims.I + dims.P + 1;
    for (i64 j = mine.begin; ws.group[0].d_W && j < mine.end; j++) {
      const T* lines = sum_of(&GroupSpace<T, E>::d_W, j * columns * u.W, columns * u.W);
      if (dir.d_W_ih) unpack_gates(lines, dims.I, u, dir.d_W_ih, j, call.adds);
      if (dir.d_W_hh) unpack_gates(lines + dims.I * u.W, dims.P, u, dir.d_W_hh, j, call.adds);
      if (dir.d_b) unpack_gates(lines + (dims.I + dims.P) * u.W, 1, u, dir.d_b, j, call.adds);
    }
    for (i64 p = 0; dir.d_W_hr && p < ws.hidden.panels; p++) {
      const Share rows = team.of(dims.P);
      const i64 W = i64(ws.hidden.width(p)) * LANES<T>, first = ws.hidden.first(p);
      const T* lines = sum_of(&GroupSpace<T, E>::d_Wr, first * dims.P + rows.begin * W,
                              (rows.end - rows.begin) * W);
      for (i64 k = rows.begin; k < rows.end; k++, lines += W)
        put(lines, dir.d_W_hr + k * dims.H + first, smaller(W, dims.H - first));
    }
    for (i64 k = 0; k < groups; k++) {
      const Rows of_group = rows_of_group<T, E>(call, k);
      const Share mine = team.of(of_group.count());
      for (i64 n = mine.begin; n < mine.end; n++) {
        const GroupSpace<T, E>& from = ws.group[k];
        const i64 b = of_group[n];
        if (dir.d_h0) copy(from.d_h + n * ws.output.padded, dir.d_h0 + b * dims.P, dims.P);
        if (dir.d_c0) copy(from.d_c + n * dims.H, dir.d_c0 + b * dims.H, dims.H);
      }
    }
    if (dir.d_peep && team.id == 0)
      put(sum_of(&GroupSpace<T, E>::d_peep, 0, 3 * dims.H), dir.d_peep, 3 * dims.H);
  }

  // n sums into the caller's array, or added to it.
  void put(const T* sums, T* to, i64 n) const {
    for (i64 k = 0; k < n; k++) to[k] = call.adds ? to[k] + sums[k] : sums[k];
  }

  // n sums from `at` on, those of the other groups added to the first group's.
  const T* sum_of(T* GroupSpace<T, E>::* sums, i64 at, i64 n) const {
    T* total = ws.group[0].*sums + at;
    for (i64 k = 1; k < groups; k++)
      for (i64 i = 0; i < n; i++) total[i] += (ws.group[k].*sums)[at + i];
    return total;
  }
};

template <class T, class E = T>
i64 backward_bytes(const BackwardCall<T>& call) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++) BackwardSpace<T, E>(call, d, carver);
  return carver.used;
}

// What the directions keep of d_x, on top of what is there: an input may feed both. In bfloat16 the
// sum, rounded, or that of the one direction.
template <class Space, class E, class T>
void add_inputs(const BackwardCall<T>& call, const Team& team) {
  Carver carver{call.workspace};
  const Sequence& seq = call.sequence;
  const i64 I = call.dims.I, D = call.dims.D;
  T* own[2] = {};
  for (i64 d = 0; d < D; d++) own[d] = Space(call, d, carver).own_d_x;
  if (!own[0] && !own[1]) return;
  team.meet();
  for (i64 t = 0; t < call.dims.T; t++)
    for (i64 b = team.id; b < seq.active(t); b += team.count) {
      const i64 at = (seq.token(t) + b) * I;
      if constexpr (IS_PAIR<E>)
        if (const auto& d_x = call.direction[0].brief_d_x; d_x.data) {
          T* const sum = own[0] + at;
          for (i64 n = 0; own[1] && n < I; n++) sum[n] += own[1][at + n];
          round_numbers(sum, I, d_x.at(seq, t, b));
          continue;
        }
      for (i64 d = 0; d < D; d++) {
        if (!own[d]) continue;
        T* d_x = call.direction[d].d_x.at(seq, t, b);
        for (i64 n = 0; n < I; n++) d_x[n] += own[d][at + n];
      }
    }
}

template <class T, class E = T>
void backward(BackwardCall<T>& call, int id, int count) {
  const Team everybody{id, count, call.barrier};
  const i64 groups = group_count<T, E>(call);
  each_direction<E>(call, everybody, call.barrier + 1, [&](i64 d, Team team) {
    Carver carver{call.workspace};
    for (i64 before = 0; before < d; before++) BackwardSpace<T, E>(call, before, carver);
    const BackwardSpace<T, E> space(call, d, carver, team.count);
    Backward<T, E>{call, call.direction[d], call.dims, space, space.units, team, groups}.run(
        d, call.barrier + 3 + d * GROUPS);
  });
  add_inputs<BackwardSpace<T, E>, E>(call, everybody);
}

}  // namespace gatewise::GATEWISE_ISA
