// What is made of a chunk's gate gradients while they are in the cache: d_x = d_z W_ih, and the
// weight gradients, sums over its tokens of d_z times [x, h(t-1), 1]. Equations (11) to (14) of
// docs/math.md. Every sum over tokens is one chain, so its bits do not depend on who adds it up.
#pragma once
#include "group.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 INPUT_ROWS = 96;  // tokens of d_x done at once
inline constexpr i64 PANEL_GROUP = 4;  // panels of d_z that stay in L2 while the columns pass

template <class T, class E>
struct Gradients {
  static constexpr int L = LANES<T>, numbers = Operand<E>::numbers;
  const Group<T, E>& g;
  const Chunk& c;
  const GroupSpace<T, E>& ws = g.ws;
  const Dims& dims = g.dims;
  const Units<T>& u = g.u;
  const i64 columns = dims.I + dims.P + 1;

  // Each worker may use what the others wrote only behind the next meeting.
  void all(bool first) const {
    if (ws.turned || ws.d_out_turned) turn_columns();
    if constexpr (IS_PAIR<E>)
      if (ws.turned) pair_tokens();
    g.team.meet();
    if (g.dir.wants_inputs()) input_gradient();
    if (ws.turned) weight_gradient(first);
    if (ws.d_out_turned) projection_gradient(first);
    if (ws.d_peep) peephole_gradient();
    g.team.meet();
  }

  // [x, h(t-1), 1] of the tokens as columns; with a projection also d_out, and the hidden state as
  // lines.
  void turn_columns() const {
    const Share mine = g.team.of(ceil_div(c.tokens, L));
    i64 step = c.begin;
    for (i64 k = mine.begin; k < mine.end; k++) {
      const i64 first = k * L;
      const int count = int(smaller(L, c.tokens - first));
      i64 t[L], b[L];
      g.tokens(c, first, first + count, step,
               [&](i64 at, i64 t_, i64 b_) { t[at - first] = t_, b[at - first] = b_; });
      // The K numbers at of(t, b) of each.
      const auto turn = [&](auto of, i64 K, E* columns) {
        decltype(of(0, 0)) row[L];
        for (int r = 0; r < count; r++) row[r] = of(t[r], b[r]);
        pack_columns(row, count, K, columns, ws.length, first);
      };
      const auto turn_either = [&](bool is_brief, auto brief, auto whole, i64 K, E* columns) {
        if constexpr (IS_PAIR<E>)
          if (is_brief) return turn(brief, K, columns);
        turn(whole, K, columns);
      };
      if (ws.turned) {
        E *const x = ws.turned, *const h = x + dims.I * ws.length,
                 *const one = h + dims.P * ws.length;
        const auto& dir = g.dir;
        turn_either(
            dir.brief_x.data, [&](i64 t, i64 b) { return dir.brief_x.at(g.seq, t, b); },
            [&](i64 t, i64 b) { return dir.x.at(g.seq, t, b); }, dims.I, x);
        turn_either(
            dir.brief_y.data, [&](i64 t, i64 b) { return g.brief_hidden_before(t, b); },
            [&](i64 t, i64 b) { return g.hidden_before(t, b); }, dims.P, h);
        store(as_numbers(one) + first, set1(T(1)));
      }
      if (!ws.d_out_turned) continue;
      turn([&](i64 t, i64 b) { return ws.d_out + g.place(c, t, b) * dims.P; }, dims.P,
           ws.d_out_turned);
      const Number<E>*cell[L], *gate[L];
      for (int r = 0; r < count; r++) {
        cell[r] = g.slot(t[r], b[r], g.cell.slot_c());
        gate[r] = g.slot(t[r], b[r], larger(0, g.cell.slot_o()));
      }
      hidden_lines(cell, gate, count, first);
    }
  }

  // hidden = o * out(c), again from the tape, of `count` tokens as lines of the panels over H.
  void hidden_lines(const Number<E>* const* c_of, const Number<E>* const* o_of, int count,
                    i64 first) const {
    const Axis<T>& axis = g.all.hidden;
    const auto hidden = [&](int k, i64 n) {
      const int valid = k < count ? int(smaller(L, dims.H - n)) : 0;
      if (!valid) return Vec<T>{};
      Vec<T> h = load(c_of[k] + n, valid);
      if (g.cell.out == Act::tanh) h = tanh<T, E>(h);
      return g.cell.slot_o() < 0 ? h : h * load(o_of[k] + n, valid);
    };
    for (int k = 0; k < count; k += numbers)
      for (i64 p = 0; p < axis.panels; p++)
        for (i64 v = 0, W = i64(axis.width(p)) * L; v < W; v += L)
          store(hidden_panel(p) + operands<E>(first + k) * W + v,
                operand<E>([&](int of) { return hidden(k + of, axis.first(p) + v); }));
  }
  E* hidden_panel(i64 p) const {
    const Axis<T>& hidden = g.all.hidden;
    return ws.hidden_lines + hidden.first(p) * operands<E>(c.tokens);
  }

  // d_z for the sums over tokens: the lines of two tokens in one.
  void pair_tokens() const {
    const Share mine = g.team.of(operands<E>(c.tokens));
    for (i64 j = 0; j < u.J; j++)
      for (i64 k = mine.begin; k < mine.end; k++)
        for (i64 n = 0; n < u.W; n += L) {
          const auto line = [&](i64 at) {
            return at < c.tokens ? load_short(g.d_z(j, at) + n) : ShortV{};
          };
          store(g.d_z_sum(j) + k * u.W + n, paired(line(2 * k), line(2 * k + 1)));
        }
  }

  // d_x = d_z W_ih for my share of the tokens.
  void input_gradient() const {
    alignas(64) T block[INPUT_ROWS * NV * L];
    const Axis<T>& input = g.all.input;
    const Share mine = g.team.of(c.tokens);
    i64 step = c.begin;
    for (i64 first = mine.begin; first < mine.end; first += INPUT_ROWS) {
      const i64 count = smaller(INPUT_ROWS, mine.end - first), started = step;
      for (i64 p = 0; p < input.panels; p++) {
        const i64 W = i64(input.width(p)) * L, n = smaller(W, dims.I - input.first(p));
        g.gate_product(g.all.Wx, input, p, (p + 1) % input.panels, 1, count, first, {block, W});
        step = started;
        g.tokens(c, first, first + count, step, [&](i64 at, i64 t, i64 b) {
          const T* const from = block + (at - first) * W;
          if constexpr (IS_PAIR<E>)
            if (g.dir.brief_d_x.data && !g.all.own_d_x)
              return round_numbers(from, n, g.dir.brief_d_x.at(g.seq, t, b) + input.first(p));
          T* to = g.all.own_d_x ? g.all.own_d_x + (g.seq.token(t) + b) * dims.I
                                : g.dir.d_x.at(g.seq, t, b);
          copy(from, to + input.first(p), n);
        });
      }
    }
  }

  // lines (+)= sum over tokens of columns[k][token] * panel[token], for a share of the columns in
  // tiles of MR. The lines at `next` are fetched meanwhile.
  void token_sums(const E* column, i64 count, const E* panel, int width, T* lines, bool first,
                  Share mine, const T* next = nullptr) const {
    const i64 begin = smaller(count, mine.begin * MR), end = smaller(count, mine.end * MR);
    if (begin == end) return;
    const Lines<T> out{lines + begin * width * L, i64(width) * L};
    const i64 tokens = operands<E>(c.tokens), bytes = (end - begin) * out.stride * i64(sizeof(T));
    product<E>(end - begin, width,
               {{{column + begin * ws.length, ws.length},
                 panel,
                 tokens,
                 1,
                 0,
                 0,
                 next ? Ahead::of(next, bytes, end - begin, tokens) : Ahead{}}},
               first ? Lines<T>{} : out, out);
  }

  void weight_gradient(bool first) const {
    const i64 size = columns * u.W;  // of the sums of a panel
    g.dealer.deal(
        ceil_div(columns, MR), ceil_div(u.J, PANEL_GROUP), false, [&](i64 pass, i64 k, i64) {
          const i64 begin = pass * PANEL_GROUP, end = smaller(u.J, begin + PANEL_GROUP);
          for (i64 j = begin; j < end; j++) {
            const bool last = j + 1 == end;
            token_sums(ws.turned, columns, g.d_z_sum(j), u.vectors, ws.d_W + j * size, first,
                       {k, k + 1}, ws.d_W + (last ? begin : j + 1) * size + (k + last) * MR * u.W);
          }
        });
  }

  void projection_gradient(bool first) const {
    for (i64 p = 0; p < g.all.hidden.panels; p++)
      token_sums(ws.d_out_turned, dims.P, hidden_panel(p), g.all.hidden.width(p),
                 ws.d_Wr + g.all.hidden.first(p) * dims.P, first, g.team.of(ceil_div(dims.P, MR)));
  }

  // Sums over tokens of d_z times the cell state that the gate looked at.
  void peephole_gradient() const {
    const int slot[3] = {g.cell.slot_i(), g.cell.slot_f(), g.cell.slot_o()};
    const Share mine = g.team.of(u.J);
    for (i64 j = mine.begin; j < mine.end; j++) {
      i64 step = c.begin;
      g.tokens(c, 0, c.tokens, step, [&](i64 at, i64 t, i64 b) {
        const Number<E>*now = g.slot(t, b, g.cell.slot_c()), *before = g.cell_before(t, b);
        for (int k = 0; k < 3; k++) {
          const Number<E>* seen = k == 2 ? now : before;
          if (slot[k] < 0 || !seen) continue;
          for (i64 n = j * u.U; n < smaller(dims.H, (j + 1) * u.U); n++) {
            const i64 lane = n - j * u.U, q = lane / L;
            const Number<E> d_z = g.d_z(j, at)[(q * u.G + slot[k]) * L + lane % L];
            ws.d_peep[k * dims.H + n] += widened(d_z) * widened(seen[n]);
          }
        }
      });
    }
  }
};

}  // namespace gatewise::GATEWISE_ISA
