// A sequence, forward. One worker's part of one direction; equations (1) to (6) of docs/math.md.
//
// With enough rows a tile runs over x and then over h in one go ("fused"). With one to three rows a
// tile cannot keep the multiply-add units busy, and weights that the second-level cache does not
// hold had better be read less often: then W_ih x of several steps is computed first, and the
// recurrent tile starts from it. Both add in the same order: x first, then h, then bias.
#pragma once
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

// The workspace of one direction.
template <class T>
struct ForwardSpace {
  Units<T> units;
  Axis<T> out;  // the projection's output
  i64 input_tokens;
  T *Wx, *Wh, *bias;  // gate panels [J][I][W], [J][P][W], lines [J][W]
  T* Wr;              // [panels][H][width]
  T* hidden;          // (B, H) before the projection
  T* zeros;           // a state that is not given
  T* zx;              // [J][input_tokens][W]

  ForwardSpace(const ForwardCall<T>& call, bool projected, Carver& carver)
      : units(call.dims.H, CELLS[call.cell].cell.gates()),
        out(call.dims.P),
        input_tokens(larger(call.dims.B < FUSED_ROWS ? INPUT_TOKENS : PASS_TOKENS, call.dims.B)) {
    const Dims& d = call.dims;
    Wx = carver.take<T>(units.K * d.I);
    Wh = carver.take<T>(units.K * d.P);
    bias = carver.take<T>(units.K);
    Wr = projected ? carver.take<T>(out.padded * d.H) : nullptr;
    hidden = projected ? carver.take<T>(d.B * d.H) : nullptr;
    zeros = carver.take<T>(larger(d.P, d.H));
    zx = carver.take<T>(units.K * input_tokens);
  }
};

template <class T>
struct Forward {
  const ForwardCall<T>& call;
  const typename ForwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const Team team;
  const Pointwise<T> cell;
  const ForwardSpace<T> ws;
  const Units<T>& u;
  const Split split;
  const Rows own;
  const Share panels;
  const bool fused;
  const bool past;  // the tape would drive the weights out of the caches

  // large: bytes of weights above which their units are split.
  Forward(const ForwardCall<T>& call_, int d, Team team_, Carver& carver, i64 large = LARGE_WEIGHTS)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(d == 1),
        team(team_),
        cell(pointwise_of<T>(call_.cell)),
        ws(call_, call_.direction[d].w.W_hr, carver),
        u(ws.units),
        split(team, {0, 1, dims.B}, !seq.batch_sizes, weight_bytes() > large),
        own(split.rows),
        panels(split.panels(team, u.J)),
        fused(own.among(dims.B) >= FUSED_ROWS &&
              weight_bytes() / u.J * (panels.end - panels.begin) <= large),
        past(dims.H % LANES<T> == 0 && uintptr_t(dir.tape) % VECTOR_BYTES == 0 &&
             weight_bytes() > large && tape_bytes() >= LARGE_TAPE) {}

  i64 weight_bytes() const { return u.K * (dims.I + dims.P) * i64(sizeof(T)); }

  i64 tape_bytes() const { return dims.N * cell.cell.slots() * dims.H * i64(sizeof(T)); }

  i64 time(i64 step) const { return reverse ? dims.T - 1 - step : step; }

  void run() const {
    pack();
    start();
    team.meet();
    i64 ready = 0;  // steps whose W_ih x is there
    i64 first = 0;  // the first of them
    for (i64 s = 0; s < dims.T; s++) {
      const i64 t = time(s), rows = own.among(seq.active(t));
      if (rows == 0 && split.by_batch) continue;
      if (!fused && s >= ready) {
        first = s;
        ready = smaller(dims.T, s + larger(1, ws.input_tokens / dims.B));
        input_product(first, ready);
      }
      recurrent(t, rows, s - first);
      split.meet(team);
      if (ws.Wr) {
        project(t, rows);
        split.meet(team);
      }
      finish(t, rows);
    }
    settle();
  }

  void pack() const {
    const Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) {
      pack_gates(dir.w.W_ih, dims.I, u, ws.Wx, j);
      pack_gates(dir.w.W_hh, dims.P, u, ws.Wh, j);
      pack_bias(dir.w.b_ih, dir.w.b_hh, u, ws.bias, j);
    }
    if (ws.Wr) pack_projection();
    if (team.id == 0)
      for (i64 k = 0; k < larger(dims.P, dims.H); k++) ws.zeros[k] = T(0);
  }

  // W_hr (P, H) as [panels of P][H][width]: rows become lanes, as with one gate and no groups.
  void pack_projection() const {
    constexpr int L = LANES<T>;
    const Share mine = team.of(ws.out.panels);
    for (i64 p = mine.begin; p < mine.end; p++) {
      T* panel = ws.Wr + ws.out.first(p) * dims.H;
      const i64 W = i64(ws.out.width(p)) * L;
      for (i64 k = 0; k < dims.H; k++)
        for (i64 n = 0; n < W; n++) {
          const i64 row = ws.out.first(p) + n;
          panel[k * W + n] = row < dims.P ? dir.w.W_hr[row * dims.H + k] : T(0);
        }
    }
  }

  // The running cell state starts as c0.
  void start() const {
    if (!dir.c_n) return;
    for (i64 k = 0; k < own.among(dims.B); k++) {
      const i64 b = own[k];
      for (i64 n = unit(panels.begin); n < unit(panels.end); n++)
        dir.c_n[b * dims.H + n] = dir.c0 ? dir.c0[b * dims.H + n] : T(0);
    }
  }
  i64 unit(i64 panel) const { return smaller(dims.H, panel * u.U); }

  // W_ih x for my rows and panels of the steps first .. last-1: in tiles over rows where there are
  // enough, a panel for all the steps; else in tiles over steps of one sequence.
  void input_product(i64 first, i64 last) const {
    if (own.among(dims.B) >= FUSED_ROWS) {
      for (i64 j = panels.begin; j < panels.end; j++)
        for (i64 s = first; s < last; s++) {
          const i64 t = time(s), b = own.first;
          product<T>(
              own.among(seq.active(t)), u.vectors,
              {{{call.x.at(seq, t, b), call.x.row * own.step}, ws.Wx + j * dims.I * u.W, dims.I}},
              {}, {zx(j, (s - first) * dims.B + b), own.step * u.W});
        }
      return;
    }
    for (i64 k = 0; k < own.among(dims.B); k++) {
      const i64 b = own[k];
      for (i64 s = first, end; s < last; s = end) {
        // Tokens of one sequence lie at equal distances while the same number of sequences goes on.
        for (end = s + 1; end < last && seq.active(time(end)) == seq.active(time(s));) end++;
        if (b >= seq.active(time(s))) continue;
        const T* x = call.x.at(seq, time(s), b);
        const i64 apart = end - s > 1 ? call.x.at(seq, time(s + 1), b) - x : 0;
        for (i64 j = panels.begin; j < panels.end; j++)
          product<T>(end - s, u.vectors, {{{x, apart}, ws.Wx + j * dims.I * u.W, dims.I}}, {},
                     {zx(j, (s - first) * dims.B + b), dims.B * u.W});
      }
    }
  }
  T* zx(i64 j, i64 at) const { return ws.zx + (j * ws.input_tokens + at) * u.W; }

  // Rows of one step that belong together: the first `known` of mine were there one step back
  // (theirs is h(t-1) in the output); the others begin here, from the initial state.
  void recurrent(i64 t, i64 rows, i64 step_of_input) const {
    const i64 back = reverse ? t + 1 : t - 1, known = smaller(rows, own.among(seq.active(back)));
    if (known)
      rows_of_step(t, 0, known, step_of_input,
                   {dir.y.at(seq, back, own.first), dir.y.row * own.step});
    if (known < rows) rows_of_step(t, known, rows, step_of_input, initial(own[known]));
  }
  Lines<const T> initial(i64 b) const {
    return dir.h0 ? Lines<const T>{dir.h0 + b * dims.P, own.step * dims.P}
                  : Lines<const T>{ws.zeros, 0};
  }

  // My rows begin .. end-1 of step t; h begins at row `begin`.
  void rows_of_step(i64 t, i64 begin, i64 end, i64 step_of_input, Lines<const T> h) const {
    alignas(64) T z[ROW_BLOCK * NV * LANES<T>];
    const i64 first = own[begin], apart = own.step;
    for (i64 done = 0; begin + done < end; done += ROW_BLOCK) {
      const i64 rows = smaller(ROW_BLOCK, end - begin - done), b = first + done * apart;
      const i64 most = rows == 1 ? 2 : 1;  // one row: two panels at once
      const i64 visits = ceil_div(panels.end - panels.begin, most);
      for (i64 visit = 0; visit < visits; visit++) {
        // Up and down in turn: the panels that the last step read last are still in the cache.
        const i64 j = panels.begin + most * (t % 2 ? visits - 1 - visit : visit);
        const i64 count = smaller(most, panels.end - j);
        const Lines<const T> x{call.x.at(seq, t, b), call.x.row * apart};
        const Stretch<T> from_x{x, ws.Wx + j * dims.I * u.W, dims.I, 1, 0, dims.I * u.W},
            from_h{h.from(done), ws.Wh + j * dims.P * u.W, dims.P, 1, 0, dims.P * u.W};
        const Lines<T> out{z, u.W};
        const i64 at = step_of_input * dims.B + b;
        const auto fetch = [&](i64 row, i64 n) { prefetch_rows(t, b + row * apart, n, j); };
        if (count == 2) fetch(0, 1);
        if (count == 2)
          fused ? product_of_two<T>(u.vectors, {from_x, from_h}, {}, out)
                : product_of_two<T>(u.vectors, {from_h}, {zx(j, at), ws.input_tokens * u.W}, out);
        else
          fused ? product<T>(rows, u.vectors, {from_x, from_h}, {}, out, fetch)
                : product<T>(rows, u.vectors, {from_h}, {zx(j, at), apart * u.W}, out, fetch);
        for (i64 p = 0; p < count; p++) {
          const i64 panel = j + p, unit = panel * u.U;
          cell.forward(u, {rows, panel, out.from(p), ws.bias + panel * u.W, dir.w.peep,
                           cell_rows(b).right(unit), hidden_rows(t, b).right(unit),
                           tape_rows(t, b).right(unit), past});
        }
      }
    }
  }
  Lines<T> cell_rows(i64 b) const {
    return dir.c_n ? Lines<T>{dir.c_n + b * dims.H, own.step * dims.H} : Lines<T>{};
  }
  Lines<T> hidden_rows(i64 t, i64 b) const {
    return ws.Wr ? Lines<T>{ws.hidden + b * dims.H, own.step * dims.H}
                 : Lines<T>{dir.y.at(seq, t, b), own.step * dir.y.row};
  }
  Lines<T> tape_rows(i64 t, i64 b) const {
    const i64 token = cell.cell.slots() * dims.H;
    return dir.tape ? Lines<T>{dir.tape + (seq.token(t) + b) * token, own.step * token}
                    : Lines<T>{};
  }

  // What the cell will write behind the product is fetched while the product runs.
  void prefetch_rows(i64 t, i64 b, i64 rows, i64 j) const {
    const Lines<T> tape = tape_rows(t, b).right(j * u.U), h = hidden_rows(t, b).right(j * u.U);
    for (i64 r = 0; r < rows; r++) {
      prefetch_write(h[r]);
      for (i64 slot = 0; tape.data && !past && slot < cell.cell.slots(); slot++)
        prefetch_write(tape[r] + slot * dims.H);
    }
  }

  // y = hidden W_hr^T
  void project(i64 t, i64 rows_now) const {
    alignas(64) T block[ROW_BLOCK * NV * LANES<T>];
    const Share mine = split.panels(team, ws.out.panels);
    for (i64 p = mine.begin; p < mine.end; p++) {
      const int width = ws.out.width(p);
      const i64 first = ws.out.first(p), W = i64(width) * LANES<T>, n = smaller(dims.P - first, W);
      for (i64 k = 0; k < rows_now; k += ROW_BLOCK) {
        const i64 rows = smaller(ROW_BLOCK, rows_now - k);
        const Lines<const T> hidden{ws.hidden + own[k] * dims.H, own.step * dims.H};
        product<T>(rows, width, {{hidden, ws.Wr + first * dims.H, dims.H}}, {}, {block, W});
        for (i64 r = 0; r < rows; r++) copy(block + r * W, dir.y.at(seq, t, own[k + r]) + first, n);
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
      if (b >= next) copy(dir.y.at(seq, t, b), dir.h_n + b * dims.P, dims.P);
    }
  }

  static void copy(const T* from, T* to, i64 n) {
    __builtin_memcpy(to, from, size_t(n) * sizeof(T));
  }
};

template <class T>
i64 forward_bytes(const ForwardCall<T>& call, int) {
  Carver carver{nullptr};
  for (i64 d = 0; d < call.dims.D; d++) ForwardSpace<T>(call, call.direction[d].w.W_hr, carver);
  return carver.used;
}

template <class T>
void forward(ForwardCall<T>& call, int id, int count) {
  side_by_side(call.dims.D, {id, count, call.barrier}, call.barrier + 1, [&](i64 d, Team team) {
    Carver carver{call.workspace};
    for (i64 before = 0; before < d; before++)  // skip the space of the directions before this one
      ForwardSpace<T>(call, call.direction[before].w.W_hr, carver);
    Forward<T>(call, int(d), team, carver).run();
  });
}

}  // namespace gatewise::GATEWISE_ISA
