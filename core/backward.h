// A sequence, backward through time. One worker's part of one direction; equations (7) to (14) of
// docs/math.md.
//
// Time is walked in chunks. In a chunk the gate gradients d_z are computed step by step (the only
// part that is bound to the order of time), then used while they are still in the cache: d_x = d_z
// W_ih, and the weight gradients, sums over the chunk's tokens of d_z times [x, h(t-1), 1]. The
// chunk does not depend on the number of workers, and every sum over tokens is one chain, so
// neither do the bits.
//
//   d_z      [J][chunk][W]      panels of the gate gradients; the odd number of lines keeps panels
//   off
//                               the same cache sets
//   columns  [I+P+1][chunk]     x, h(t-1) and 1 of every token, turned: a row is what the tile
//   multiplies d_W      [J][I+P+1][W]      sums of the weight gradients; the last line is the bias
#pragma once
#include "pack.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 CHUNK_TOKENS = 512;  // at least; a chunk is whole steps
inline constexpr i64 SUM_BLOCK =
    1024;  // numbers of the sum over gates done at once: its panel stays in L2
inline constexpr i64 INPUT_ROWS = 96;  // tokens of d_x done at once
inline constexpr i64 PANEL_GROUP = 4;  // panels of d_z that stay in L2 while the columns pass

template <class T>
struct BackwardSpace {
  Units<T> units;
  Axis<T> input, output, hidden;
  i64 chunk;     // tokens a chunk can hold
  i64 lines;     // lines of a d_z panel, odd
  i64 length;    // of a column
  i64 columns;   // I + P + 1
  T *Wx, *Wh;    // [panels][J*W][width]
  T* Wr;         // [panels of H][P][width]
  T *d_h, *d_c;  // (B, padded P), (B, H): towards the step before
  T* d_hidden;   // (B, padded H) before the projection
  T *d_z, *turned, *d_W;
  T* d_out;  // (chunk, P): gradient at the projected output
  T *d_out_turned, *hidden_lines,
      *d_Wr;     // [P][chunk], [panels of H][chunk][width], [panels of H][P][width]
  T* d_peep;     // [3][H]
  T* other_d_x;  // (N, I) of direction 1
  T* zeros;

  static i64 chunk_tokens(const BackwardCall<T>& call) {
    const Dims& d = call.dims;
    const i64 steps = smaller(d.T, ceil_div(CHUNK_TOKENS, d.B));
    return steps * d.B;
  }

  BackwardSpace(const BackwardCall<T>& call, int d, Carver& carver)
      : units(call.dims.H, CELLS[call.cell].cell.gates()),
        input(call.dims.I),
        output(call.dims.P),
        hidden(call.dims.H),
        chunk(chunk_tokens(call)),
        lines(chunk | 1),
        length(round_up(chunk, LANES<T>) + LANES<T>),
        columns(call.dims.I + call.dims.P + 1) {
    const Dims& s = call.dims;
    const auto& dir = call.direction[d];
    const bool projected = dir.w.W_hr;
    Wx = call.d_x.data ? carver.take<T>(input.padded * units.K) : nullptr;
    Wh = carver.take<T>(output.padded * units.K);
    Wr = projected ? carver.take<T>(hidden.padded * s.P) : nullptr;
    d_h = carver.take<T>(s.B * output.padded);
    d_c = carver.take<T>(s.B * s.H);
    d_hidden = projected ? carver.take<T>(s.B * hidden.padded) : nullptr;
    d_z = carver.take<T>(units.K * lines);
    turned = carver.take<T>(columns * length);
    d_W = carver.take<T>(units.K * columns);
    d_out = projected ? carver.take<T>(chunk * s.P) : nullptr;
    d_out_turned = projected ? carver.take<T>(s.P * length) : nullptr;
    hidden_lines = projected ? carver.take<T>(hidden.padded * chunk) : nullptr;
    d_Wr = projected ? carver.take<T>(hidden.padded * s.P) : nullptr;
    d_peep = dir.w.peep ? carver.take<T>(3 * s.H) : nullptr;
    other_d_x = d == 1 && call.d_x.data ? carver.take<T>(s.N * s.I) : nullptr;
    zeros = carver.take<T>(larger(s.P, s.H));
  }
};

template <class T>
struct Backward {
  static constexpr int L = LANES<T>;
  static constexpr i64 LINE = 64 / sizeof(T);  // of the cache
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const Team team;
  const Pointwise<T> cell;
  const BackwardSpace<T> ws;
  const Units<T>& u;
  const Split split;
  const Share panels;
  const i64 S;

  Backward(const BackwardCall<T>& call_, int d, Team team_, Carver& carver)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(d == 1),
        team(team_),
        cell(pointwise_of<T>(call_.cell)),
        ws(call_, d, carver),
        u(ws.units),
        split(team, dims.B),
        panels(split.panels(team, u.J)),
        S(cell.cell.slots()) {}

  // Step s of the walk back, s = 0 .. T-1: against the direction of the forward run.
  i64 time(i64 s) const { return reverse ? s : dims.T - 1 - s; }

  void run() const {
    pack();
    start();
    team.meet();
    bool first = true;
    for (i64 s = 0; s < dims.T; first = false) {
      i64 end = s, tokens = 0;
      do tokens += seq.active(time(end++));
      while (end < dims.T && tokens + seq.active(time(end)) <= ws.chunk);
      const Chunk c{smaller(time(s), time(end - 1)), larger(time(s), time(end - 1)) + 1, tokens};
      for (i64 k = s; k < end; k++) step(c, time(k));
      if (ws.Wr) team.meet();  // the columns of d_out are made of every worker's rows
      turn_columns(c);
      team.meet();
      if (call.d_x.data) input_gradient(c);
      weight_gradient(c, first);
      if (ws.d_peep) peephole_gradient(c);
      team.meet();
      s = end;
    }
    finish();
  }

  struct Chunk {
    i64 begin, end;  // steps
    i64 tokens;
  };
  i64 place(const Chunk& c, i64 t, i64 b) const { return seq.token(t) - seq.token(c.begin) + b; }
  T* d_z(i64 j, i64 at) const { return ws.d_z + (j * ws.lines + at) * u.W; }

  void pack() const {
    const auto each = [&](i64 n, auto f) {
      const Share mine = team.of(n);
      for (i64 p = mine.begin; p < mine.end; p++) f(p);
    };
    if (ws.Wx) each(ws.input.panels, [&](i64 p) { pack_back(dir.w.W_ih, ws.input, u, ws.Wx, p); });
    each(ws.output.panels, [&](i64 p) { pack_back(dir.w.W_hh, ws.output, u, ws.Wh, p); });
    if (ws.Wr)
      each(ws.hidden.panels, [&](i64 p) { pack_lines(dir.w.W_hr, dims.P, ws.hidden, ws.Wr, p); });
    if (team.id == 0) {
      for (i64 k = 0; k < larger(dims.P, dims.H); k++) ws.zeros[k] = T(0);
      for (i64 k = 0; k < 3 * dims.H && ws.d_peep; k++) ws.d_peep[k] = T(0);
    }
  }

  // What arrives behind the last step of every sequence: d_h_n and d_c_n.
  void start() const {
    const Share mine = team.of(dims.B);
    for (i64 b = mine.begin; b < mine.end; b++) {
      for (i64 n = 0; n < ws.output.padded; n++)
        ws.d_h[b * ws.output.padded + n] =
            dir.d_h_n && n < dims.P ? dir.d_h_n[b * dims.P + n] : T(0);
      for (i64 n = 0; n < dims.H; n++)
        ws.d_c[b * dims.H + n] = dir.d_c_n ? dir.d_c_n[b * dims.H + n] : T(0);
    }
  }

  void step(const Chunk& c, i64 t) const {
    const i64 rows = split.rows(seq.active(t));
    if (ws.Wr) {
      through_projection(c, t, rows);
      split.meet(team);
    }
    gates(c, t, rows);
    split.meet(team);
    towards_before(c, t, rows);
    split.meet(team);
  }

  // With a projection: d_out = d_h + d_y, d_hidden = d_out W_hr, and the hidden state itself for
  // d_W_hr.
  void through_projection(const Chunk& c, i64 t, i64 rows_now) const {
    const Share mine = split.panels(team, ws.hidden.panels);
    for (i64 k = 0; k < rows_now && (split.by_batch || team.id == 0); k++) {
      const i64 b = split.row(k);
      T* d_out = ws.d_out + place(c, t, b) * dims.P;
      const T* d_y = dir.d_y.data ? dir.d_y.at(seq, t, b) : ws.zeros;
      for (i64 n = 0; n < dims.P; n++) d_out[n] = ws.d_h[b * ws.output.padded + n] + d_y[n];
    }
    split.meet(team);
    const i64 b = split.first_row, apart = split.row_step;
    for (i64 p = mine.begin; p < mine.end; p++) {
      const i64 first = ws.hidden.first(p);
      product<T>(
          rows_now, ws.hidden.width(p),
          {{{ws.d_out + place(c, t, b) * dims.P, apart * dims.P}, ws.Wr + first * dims.P, dims.P}},
          {}, {ws.d_hidden + b * ws.hidden.padded + first, apart * ws.hidden.padded});
    }
  }

  // The cell, backwards: d_h and d_c to d_z, d_c towards the step before. The rows that were there
  // one step back find c(t-1) in the tape, the others in the initial state.
  void gates(const Chunk& c, i64 t, i64 rows) const {
    const i64 back = reverse ? t + 1 : t - 1, b = split.first_row;
    const i64 known = smaller(rows, split.rows(seq.active(back)));
    const i64 token = S * dims.H, apart = split.row_step;
    if (known) {
      Lines<const T> before;
      if (cell.cell.has_cell_state())
        before = {dir.tape + (seq.token(back) + b) * token + cell.cell.slot_c() * dims.H,
                  apart * token};
      gates_of_rows(c, t, 0, known, before);
    }
    if (known < rows) {
      Lines<const T> before;
      if (dir.c0) before = {dir.c0 + split.row(known) * dims.H, apart * dims.H};
      gates_of_rows(c, t, known, rows - known, before);
    }
    if (dir.g_h && (split.by_batch || team.id == 0)) keep_hidden_gradient(c, t, rows);
  }

  void gates_of_rows(const Chunk& c, i64 t, i64 begin, i64 rows, Lines<const T> before) const {
    const auto run = dir.d_tape || dir.g_tape ? cell.backward_watched : cell.backward;
    const i64 b = split.row(begin), apart = split.row_step, slots = S * dims.H;
    const i64 token = (seq.token(t) + b) * slots;
    for (i64 j = panels.begin; j < panels.end; j++) {
      const i64 unit = j * u.U;
      BackwardRows<T> p{};
      p.rows = rows;
      p.j = j;
      p.peep = dir.w.peep;
      p.tape = Lines<const T>{dir.tape + token + unit, apart * slots};
      p.c_before = before.right(unit);
      p.d_h =
          ws.Wr
              ? Lines<const T>{ws.d_hidden + b * ws.hidden.padded + unit, apart * ws.hidden.padded}
              : Lines<const T>{ws.d_h + b * ws.output.padded + unit, apart * ws.output.padded};
      if (dir.d_y.data && !ws.Wr) p.d_y = {dir.d_y.at(seq, t, b) + unit, apart * dir.d_y.row};
      if (dir.d_tape) p.d_tape = {dir.d_tape + token + unit, apart * slots};
      if (dir.g_tape) p.g_tape = {dir.g_tape + token + unit, apart * slots};
      p.d_c = {ws.d_c + b * dims.H + unit, apart * dims.H};
      p.d_z = {d_z(j, place(c, t, b)), apart * u.W};
      run(u, p);
    }
  }

  const T* cell_before(i64 back, i64 b) const {
    if (b < seq.active(back))
      return dir.tape + ((seq.token(back) + b) * S + cell.cell.slot_c()) * dims.H;
    return dir.c0 ? dir.c0 + b * dims.H : nullptr;
  }

  void keep_hidden_gradient(const Chunk& c, i64 t, i64 rows_now) const {
    for (i64 k = 0; k < rows_now; k++) {
      const i64 b = split.row(k);
      T* g_h = dir.g_h + (seq.token(t) + b) * dims.P;
      const T* d_out = ws.d_out + place(c, t, b) * dims.P;
      const T* d_y = dir.d_y.data ? dir.d_y.at(seq, t, b) : ws.zeros;
      for (i64 n = 0; n < dims.P; n++)
        g_h[n] = ws.Wr ? d_out[n] : ws.d_h[b * ws.output.padded + n] + d_y[n];
    }
  }

  // d_h(t-1) = d_z(t) W_hh
  void towards_before(const Chunk& c, i64 t, i64 rows) const {
    const Share mine = split.panels(team, ws.output.panels);
    const i64 b = split.first_row, apart = split.row_step;
    for (i64 p = mine.begin; p < mine.end;) {
      const bool two =
          rows == 1 && p + 1 < mine.end && ws.output.width(p) == ws.output.width(p + 1);
      T* out = ws.d_h + b * ws.output.padded + ws.output.first(p);
      gate_product(ws.Wh, ws.output, p, two ? 2 : 1, rows, place(c, t, b), apart,
                   {out, two ? ws.output.first(1) : apart * ws.output.padded},
                   [&](i64 row, i64 n) { prefetch_tape(t, split.row(row), n, p); });
      p += two ? 2 : 1;
    }
  }

  // The gates of the step that comes next, my rows b, b + apart, ...: a p-th part of the tape's
  // rows while panel p is multiplied.
  void prefetch_tape(i64 t, i64 b, i64 n, i64 p) const {
    const i64 back = reverse ? t + 1 : t - 1, token = S * dims.H;
    const i64 part = round_up(ceil_div(token, ws.output.panels), LINE), first = p * part;
    for (i64 r = 0; r < n; r++, b += split.row_step)
      for (i64 k = first; b < seq.active(back) && k < smaller(token, first + part); k += LINE)
        prefetch(dir.tape + (seq.token(back) + b) * token + k);
  }

  // out = d_z of the tokens at, at + apart, ... times panel p of a packed weight (of one token:
  // times two panels). The sum over all gates is cut in blocks, so that the block of the panel
  // stays in the second-level cache for all rows.
  template <class Fetch>
  void gate_product(const T* packed, const Axis<T>& axis, i64 p, int panels_at_once, i64 rows,
                    i64 at, i64 apart, Lines<T> out, Fetch fetch) const {
    const int width = axis.width(p);
    const i64 step = larger(1, SUM_BLOCK / u.W), line = i64(width) * L;
    for (i64 j = 0; j < u.J; j += step) {
      const Stretch<T> sum[1] = {{{d_z(j, at), apart * u.W},
                                  packed + axis.first(p) * u.K + j * u.W * line,
                                  u.W,
                                  smaller(step, u.J - j),
                                  ws.lines * u.W,
                                  u.K * line}};
      const Lines<T> in = j ? out : Lines<T>{};
      panels_at_once == 2 ? product_of_two<T>(width, sum, in, out)
                          : product<T>(rows, width, sum, in, out, [&](i64 row, i64 n) {
                              if (j == 0) fetch(row, n);
                            });
    }
  }

  // [x, h(t-1), 1] of the chunk's tokens as columns; with a projection also d_out, and the hidden
  // state as lines.
  void turn_columns(const Chunk& c) const {
    const Share mine = team.of(ceil_div(c.tokens, L));
    i64 t = c.begin;
    for (i64 k = mine.begin; k < mine.end; k++) {
      const i64 first = k * L;
      const int count = int(smaller(L, c.tokens - first));
      const T *x[L], *h[L], *d_out[L];
      for (int r = 0; r < count; r++) {
        while (seq.token(t + 1) - seq.token(c.begin) <= first + r) t++;
        const i64 b = first + r - (seq.token(t) - seq.token(c.begin));
        x[r] = call.x.at(seq, t, b);
        h[r] = hidden_before(t, b);
        if (ws.Wr) {
          d_out[r] = ws.d_out + (first + r) * dims.P;
          hidden_line(t, b, first + r, c.tokens);
        }
      }
      pack_columns(x, count, dims.I, ws.turned, ws.length, first);
      pack_columns(h, count, dims.P, ws.turned + dims.I * ws.length, ws.length, first);
      store(ws.turned + (dims.I + dims.P) * ws.length + first, set1(T(1)));
      if (ws.Wr) pack_columns(d_out, count, dims.P, ws.d_out_turned, ws.length, first);
    }
  }

  const T* hidden_before(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    if (b < seq.active(back)) return dir.y.at(seq, back, b);
    return dir.h0 ? dir.h0 + b * dims.P : ws.zeros;
  }

  // hidden = o * out(c), again from the tape, as a line of the panels over H.
  void hidden_line(i64 t, i64 b, i64 at, i64 tokens) const {
    const Cell& k = cell.cell;
    const T* tape = dir.tape + (seq.token(t) + b) * S * dims.H;
    for (i64 n = 0; n < ws.hidden.padded; n += L) {
      const int valid = int(larger(0, smaller(L, dims.H - n)));
      Vec<T> h = load(tape + k.slot_c() * dims.H + n, valid);
      if (k.out == Act::tanh) h = tanh<T>(h);
      if (k.slot_o() >= 0) h = h * load(tape + k.slot_o() * dims.H + n, valid);
      const i64 p = n / (i64(ws.hidden.vectors) * L);
      store(hidden_panel(p, at, tokens) + (n - ws.hidden.first(p)), h);
    }
  }
  T* hidden_panel(i64 p, i64 at, i64 tokens) const {
    return ws.hidden_lines + ws.hidden.first(p) * tokens + at * ws.hidden.width(p) * L;
  }

  // d_x = d_z W_ih for my share of the chunk's tokens.
  void input_gradient(const Chunk& c) const {
    alignas(64) T block[INPUT_ROWS * NV * L];
    const Share mine = team.of(c.tokens);
    i64 t = c.begin;
    for (i64 first = mine.begin; first < mine.end; first += INPUT_ROWS) {
      const i64 count = smaller(INPUT_ROWS, mine.end - first);
      const i64 started = t;
      for (i64 p = 0; p < ws.input.panels; p++) {
        const i64 W = i64(ws.input.width(p)) * L, n = smaller(W, dims.I - ws.input.first(p));
        gate_product(ws.Wx, ws.input, p, 1, count, first, 1, {block, W}, [](i64, i64) {});
        t = started;
        for (i64 m = 0; m < count; m++) {
          while (seq.token(t + 1) - seq.token(c.begin) <= first + m) t++;
          const i64 b = first + m - (seq.token(t) - seq.token(c.begin));
          T* to =
              ws.other_d_x ? ws.other_d_x + (seq.token(t) + b) * dims.I : call.d_x.at(seq, t, b);
          __builtin_memcpy(to + ws.input.first(p), block + m * W, size_t(n) * sizeof(T));
        }
      }
    }
  }

  // lines (+)= sum over tokens of columns[k][token] * panel[token], for MR columns a share.
  void token_sums(const T* columns, i64 count, const T* panel, i64 tokens, int width, T* lines,
                  bool first, Share mine) const {
    const i64 begin = smaller(count, mine.begin * MR), end = smaller(count, mine.end * MR);
    if (begin == end) return;
    const Lines<T> out{lines + begin * width * L, i64(width) * L};
    product<T>(end - begin, width, {{{columns + begin * ws.length, ws.length}, panel, tokens}},
               first ? Lines<T>{} : out, out);
  }

  void weight_gradient(const Chunk& c, bool first) const {
    const Share mine = team.of(ceil_div(ws.columns, MR));
    for (i64 group = 0; group < u.J; group += PANEL_GROUP)
      for (i64 k = mine.begin; k < mine.end; k++)
        for (i64 j = group; j < smaller(u.J, group + PANEL_GROUP); j++)
          token_sums(ws.turned, ws.columns, d_z(j, 0), c.tokens, u.vectors,
                     ws.d_W + j * ws.columns * u.W, first, Share{k, k + 1});
    if (ws.Wr)
      for (i64 p = 0; p < ws.hidden.panels; p++)
        token_sums(ws.d_out_turned, dims.P, hidden_panel(p, 0, c.tokens), c.tokens,
                   ws.hidden.width(p), ws.d_Wr + ws.hidden.first(p) * dims.P, first,
                   team.of(ceil_div(dims.P, MR)));
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peephole_gradient(const Chunk& c) const {
    const int slot[3] = {cell.cell.slot_i(), cell.cell.slot_f(), cell.cell.slot_o()};
    const Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++)
      for (i64 t = c.begin; t < c.end; t++)
        for (i64 b = 0; b < seq.active(t); b++) {
          const T* now = dir.tape + ((seq.token(t) + b) * S + cell.cell.slot_c()) * dims.H;
          const T* before = cell_before(reverse ? t + 1 : t - 1, b);
          for (int k = 0; k < 3; k++) {
            const T* seen = k == 2 ? now : before;
            if (slot[k] < 0 || !seen) continue;
            for (i64 n = j * u.U; n < smaller(dims.H, (j + 1) * u.U); n++) {
              const i64 lane = n - j * u.U, q = lane / L;
              ws.d_peep[k * dims.H + n] +=
                  d_z(j, place(c, t, b))[(q * u.G + slot[k]) * L + lane % L] * seen[n];
            }
          }
        }
  }

  // The sums into the caller's arrays.
  void finish() const {
    const Share mine = team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) {
      const T* lines = ws.d_W + j * ws.columns * u.W;
      if (dir.d_W_ih) unpack_gates(lines, dims.I, u, dir.d_W_ih, j);
      if (dir.d_W_hh) unpack_gates(lines + dims.I * u.W, dims.P, u, dir.d_W_hh, j);
      if (dir.d_b) unpack_gates(lines + (dims.I + dims.P) * u.W, 1, u, dir.d_b, j);
    }
    if (dir.d_W_hr) {
      const Share rows = team.of(dims.P);
      for (i64 k = rows.begin; k < rows.end; k++)
        for (i64 p = 0; p < ws.hidden.panels; p++) {
          const i64 W = i64(ws.hidden.width(p)) * L, first = ws.hidden.first(p);
          __builtin_memcpy(dir.d_W_hr + k * dims.H + first, ws.d_Wr + first * dims.P + k * W,
                           size_t(smaller(W, dims.H - first)) * sizeof(T));
        }
    }
    const Share rows = team.of(dims.B);
    for (i64 b = rows.begin; b < rows.end; b++) {
      if (dir.d_h0)
        __builtin_memcpy(dir.d_h0 + b * dims.P, ws.d_h + b * ws.output.padded,
                         size_t(dims.P) * sizeof(T));
      if (dir.d_c0)
        __builtin_memcpy(dir.d_c0 + b * dims.H, ws.d_c + b * dims.H, size_t(dims.H) * sizeof(T));
    }
    if (dir.d_peep && team.id == 0)
      __builtin_memcpy(dir.d_peep, ws.d_peep, size_t(3 * dims.H) * sizeof(T));
  }
};

template <class T>
i64 backward_bytes(const BackwardCall<T>& call, int) {
  Carver carver{nullptr};
  for (int d = 0; d < call.dims.D; d++) BackwardSpace<T>(call, d, carver);
  return carver.used;
}

template <class T>
void backward(BackwardCall<T>& call, int id, int count) {
  const T* other = nullptr;
  for_directions(call.dims.D, call.barrier, id, count, [&](int d, Team team) {
    Carver carver{call.workspace};
    for (int before = 0; before < d; before++) BackwardSpace<T>(call, before, carver);
    Backward<T>(call, d, team, carver).run();
  });
  if (call.dims.D == 2 && call.d_x.data) {  // the input feeds both directions
    Carver carver{call.workspace};
    BackwardSpace<T>(call, 0, carver);
    other = BackwardSpace<T>(call, 1, carver).other_d_x;
    if (count > 1) call.barrier[2].wait(count);
    const Sequence& seq = call.sequence;
    for (i64 t = 0; t < call.dims.T; t++)
      for (i64 b = id; b < seq.active(t); b += count) {
        T* d_x = call.d_x.at(seq, t, b);
        const T* from = other + (seq.token(t) + b) * call.dims.I;
        for (i64 n = 0; n < call.dims.I; n++) d_x[n] += from[n];
      }
  }
}

}  // namespace gatewise::GATEWISE_ISA
