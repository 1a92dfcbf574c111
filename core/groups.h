// The groups of rows that never wait for each other, and where the tape has theirs.
//
// The batch falls into two groups where it is large and the weights are not, else it is one. How
// many there are depends on the sizes alone, never on the number of workers or the instruction set,
// and so do the bits. Where all lengths are equal a group is a half of the batch; else rows are
// dealt to them in turn, so that a batch that shrinks stays balanced.
//
// A tape that only backward reads lies by groups: all of group 0, step by step, then all of group
// 1. In the order of time two workers write next to each other at every step, and what a processor
// fetches ahead, behind the rows of one, is what the other writes: a line that two caches want
// crosses between them, forward and back. A tape that somebody may look at, one group, and every
// other array are in the order of time.
#pragma once
#include "shape.h"

namespace gatewise {

inline constexpr i64 GROUPS = 2, GROUP_ROWS = 4;    // most groups; fewest rows of each
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

  i64 group(i64 b) const { return groups == 1 ? 0 : seq.dealt ? b % 2 : b >= seq.B / 2; }
  // Of step t and row b.
  i64 token(i64 t, i64 b) const {
    if (groups == 1) return seq.token(t) + b;
    const i64 g = group(b);
    if (seq.dealt) return (g ? seq.counted(0, seq.T) : 0) + seq.counted(g, t) + b / 2;
    const i64 first = g ? seq.B / 2 : 0, rows = g ? seq.B - first : seq.B / 2;
    return seq.T * first + t * rows + b - first;
  }
  // Tokens between rows of one group that are so many rows apart.
  i64 apart(i64 rows) const { return groups == 2 && seq.dealt ? rows / 2 : rows; }
};

}  // namespace gatewise
