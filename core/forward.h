// A sequence, forward. One worker's part of one direction; equations (1) to (6) of docs/math.md.
//
// With enough rows a tile runs over x and then over h in one go ("fused"). With one to three rows a
// tile cannot keep the multiply-add units busy, so W_ih x of several steps is computed first, in
// tiles over steps; the recurrent tile then starts from it. Both add in the same order: x first,
// then h, then bias.
#pragma once
#include "pack.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 FUSED_ROWS = 4;     // rows a worker needs for the fused tile
inline constexpr i64 INPUT_TOKENS = 48;  // tokens whose W_ih x is computed at once otherwise

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
        input_tokens(larger(INPUT_TOKENS, call.dims.B)) {
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
  const Share panels;
  const bool fused;

  Forward(const ForwardCall<T>& call_, int d, Team team_, Carver& carver)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(d == 1),
        team(team_),
        cell(pointwise_of<T>(call_.cell)),
        ws(call_, call_.direction[d].w.W_hr, carver),
        u(ws.units),
        split(team, dims.B),
        panels(split.panels(team, u.J)),
        fused(split.rows(dims.B) >= FUSED_ROWS) {}

  i64 time(i64 step) const { return reverse ? dims.T - 1 - step : step; }

  void run() const {
    pack();
    start();
    team.meet();
    i64 ready = 0;  // steps whose W_ih x is there
    i64 first = 0;  // the first of them
    for (i64 s = 0; s < dims.T; s++) {
      const i64 t = time(s), rows = split.rows(seq.active(t));
      if (rows == 0 && split.by_batch) continue;
      if (!fused && s >= ready) {
        first = s;
        ready = smaller(dims.T, s + larger(1, INPUT_TOKENS / dims.B));
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
    for (i64 k = 0; k < split.rows(dims.B); k++) {
      const i64 b = split.row(k);
      for (i64 n = unit(panels.begin); n < unit(panels.end); n++)
        dir.c_n[b * dims.H + n] = dir.c0 ? dir.c0[b * dims.H + n] : T(0);
    }
  }
  i64 unit(i64 panel) const { return smaller(dims.H, panel * u.U); }

  // W_ih x for my rows and panels of the steps first .. last-1.
  void input_product(i64 first, i64 last) const {
    struct Token {
      i64 t, b, at;
    };
    Token tokens[INPUT_TOKENS];  // at most FUSED_ROWS - 1 rows of INPUT_TOKENS / B steps
    i64 count = 0;
    for (i64 s = first; s < last; s++)
      for (i64 k = 0; k < split.rows(seq.active(time(s))); k++)
        tokens[count++] = {time(s), split.row(k), (s - first) * dims.B + split.row(k)};
    for (i64 j = panels.begin; j < panels.end; j++)
      for_tiles(count, [&](i64 m, i64 rows) {
        const T* x[MR];
        T* z[MR];
        for (i64 r = 0; r < rows; r++) {
          const Token& k = tokens[m + r];
          x[r] = call.x.at(seq, k.t, k.b);
          z[r] = zx(j, k.at);
        }
        const Stretch<T> stretch{x, ws.Wx + j * dims.I * u.W, 1, dims.I, 0};
        choose_tile<T>(rows, u.vectors)(1, &stretch, nullptr, z);
      });
  }
  T* zx(i64 j, i64 at) const { return ws.zx + (j * ws.input_tokens + at) * u.W; }

  // h(t-1) of row b: in the output one step back, or the initial state.
  const T* h_before(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    if (b < seq.active(back)) return dir.y.at(seq, back, b);
    return dir.h0 ? dir.h0 + b * dims.P : ws.zeros;
  }

  void recurrent(i64 t, i64 rows_now, i64 step_of_input) const {
    const i64 S = cell.cell.slots();
    for (i64 j = panels.begin; j < panels.end; j++)
      for_tiles(rows_now, [&](i64 m, i64 rows) {
        alignas(64) T z[MR * NV * LANES<T>];
        const T *x[MR], *h[MR], *in[MR];
        T* out[MR];
        ForwardRows<T> p;
        p.rows = rows;
        p.j = j;
        p.z = z;
        p.bias = ws.bias + j * u.W;
        p.peep = dir.w.peep;
        p.tape[0] = nullptr;
        for (i64 r = 0; r < rows; r++) {
          const i64 b = split.row(m + r);
          x[r] = call.x.at(seq, t, b);
          h[r] = h_before(t, b);
          in[r] = fused ? nullptr : zx(j, step_of_input * dims.B + b);
          out[r] = z + r * u.W;
          p.c[r] = dir.c_n ? dir.c_n + b * dims.H + j * u.U : nullptr;
          p.h[r] = (ws.Wr ? ws.hidden + b * dims.H : dir.y.at(seq, t, b)) + j * u.U;
          if (dir.tape) {
            p.tape[r] = dir.tape + (seq.token(t) + b) * S * dims.H + j * u.U;
            for (i64 k = 0; k < S; k++) prefetch_write(p.tape[r] + k * dims.H);
          }
          prefetch_write(p.h[r]);
        }
        const Stretch<T> stretch[2] = {{x, ws.Wx + j * dims.I * u.W, 1, dims.I, 0},
                                       {h, ws.Wh + j * dims.P * u.W, 1, dims.P, 0}};
        const Tile<T> run = choose_tile<T>(rows, u.vectors);
        fused ? run(2, stretch, nullptr, out) : run(1, stretch + 1, in, out);
        cell.forward(u, p);
      });
  }

  // y = hidden W_hr^T
  void project(i64 t, i64 rows_now) const {
    const Share mine = split.panels(team, ws.out.panels);
    for (i64 p = mine.begin; p < mine.end; p++) {
      const int width = ws.out.width(p);
      const i64 first = ws.out.first(p);
      for_tiles(rows_now, [&](i64 m, i64 rows) {
        alignas(64) T block[MR * NV * LANES<T>];
        const T* hidden[MR];
        T* out[MR];
        for (i64 r = 0; r < rows; r++) {
          hidden[r] = ws.hidden + split.row(m + r) * dims.H;
          out[r] = block + r * width * LANES<T>;
        }
        const Stretch<T> stretch{hidden, ws.Wr + first * dims.H, 1, dims.H, 0};
        choose_tile<T>(rows, width)(1, &stretch, nullptr, out);
        const i64 n = smaller(dims.P - first, i64(width) * LANES<T>);
        for (i64 r = 0; r < rows; r++) copy(out[r], dir.y.at(seq, t, split.row(m + r)) + first, n);
      });
    }
  }

  // h_n of the rows for which t was the last step. The second split meets before: all of y is
  // there.
  void finish(i64 t, i64 rows_now) const {
    const i64 next = seq.active(reverse ? t - 1 : t + 1);
    if (!split.by_batch && team.id != 0) return;
    if (reverse && t > 0) return;  // right to left every sequence ends at step 0
    for (i64 k = 0; k < rows_now; k++) {
      const i64 b = split.row(k);
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
  for_directions(call.dims.D, call.barrier, id, count, [&](int d, Team team) {
    Carver carver{call.workspace};
    for (int before = 0; before < d; before++)  // skip the space of the directions before this one
      ForwardSpace<T>(call, call.direction[before].w.W_hr, carver);
    Forward<T>(call, d, team, carver).run();
  });
}

}  // namespace gatewise::GATEWISE_ISA
