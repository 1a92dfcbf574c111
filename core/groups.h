// The groups of rows that never wait for each other, and where the tape has theirs.
//
// The batch falls into two groups where it is large and the weights are not, else it is one. How
// many there are depends on the sizes alone, never on the number of workers or the instruction set,
// and so do the bits. A group is a piece of the batch, and has half of its tokens, as nearly as
// whole rows allow: where lengths differ, the longer sequences are the fewer.
//
// A tape that only backward reads lies by groups: all of group 0, step by step, then all of group
// 1. In the order of time two workers write next to each other at every step, and what a processor
// fetches ahead, behind the rows of one, is what the other writes: a line that two caches want
// crosses between them, forward and back. A tape that somebody may look at, one group, and every
// other array are in the order of time.
#pragma once
#include "shape.h"

namespace gatewise {

inline constexpr i64 GROUPS = 2, GROUP_ROWS = 4;    // most groups; rows that are worth one
inline constexpr i64 GROUP_WEIGHTS = i64(5) << 19;  // bytes: larger ones had better be read once
// What each token costs in few.h more than in backward.h, as packed numbers of each weight row. The
// tokens that few.h may take lie in the order of time: it has no groups.
inline constexpr i64 FEW_TOKENS = 4;

// bytes: of a number of the weights, as products read them.
constexpr i64 group_count(const Dims& d, int G, i64 bytes) {
  return d.B >= GROUPS * GROUP_ROWS && G * d.H * (d.I + d.P) * bytes <= GROUP_WEIGHTS ? GROUPS : 1;
}
// The same of a tape that lies by groups.
constexpr i64 tape_groups(const Dims& d, int G, i64 bytes) {
  return d.T > 1 && FEW_TOKENS * d.N > d.I + d.P ? group_count(d, G, bytes) : 1;
}

// Where a tape in so many groups has its tokens.
struct TapeOrder {
  Sequence seq;
  i64 groups;

  // Of step t and row b. Rows of one group follow each other.
  i64 token(i64 t, i64 b) const {
    if (groups == 1) return seq.token(t) + b;
    if (b < seq.first_rows) return seq.token_of(0, t) + b;
    return seq.token_of(0, seq.T) + seq.token_of(1, t) + b - seq.first_rows;
  }
};

// Rows of the batch: first .. end-1.
struct Rows {
  i64 first, end;
  i64 operator[](i64 k) const { return first + k; }
  i64 count() const { return end - first; }
  // How many of them take part while `active` sequences do.
  i64 among(i64 active) const { return larger(0, smaller(active, end) - first); }
  Rows in(const Rows& other) const {
    const i64 from = larger(first, other.first);
    return {from, larger(from, smaller(end, other.end))};
  }
};

// Where the k-th of `count` pieces of these rows begins, which are equal in tokens as nearly as
// whole rows allow. A piece may be empty, but neither half is.
inline __attribute__((always_inline)) i64 border(const Rows& rows, const i64* row_offsets, i64 k,
                                                 i64 count) {
  const i64 even = rows.first + rows.count() * k / count;
  if (!row_offsets || rows.count() == 0 || k == 0 || k == count) return even;
  const auto before = [&](i64 b) { return row_offsets[b] - row_offsets[rows.first]; };
  const i64 goal = before(rows.end) * k;  // of count times as many
  i64 b = rows.first;
  while (before(b + 1) * count <= goal) b++;
  return goal - before(b) * count > before(b + 1) * count - goal ? b + 1 : b;
}
inline __attribute__((always_inline)) Rows piece(const Rows& rows, const Sequence& seq, i64 k,
                                                 i64 count) {
  return {border(rows, seq.row_offsets, k, count), border(rows, seq.row_offsets, k + 1, count)};
}
// Group g.
constexpr Rows group_rows(const Sequence& seq, i64 g, i64 groups) {
  if (groups == 1) return {0, g ? 0 : seq.B};
  return g ? Rows{seq.first_rows, seq.B} : Rows{0, seq.first_rows};
}

}  // namespace gatewise
