// A sequence, forward. One worker's part of one direction; equations (1) to (6) of docs/math.md.
//
// With enough rows a tile runs over x and then over h in one go ("fused"). With one to three rows a
// tile cannot keep the multiply-add units busy, and weights that the second-level cache does not
// hold had better be read less often: then W_ih x of several steps is computed first, and the
// recurrent tile starts from it. Both add in the same order: x first, then h, then bias.
//
// Where the operands E of the products are pairs (bf16.h), x is rounded some steps ahead, and h as
// the cell finds it; K are the numbers of the tape.
#pragma once
#include "dots.h"
#include "pack.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 FUSED_ROWS = 4;  // rows a worker needs for the fused tile
inline constexpr i64 ROW_BLOCK =
    48;  // rows between two visits of the cell: z of a panel stays in L1
inline constexpr i64 INPUT_TOKENS = 48;  // tokens whose W_ih x is computed at once otherwise
inline constexpr i64 PASS_TOKENS = 192;  // the same, for a panel of W_ih that is used by many rows
inline constexpr i64 LARGE_WEIGHTS = i64(3) << 19;  // bytes that a worker's L2 does not hold
inline constexpr i64 LARGE_TAPE = i64(8) << 20;     // bytes that drive everything else out of it
inline constexpr i64 SHARED_PANELS = 4;             // fewest of a worker: fewer are unfair shares

// Whether the weights are read as they lie (dots.h): adding up the lanes of a dot product, of x and
// of h, costs each token as much as packing 16 numbers of each weight row.
template <class E, class T>
bool is_unpacked(const ForwardCall<T>& call) {
  return !IS_PAIR<E> && !call.in_parts && 16 * call.dims.N <= call.dims.I + call.dims.P;
}

// The workspace of one direction.
template <class T, class E>
struct ForwardSpace {
  Units<T> units;
  Axis<T> out;  // the projection's output
  i64 input_tokens;
  E *Wx, *Wh;    // gate panels [J][I][W], [J][P][W]
  T* bias;       // lines [J][W]
  E* Wr;         // [panels][H][width]
  T* c;          // rows of H, each worker's in one piece; the running cell state
  E* hidden;     // rows of H, the same, before the projection
  T* zeros;      // a state that is not given
  T* zx;         // [J][input_tokens][W], each worker's tokens in one piece
  Taken* taken;  // of every worker
  E* x;     // (input_tokens, I), the same; rounded; null where operands are numbers, like the next
  E* h[2];  // rows of P, each worker's in one piece, rounded: of the even and the odd steps

  ForwardSpace(const ForwardCall<T>& call, bool projected, i64 workers, Carver& carver)
      : units(call.dims.H, CELLS[call.cell].cell.gates()),
        out(call.dims.P),
        input_tokens(larger(call.dims.B < FUSED_ROWS ? INPUT_TOKENS : PASS_TOKENS, call.dims.B)) {
    const Dims& d = call.dims;
    const i64 K = is_unpacked<E>(call) ? 0 : units.K;
    Wx = carver.take<E>(K * operands<E>(d.I));
    Wh = carver.take<E>(K * operands<E>(d.P));
    bias = carver.take<T>(units.K);
    Wr = projected ? carver.take<E>(out.padded * operands<E>(d.H)) : nullptr;
    carver.take<unsigned char>(APART);  // all read the weights, and one writes what comes next
    const i64 apart = workers * APART / i64(sizeof(E));
    const auto rows = [&](i64 size) { return apart + d.B * size; };
    c = carver.take<T>(rows(d.H));
    hidden = projected ? carver.take<E>(rows(room<E>(d.H))) : nullptr;
    zeros = carver.take<T>(larger(d.P, d.H));
    zx = carver.take<T>(units.K * input_tokens);
    taken = carver.take<Taken>(MOST_DEALERS);
    x = IS_PAIR<E> ? carver.take<E>(apart + input_tokens * room<E>(d.I)) : nullptr;
    for (E*& of : h) of = IS_PAIR<E> ? carver.take<E>(rows(room<E>(d.P))) : nullptr;
  }
};

template <class T, class E, class K>
struct Forward {
  const ForwardCall<T>& call;
  const typename ForwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const Team team;
  const Pointwise<T, E, K> cell;
  const ForwardSpace<T, E> ws;
  const Units<T>& u;
  const Split split;
  const Rows own;
  const Share panels;
  const Dealer dealer;
  const TapeOrder order;
  const Rows part[GROUPS];  // my rows by the groups of the tape, or all in the first
  const bool unpacked;
  const bool fused;
  const i64 steps_ahead;  // of which x is rounded, or W_ih x computed, at once
  const bool past;        // the tape would drive the weights out of the caches
  const bool far;         // of what each step reads and writes, see team.h

  Forward(const ForwardCall<T>& call_, int d, Team team_, i64 workers, Carver& carver)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(dir.reverse),
        team(team_),
        cell(pointwise_of<T, E, K>(call_.cell)),
        ws(call_, call_.direction[d].w.W_hr, workers, carver),
        u(ws.units),
        split(team, {0, dims.B}, seq, call_.least_rows, weights_are_shared()),
        own(split.rows),
        panels(split.panels(team, u.J)),
        dealer(split.dealer(team, ws.taken)),
        order(tape_order<E>(call_)),
        part{own.in(group_rows(seq, 0, order.groups)), own.in(group_rows(seq, 1, order.groups))},
        unpacked(is_unpacked<E>(call)),
        fused(!unpacked && own.among(dims.B) >= FUSED_ROWS && share_bytes() <= LARGE_WEIGHTS),
        steps_ahead(larger(1, ws.input_tokens / dims.B)),
        past(!IS_PAIR<E> && dims.H % LANES<T> == 0 && uintptr_t(dir.tape) % VECTOR_BYTES == 0 &&
             weight_bytes() > LARGE_WEIGHTS && tape_bytes() >= LARGE_TAPE),
        far(split.by_batch &&
            tokens_are_far<E>(dims, tape_of<K>(dir) ? cell.cell.slots() * dims.H : 0)) {}

  i64 weight_bytes() const { return u.K * operand_bytes<E>(dims.I + dims.P); }

  // Whether each worker had better read a part of the weights, though workers then wait for each
  // other at every step: the whole is more than a second-level cache, or than that of this machine.
  bool weights_are_shared() const {
    const i64 bytes = weight_bytes();
    return bytes > LARGE_WEIGHTS ||
           (call.near && bytes > second_level_bytes && u.J >= SHARED_PANELS * team.count);
  }

  // The weights that a worker reads; of the largest share, since all who meet must decide alike.
  i64 share_bytes() const {
    return weight_bytes() / u.J * (split.by_batch ? u.J : ceil_div(u.J, team.count));
  }

  i64 tape_bytes() const { return dims.N * cell.cell.slots() * dims.H * i64(sizeof(T)); }

  i64 time(i64 step) const { return reverse ? dims.T - 1 - step : step; }

  void run() const {
    pack();
    start();
    team.meet();
    i64 ready = 0;  // steps whose x is rounded and whose W_ih x is there
    i64 first = 0;  // the first of them
    for (i64 s = 0; s < dims.T; s++) {
      const i64 t = time(s), rows = own.among(seq.active(t));
      if (rows == 0 && split.by_batch) continue;
      if ((!fused || IS_PAIR<E>) && s >= ready) {
        first = s;
        ready = smaller(dims.T, s + steps_ahead);
        if constexpr (IS_PAIR<E>) round_inputs(first, ready);
        if (!fused) input_product(first, ready);
      }
      if (far && s + 1 < dims.T) fetch_step(time(s + 1));
      recurrent(t, rows, s - first);
      split.meet(team);
      if (ws.Wr) {
        project(t, rows);
        split.meet(team);
      }
      finish(t, rows);
    }
    end();
    settle();
  }

  void pack() const {
    const Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) {
      if (!unpacked) {
        pack_gates(dir.w.W_ih, dims.I, u, ws.Wx, j);
        pack_gates(dir.w.W_hh, dims.P, u, ws.Wh, j);
      }
      pack_bias(dir.w.b_ih, dir.w.b_hh, u, ws.bias, j);
    }
    const Share outputs = team.of(ws.Wr ? ws.out.panels : 0);
    for (i64 p = outputs.begin; p < outputs.end; p++)
      pack_rows(dir.w.W_hr, dims.H, ws.out, ws.Wr, p);
    if (team.id == 0)
      for (i64 k = 0; k < larger(dims.P, dims.H); k++) ws.zeros[k] = T(0);
  }

  // The running cell state starts as c0; and the rounded states as h0, until a row's first step.
  void start() const {
    dealer.start();
    if constexpr (IS_PAIR<E>) {
      const Share mine = my_part(own.among(dims.B));
      for (i64 k = mine.begin; k < mine.end; k++) {
        const i64 b = own[k];
        for (E* h : ws.h)
          if (dir.h0)
            round_row(dir.h0 + b * dims.P, dims.P, as_numbers(rounded(h, dims.P, own)[k]));
          else
            clear(rounded(h, dims.P, own)[k], room<E>(dims.P));
        if (ws.Wr)  // for what is behind the last number
          clear(rounded(ws.hidden, dims.H, own)[k], room<E>(dims.H));
      }
    }
    if (!dir.c_n) return;
    const Lines<T> c = rows_from(ws.c, dims.H, own);
    for (i64 k = 0; k < own.count(); k++) {
      const i64 b = own[k];
      for (i64 n = unit(panels.begin); n < unit(panels.end); n++)
        c[k][n] = dir.c0 ? dir.c0[b * dims.H + n] : T(0);
    }
  }
  // c_n, from the rows and units that I have started.
  void end() const {
    for (i64 k = 0; dir.c_n && k < own.count(); k++) {
      const i64 b = own[k], first = unit(panels.begin);
      copy(rows_from(ws.c, dims.H, own)[k] + first, dir.c_n + b * dims.H + first,
           unit(panels.end) - first);
    }
  }
  // Of my rows those that I round: where all have the same rows, a part.
  Share my_part(i64 rows) const { return split.by_batch ? Share{0, rows} : team.of(rows); }

  // x of the steps first .. last-1 as the products want it.
  void round_inputs(i64 first, i64 last) const {
    for (i64 s = first; s < last; s++) {
      const i64 t = time(s);
      const Share mine = my_part(own.among(seq.active(t)));
      for (i64 k = mine.begin; k < mine.end; k++) {
        Bf16* const to = as_numbers(rounded_inputs(s - first, own[k]).data);
        if (dir.brief_x.data)
          round_row(dir.brief_x.at(seq, t, own[k]), dims.I, to);
        else
          round_row(dir.x.at(seq, t, own[k]), dims.I, to);
      }
    }
    split.meet(team);
  }

  // x of step t, the at-th since inputs were rounded: the rows from b on.
  Lines<const E> inputs(i64 t, i64 at, i64 b) const {
    if constexpr (IS_PAIR<E>)
      return rounded_inputs(at, b);
    else
      return {dir.x.at(seq, t, b), dir.x.row};
  }
  Lines<E> rounded_inputs(i64 at, i64 b) const {
    return Lines<E>{ws.x + apart<E>(), room<E>(dims.I)}.from(place(at, b));
  }
  // The place of row b in the at-th of the steps ahead.
  i64 place(i64 at, i64 b) const {
    return own.first * steps_ahead + at * own.count() + b - own.first;
  }
  // Where mine begin in an array of the workspace, behind so many rows of the workers before me.
  template <class X>
  i64 apart() const {
    return split.by_batch ? team.id * APART / i64(sizeof(X)) : 0;
  }

  i64 unit(i64 panel) const { return smaller(dims.H, panel * u.U); }

  // W_ih x for my rows of the steps first .. last-1: in tiles over rows where there are enough, a
  // panel for all the steps; else in tiles over steps of one sequence.
  void input_product(i64 first, i64 last) const {
    const bool by_steps = own.count() < FUSED_ROWS;
    dealer.deal(u.J, 1, false, [&](i64, i64 j, i64 next) {
      by_steps ? input_product_of_rows(j, first, last)
               : input_product_of_steps(j, next, first, last);
    });
    split.meet(team);
  }
  void input_product_of_steps(i64 j, i64 next, i64 first, i64 last) const {
    const i64 I = operands<E>(dims.I), b = own.first;
    for (i64 s = first; s < last; s++) {
      const i64 t = time(s), rows = own.among(seq.active(t));
      input_product(j, rows, inputs(t, s - first, b), {zx(j, place(s - first, b)), u.W},
                    ahead(ws.Wx, I, next, rows * (last - first)).behind(rows * (s - first), I));
    }
  }
  void input_product_of_rows(i64 j, i64 first, i64 last) const {
    for (i64 b = own.first; b < own.end; b++) {
      for (i64 s = first, end; s < last; s = end) {
        // Tokens of one sequence lie at equal distances while the same number of sequences goes on.
        for (end = s + 1; end < last && seq.active(time(end)) == seq.active(time(s));) end++;
        if (b >= seq.active(time(s))) continue;
        const E* x = inputs(time(s), s - first, b).data;
        const i64 apart = end - s > 1 ? inputs(time(s + 1), s + 1 - first, b).data - x : 0;
        input_product(j, end - s, {x, apart}, {zx(j, place(s - first, b)), own.count() * u.W});
      }
    }
  }
  void input_product(i64 j, i64 rows, Lines<const E> x, Lines<T> out, Ahead ahead = {}) const {
    const i64 I = operands<E>(dims.I);
    if constexpr (!IS_PAIR<E>)
      if (unpacked) return dots<T>(u, j, rows, {{x, {dir.w.W_ih, I}, I}}, {}, out);
    product<E>(rows, u.vectors, {{x, ws.Wx + j * I * u.W, I, 1, 0, 0, ahead}}, {}, out);
  }
  T* zx(i64 j, i64 at) const { return ws.zx + (j * ws.input_tokens + at) * u.W; }

  // (The tape is written in one piece, and rows that are rounded ahead are read in one.)
  void fetch_step(i64 t) const {
    for (i64 k = 0; k < order.groups; k++) {
      const Rows& of = part[k];
      const i64 rows = of.among(seq.active(t));
      if (rows == 0) continue;
      if constexpr (!IS_PAIR<E>)
        if (fused) fetch_rows(inputs(t, 0, of.first), rows, dims.I);
      if (!ws.Wr) fetch_rows(hidden_rows(t, of), rows, dims.P);
      fetch_rows(brief_rows(t, of), rows, dims.P);
    }
  }

  Lines<T> cell_rows(const Rows& of) const {
    return dir.c_n ? rows_from(ws.c, dims.H, of) : Lines<T>{};
  }
  // Where the cell writes h: the output, or what is to be projected. Line k is that of the k-th of
  // these rows, as in the next.
  Lines<T> hidden_rows(i64 t, const Rows& of) const {
    if constexpr (!IS_PAIR<E>)
      if (ws.Wr) return rows_from(ws.hidden, dims.H, of);
    if (ws.Wr || !dir.y.data) return {};
    return {dir.y.at(seq, t, of.first), dir.y.row};
  }
  Lines<Number<E>> brief_rows(i64 t, const Rows& of) const {
    if constexpr (IS_PAIR<E>)
      if (dir.brief_y.data && !ws.Wr) return {dir.brief_y.at(seq, t, of.first), dir.brief_y.row};
    return {};
  }
  Lines<Number<E>> rounded_rows(i64 t, const Rows& of) const {
    if constexpr (IS_PAIR<E>) {
      const Lines<E> to = ws.Wr ? rounded(ws.hidden, dims.H, of) : rounded(ws.h[t % 2], dims.P, of);
      return {as_numbers(to.data), to.stride * Operand<E>::numbers};
    }
    return {};
  }
  Lines<K> tape_rows(i64 t, const Rows& of) const {
    const i64 token = cell.cell.slots() * dims.H;
    K* tape = tape_of<K>(dir);
    return tape ? Lines<K>{tape + order.token(t, of.first) * token, token} : Lines<K>{};
  }

  // Step t. The first `known` of my rows were there one step back (theirs is h(t-1) in the output);
  // the others begin here, from the initial state. Up and down in turn: the panels that the last
  // step read last are still in the cache.
  void recurrent(i64 t, i64 rows, i64 step_of_input) const {
    const i64 back = reverse ? t + 1 : t - 1;
    const i64 most = rows == 1 && !unpacked ? 2 : 1;  // one row: two panels at once
    dealer.deal(ceil_div(u.J, most), 1, t % 2, [&](i64, i64 visit, i64 next) {
      const i64 j = most * visit, count = smaller(most, u.J - j);
      for (i64 k = 0; k < order.groups; k++) {
        const Rows& of = part[k];
        const i64 now = of.among(seq.active(t)), known = smaller(now, of.among(seq.active(back)));
        const auto of_rows = [&](i64 begin, i64 end, Lines<const E> h) {
          rows_of_step(j, count, most * next, t, of, begin, end, step_of_input, h);
        };
        if constexpr (IS_PAIR<E>) {  // either way it lies rounded in one place
          of_rows(0, now, rounded(ws.h[(t + 1) % 2], dims.P, of));
        } else {
          if (known) of_rows(0, known, {dir.y.at(seq, back, of.first), dir.y.row});
          if (known < now) of_rows(known, now, initial(of[known]));
        }
      }
    });
  }
  Lines<const E> initial(i64 b) const {
    return dir.h0 ? Lines<const E>{dir.h0 + b * dims.P, dims.P} : Lines<const E>{ws.zeros, 0};
  }
  // Some of my rows, in an array of the workspace: each worker's lie apart from those of the
  // others.
  template <class X>
  Lines<X> rows_from(X* rows, i64 size, const Rows& of) const {
    return {rows + apart<X>() + of.first * size, size};
  }
  Lines<E> rounded(E* rows, i64 size, const Rows& of) const {
    return rows_from(rows, room<E>(size), of);
  }

  // The panel that is read next, fetched while so many rows use this one; if the weights that a
  // worker reads stay in the second-level cache, nothing.
  Ahead ahead(const E* packed, i64 length, i64 next, i64 rows) const {
    if (fused || share_bytes() <= LARGE_WEIGHTS) return {};
    const i64 size = length * u.W;
    return Ahead::of(packed + next * size, size * i64(sizeof(E)), rows, length);
  }

  // `count` panels, from j on, of some of my rows in step t, the begin-th to that before the
  // end-th; h is that of the begin-th on.
  void rows_of_step(i64 j, i64 count, i64 next, i64 t, const Rows& of_part, i64 begin, i64 end,
                    i64 step_of_input, Lines<const E> h) const {
    alignas(64) T z[ROW_BLOCK * NV * LANES<T>];
    const i64 I = operands<E>(dims.I), P = operands<E>(dims.P);
    for (i64 first = begin; first < end; first += ROW_BLOCK) {
      const i64 rows = smaller(ROW_BLOCK, end - first);
      const Lines<const E> h_rows = h.from(first - begin);
      const Stretch<E> of[] = {
          {inputs(t, step_of_input, of_part[first]), ws.Wx + j * I * u.W, I, 1, 0, I * u.W},
          {h_rows, ws.Wh + j * P * u.W, P, 1, 0, P * u.W, ahead(ws.Wh, P, next, rows)}};
      const int stretches = fused ? 2 : 1;
      const Stretch<E>* from = of + 2 - stretches;
      const Lines<T> out{z, u.W};
      Lines<const T> in;
      if (!fused)
        in = {zx(j, place(step_of_input, of_part[first])),
              (count == 2 ? ws.input_tokens : 1) * u.W};
      if (unpacked)
        recurrent_dots(j, rows, h_rows, in, out);
      else
        count == 2 ? product_of_two<E>(u.vectors, stretches, from, in, out)
                   : product<E>(rows, u.vectors, stretches, from, in, out);
      for (i64 p = 0; p < count; p++) {
        const i64 panel = j + p;
        const auto units = [&](auto lines) { return lines.from(first).right(panel * u.U); };
        cell.forward(u, {rows, panel, out.from(p), ws.bias + panel * u.W, dir.w.peep,
                         units(cell_rows(of_part)), units(hidden_rows(t, of_part)),
                         units(tape_rows(t, of_part)), past, units(rounded_rows(t, of_part)),
                         units(brief_rows(t, of_part))});
      }
    }
  }
  void recurrent_dots(i64 j, i64 rows, Lines<const E> h, Lines<const T> in, Lines<T> out) const {
    if constexpr (!IS_PAIR<E>) dots<T>(u, j, rows, {{h, {dir.w.W_hh, dims.P}, dims.P}}, in, out);
  }
  // y = hidden W_hr^T
  void project(i64 t, i64 rows_now) const {
    alignas(64) T block[ROW_BLOCK * NV * LANES<T>];
    const Share mine = split.panels(team, ws.out.panels);
    const i64 H = operands<E>(dims.H);
    for (i64 p = mine.begin; p < mine.end; p++) {
      const int width = ws.out.width(p);
      const i64 first = ws.out.first(p), W = i64(width) * LANES<T>, n = smaller(dims.P - first, W);
      for (i64 k = 0; k < rows_now; k += ROW_BLOCK) {
        const i64 rows = smaller(ROW_BLOCK, rows_now - k);
        product<E>(rows, width, {{rounded(ws.hidden, dims.H, own).from(k), ws.Wr + first * H, H}},
                   {}, {block, W});
        for (i64 r = 0; r < rows; r++) {
          const i64 b = own[k + r];
          const T* const from = block + r * W;
          if (dir.y.data) copy(from, dir.y.at(seq, t, b) + first, n);
          if constexpr (IS_PAIR<E>) {
            round_row(from, n, as_numbers(rounded(ws.h[t % 2], dims.P, own)[k + r]) + first);
            if (dir.brief_y.data) round_numbers(from, n, dir.brief_y.at(seq, t, b) + first);
          }
        }
      }
    }
  }

  // h_n of the rows for which t was the last step. The second split meets before: all of y is
  // there.
  void finish(i64 t, i64 rows_now) const {
    const i64 next = seq.active(reverse ? t - 1 : t + 1);
    if (!split.by_batch && team.id != 0) return;
    if (reverse && t > 0) return;  // right to left every sequence ends at step 0
    for (i64 k = 0; k < rows_now; k++) {
      const i64 b = own[k];
      if (b < next) continue;
      T* const h_n = dir.h_n + b * dims.P;
      if (dir.brief_y.data)
        widen_row(dir.brief_y.at(seq, t, b), dims.P, h_n);
      else
        copy(dir.y.at(seq, t, b), h_n, dims.P);
    }
  }
};

template <class T, class E = T>
i64 forward_bytes(const ForwardCall<T>& call, i64 workers) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++)
    ForwardSpace<T, E>(call, call.direction[d].w.W_hr, workers, carver);
  return carver.used;
}

template <class T, class E = T, class K = Number<E>>
void forward(ForwardCall<T>& call, int id, int count) {
  const Team everybody{id, count, call.barrier};
  each_direction<E>(call, everybody, call.barrier + 1, [&](i64 d, Team team) {
    Carver carver{call.workspace};
    for (i64 before = 0; before < d; before++)  // skip the space of the directions before this one
      ForwardSpace<T, E>(call, call.direction[before].w.W_hr, count, carver);
    Forward<T, E, K>(call, int(d), team, count, carver).run();
  });
}

}  // namespace gatewise::GATEWISE_ISA
