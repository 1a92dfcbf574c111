// What a group of rows (groups.h) works on, backward through time: its memory, and where things lie
// in it. A group has gate gradients and sums of weight gradients of its own, so that a worker reads
// what it has written; the groups' sums are added at the end.
//
// Time is walked in chunks of steps. Token `at` of a chunk is counted within the group:
//
//   d_z      [J][chunk][W]      panels of the gate gradients; an odd number of lines keeps the
//                               panels off the same cache sets
//   d_z_sum  [J][chunk][W]      the same as what is summed over tokens: in pairs of tokens, where
//                               operands are pairs (bf16.h); else it is d_z
//   turned   [I+P+1][chunk]     x, h(t-1) and 1 of every token as columns: a row is what a tile
//                               multiplies
//   d_W      [J][I+P+1][W]      sums of the weight gradients; the last line is the bias
//
// What serves weights whose gradients nobody asks for is null.
#pragma once
#include "groups.h"
#include "pack.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 CHUNK_TOKENS = 512;  // of all groups, about; a chunk is whole steps
inline constexpr i64 SUM_BLOCK =
    1024;  // numbers of the sum over gates done at once: its panel stays in L2
inline constexpr i64 LARGE_RECURRENT = i64(3) << 19;  // bytes of W_hh that are split among workers

template <class T, class E>
i64 group_count(const BackwardCall<T>& call) {
  return gatewise::group_count(call.dims, CELLS[call.cell].cell.gates(), sizeof(Number<E>));
}

// The rows of group g.
template <class T, class E>
Rows rows_of_group(const BackwardCall<T>& call, i64 g) {
  return group_rows(call.sequence, g, group_count<T, E>(call));
}

template <class T, class E>
struct GroupSpace {
  i64 rows = 0;       // most sequences of a step
  i64 chunk = 0;      // tokens a chunk can hold
  i64 lines = 0;      // lines of a d_z panel, odd
  i64 sum_lines = 0;  // lines of a d_z_sum panel, odd
  i64 length = 0;     // of a column, in operands
  Number<E>* d_z = nullptr;
  E *d_z_sum = nullptr, *turned = nullptr;
  T* d_W = nullptr;
  T* d_out = nullptr;                // (chunk, P): gradient at the projected output
  E* d_out_rounded = nullptr;        // (rows, P): that of a step, where operands are pairs
  E* d_out_turned = nullptr;         // [P][chunk]
  E* hidden_lines = nullptr;         // [panels of H][chunk][width]
  T* d_Wr = nullptr;                 // [panels of H][P][width]
  T* d_peep = nullptr;               // [3][H]
  T *d_h = nullptr, *d_c = nullptr;  // (rows, padded P), (rows, H): towards the step before
  T* d_hidden = nullptr;             // (rows, padded H) before the projection
  Taken* taken = nullptr;            // of every worker

  GroupSpace(const BackwardCall<T>& call, const typename BackwardCall<T>::Direction& dir,
             const Units<T>& u, const Axis<T>& output, const Axis<T>& hidden, i64 g,
             Carver& carver) {
    if (g >= group_count<T, E>(call)) return;
    const Dims& s = call.dims;
    rows = rows_of_group<T, E>(call, g).count();
    chunk = rows * smaller(s.T, ceil_div(CHUNK_TOKENS / group_count<T, E>(call), rows));
    lines = chunk | 1;
    sum_lines = operands<E>(chunk) | 1;
    length = operands<E>(round_up(chunk, LANES<T>) + LANES<T>);
    const i64 columns = s.I + s.P + 1;
    const bool of_gates = dir.d_W_ih || dir.d_W_hh || dir.d_b;  // which weights are asked for
    carver.take<unsigned char>(APART);                          // from the group before
    d_z = carver.take<Number<E>>(u.K * lines);
    if constexpr (IS_PAIR<E>)
      d_z_sum = of_gates ? carver.take<E>(u.K * sum_lines) : nullptr;
    else
      d_z_sum = d_z;
    turned = of_gates ? carver.take<E>(columns * length) : nullptr;
    d_W = of_gates ? carver.take<T>(u.K * columns) : nullptr;
    d_out = dir.w.W_hr ? carver.take<T>(chunk * s.P) : nullptr;
    d_out_rounded = dir.w.W_hr && IS_PAIR<E> ? carver.take<E>(rows * room<E>(s.P)) : nullptr;
    d_out_turned = dir.d_W_hr ? carver.take<E>(s.P * length) : nullptr;
    hidden_lines = dir.d_W_hr ? carver.take<E>(hidden.padded * operands<E>(chunk)) : nullptr;
    d_Wr = dir.d_W_hr ? carver.take<T>(hidden.padded * s.P) : nullptr;
    d_peep = dir.d_peep ? carver.take<T>(3 * s.H) : nullptr;
    d_h = carver.take<T>(rows * output.padded);
    d_c = carver.take<T>(rows * s.H);
    d_hidden = dir.w.W_hr ? carver.take<T>(rows * hidden.padded) : nullptr;
    taken = carver.take<Taken>(MOST_DEALERS);
  }
};

// Whether the d_x of direction d is kept apart: it is added to what is there, or to that of
// direction 0, or the sum of both is rounded.
template <class T>
bool adds_inputs(const BackwardCall<T>& call, i64 d) {
  const auto& dir = call.direction[d];
  return dir.brief_d_x.data ? call.dims.D == 2 : dir.d_x.data && (call.adds_inputs || d == 1);
}

// Vectors of a panel of d_h. Where workers share the panels of few rows, each has equally many.
template <class T>
int output_vectors(const BackwardCall<T>& call, int workers) {
  if (workers == 1 || call.dims.B >= call.least_rows * workers) return NV;
  const i64 vectors = ceil_div(call.dims.P, LANES<T>);
  return int(ceil_div(vectors, round_up(ceil_div(vectors, NV), workers)));
}

// The workspace of one direction. What it holds follows from the call alone: where memory is only
// counted, every pointer is null.
template <class T, class E>
struct BackwardSpace {
  Units<T> units;
  Axis<T> input, output, hidden;
  E *Wx, *Wh;  // [panels][J*W][width]
  E* Wr;       // [panels of H][P][width]
  T* own_d_x;  // (N, I), where it is kept apart
  T* zeros;
  Number<E>* c0;  // (B, padded H): as the tape would have it, where it is rounded
  Bf16* h0;       // (B, padded P): as y would have it, where it is bfloat16
  GroupSpace<T, E> group[GROUPS];

  BackwardSpace(const BackwardCall<T>& call, i64 d, Carver& carver, int workers = 1)
      : units(call.dims.H, CELLS[call.cell].cell.gates()),
        input(call.dims.I),
        output(call.dims.P, output_vectors(call, workers)),
        hidden(call.dims.H),
        Wx(call.direction[d].wants_inputs() ? carver.take<E>(input.padded * operands<E>(units.K))
                                            : nullptr),
        Wh(carver.take<E>(output.padded * operands<E>(units.K))),
        Wr(call.direction[d].w.W_hr ? carver.take<E>(hidden.padded * operands<E>(call.dims.P))
                                    : nullptr),
        own_d_x(adds_inputs(call, d) ? carver.take<T>(call.dims.N * call.dims.I) : nullptr),
        zeros(carver.take<T>(larger(call.dims.P, call.dims.H))),
        c0(IS_PAIR<E> ? carver.take<Number<E>>(call.dims.B * hidden.padded) : nullptr),
        h0(call.direction[d].brief_y.data ? carver.take<Bf16>(call.dims.B * output.padded)
                                          : nullptr),
        group{{call, call.direction[d], units, output, hidden, 0, carver},
              {call, call.direction[d], units, output, hidden, 1, carver}} {}
};

// Steps begin .. end-1, and the group's tokens in them.
struct Chunk {
  i64 begin, end, tokens;
};

template <class T, class E>
struct Group {
  static constexpr int L = LANES<T>;
  using K = Number<E>;
  const BackwardCall<T>& call;
  const typename BackwardCall<T>::Direction& dir;
  const Dims& dims;
  const Sequence& seq;
  const bool reverse;
  const BackwardSpace<T, E>& all;
  const GroupSpace<T, E>& ws;
  const Units<T>& u;
  const Cell cell;
  const i64 S;
  const TapeOrder order;
  const i64 index_of_group, groups;
  const Rows rows;
  const Team team;
  const Dealer dealer;

  Group(const BackwardCall<T>& call_, i64 d, i64 g, const BackwardSpace<T, E>& space, Team team_)
      : call(call_),
        dir(call_.direction[d]),
        dims(call_.dims),
        seq(call_.sequence),
        reverse(dir.reverse),
        all(space),
        ws(space.group[g]),
        u(space.units),
        cell(CELLS[call_.cell].cell),
        S(cell.slots()),
        order(tape_order<E>(call_)),
        index_of_group(g),
        groups(group_count<T, E>(call_)),
        rows(rows_of_group<T, E>(call_, g)),
        team(team_),
        dealer(team, ws.taken) {}

  // The group's tokens before step t, and where in its chunk the token of step t and row b lies.
  i64 counted(i64 t) const { return groups == 1 ? seq.token(t) : seq.token_of(index_of_group, t); }
  i64 place(const Chunk& c, i64 t, i64 b) const { return counted(t) - counted(c.begin) + index(b); }
  // Row b of the batch, counted within the group.
  i64 index(i64 b) const { return b - rows.first; }
  K* d_z(i64 j, i64 at) const { return ws.d_z + (j * ws.lines + at) * u.W; }
  E* d_z_sum(i64 j) const { return ws.d_z_sum + j * ws.sum_lines * u.W; }

  // f(at, t, b) for the chunk's tokens first .. last-1. Starts at step t and leaves it at the step
  // of the last token.
  template <class F>
  void tokens(const Chunk& c, i64 first, i64 last, i64& t, F f) const {
    for (i64 at = first; at < last; at++) {
      while (counted(t + 1) - counted(c.begin) <= at) t++;
      f(at, t, rows[at - (counted(t) - counted(c.begin))]);
    }
  }

  // h(t-1) and c(t-1) of row b; c may be absent.
  const T* hidden_before(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    if (b < seq.active(back)) return dir.y.at(seq, back, b);
    return dir.h0 ? dir.h0 + b * dims.P : all.zeros;
  }
  const Bf16* brief_hidden_before(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    if (b < seq.active(back)) return dir.brief_y.at(seq, back, b);
    return all.h0 + b * all.output.padded;
  }
  const K* cell_before(i64 t, i64 b) const {
    const i64 back = reverse ? t + 1 : t - 1;
    if (b < seq.active(back)) return slot(back, b, cell.slot_c());
    return initial_cells()[b];
  }
  // c0, one line a row of the batch; absent where it is zeros.
  Lines<const K> initial_cells() const {
    if (!dir.c0) return {};
    if constexpr (IS_PAIR<E>)
      return {all.c0, all.hidden.padded};
    else
      return {dir.c0, dims.H};
  }
  const K* slot(i64 t, i64 b, int k) const {
    return tape_of<K>(dir) + (order.token(t, b) * S + k) * dims.H;
  }

  // out = d_z of the tokens from `at` on times panel p of a packed weight (of one token: times two
  // panels). The sum over all gates is cut in blocks, so that the block of the panel
  // stays in the second-level cache for all rows; what comes after it, in the end panel `next`, is
  // fetched meanwhile.
  void gate_product(const E* packed, const Axis<T>& axis, i64 p, i64 next, int panels_at_once,
                    i64 count, i64 at, Lines<T> out) const {
    const int width = axis.width(p);
    const i64 step = larger(1, SUM_BLOCK / u.W), line = i64(width) * L;
    const i64 W = operands<E>(u.W), all_gates = operands<E>(u.K);
    const bool large = operand_bytes<E>(u.K * axis.size) > LARGE_RECURRENT;
    const E* panel = packed + axis.first(p) * all_gates;
    for (i64 j = 0; j < u.J; j += step) {
      const i64 blocks = smaller(step, u.J - j), size = blocks * W * line;
      const E* const after =
          j + blocks < u.J ? panel + size : packed + axis.first(next) * all_gates;
      const Stretch<E> sum[1] = {
          {{reinterpret_cast<const E*>(d_z(j, at)), W},
           panel,
           W,
           blocks,
           ws.lines * W,
           all_gates * line,
           large ? Ahead::of(after, size * i64(sizeof(E)), count, blocks * W) : Ahead{}}};
      panel += size;
      const Lines<T> in = j ? out : Lines<T>{};
      panels_at_once == 2 ? product_of_two<E>(width, 1, sum, in, out)
                          : product<E>(count, width, sum, in, out);
    }
  }
};

}  // namespace gatewise::GATEWISE_ISA
