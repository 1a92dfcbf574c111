// How the workers of one call share its work. Same bits however it is shared: every output is one
// chain of operations, and a share only decides who computes it.
#pragma once
#include "kernel.h"

namespace gatewise::GATEWISE_ISA {

struct Team {
  int id, count;
  Barrier* barrier;
  void meet() const {
    if (count > 1) barrier->wait(count);
  }
  Share of(i64 n) const { return share(n, id, count); }
};

// Two directions go side by side where there are two workers, else one after the other.
// f(direction, team). barrier[0], barrier[1] belong to the teams, barrier[2] to all.
template <class F>
inline __attribute__((always_inline)) void for_directions(i64 D, Barrier* barrier, int id,
                                                          int count, F f) {
  if (D == 2 && count > 1) {
    const int first = (count + 1) / 2;
    id < first ? f(0, Team{id, first, &barrier[0]})
               : f(1, Team{id - first, count - first, &barrier[1]});
  } else {
    for (int d = 0; d < D; d++) f(d, Team{id, count, &barrier[0]});
  }
}

// Which rows and which panels a worker takes. With enough rows the batch is split and the workers
// never meet between steps; rows are dealt in turn (b = id, id + count, ...), so that a batch that
// shrinks stays balanced. With few rows the hidden units are split and the workers meet at every
// step.
struct Split {
  bool by_batch;
  i64 first_row, row_step;
  Split(const Team& team, i64 B)
      : by_batch(team.count == 1 || B >= 2 * team.count),
        first_row(by_batch ? team.id : 0),
        row_step(by_batch ? team.count : 1) {}
  i64 rows(i64 active) const {
    return active > first_row ? ceil_div(active - first_row, row_step) : 0;
  }
  i64 row(i64 k) const { return first_row + k * row_step; }
  Share panels(const Team& team, i64 n) const { return by_batch ? Share{0, n} : team.of(n); }
  void meet(const Team& team) const {
    if (!by_batch) team.meet();
  }
};

// Takes pieces of one block of memory; with a null base it only counts.
struct Carver {
  unsigned char* base;
  i64 used = 0;
  template <class T>
  T* take(i64 n) {
    const i64 at = used;
    used += round_up(n * i64(sizeof(T)), 64);
    return base ? reinterpret_cast<T*>(base + at) : nullptr;
  }
};

}  // namespace gatewise::GATEWISE_ISA
