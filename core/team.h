// How the workers of one call share its work. Same bits however it is shared: every output is one
// chain of operations, and a share only decides who computes it.
#pragma once
#include "bf16.h"
#include "cell.h"
#include "groups.h"
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

// n things (directions, groups of rows) that need not wait for each other, f(thing, team): side by
// side where there are as many workers, each thing with a barrier of its own; else every worker
// takes some of them whole.
template <class F>
inline __attribute__((always_inline)) void side_by_side(i64 n, const Team& all, Barrier* barrier,
                                                        F f) {
  for (i64 k = 0; k < n; k++) {
    if (all.count < n) {
      if (k % all.count == all.id) f(k, Team{0, 1, nullptr});
    } else {
      const Share team = share(all.count, k, n);
      if (all.id >= team.begin && all.id < team.end)
        f(k, Team{all.id - int(team.begin), int(team.end - team.begin), &barrier[k]});
    }
  }
}

// The weights of both directions do not fit the last cache together, and reading them is what takes
// the time of few rows.
inline constexpr i64 HUGE_WEIGHTS = i64(16) << 20, IN_TURN_ROWS = 16;

// The directions of a layer, f(direction, team): side by side, or one after the other, all workers
// on each, where their weights would drive each other out of the caches.
template <class E, class Call, class F>
inline __attribute__((always_inline)) void each_direction(const Call& call, const Team& all,
                                                          Barrier* barrier, F f) {
  const Dims& d = call.dims;
  const i64 weights = d.D * CELLS[call.cell].cell.gates() * d.H * operand_bytes<E>(d.I + d.P);
  if (d.B > IN_TURN_ROWS || weights <= HUGE_WEIGHTS) return side_by_side(d.D, all, barrier, f);
  for (i64 k = 0; k < d.D; k++) f(k, all);
}

// How much of a worker's share is taken, by whomever: in this round, and (0 until then) the next.
struct alignas(64) Taken {
  int32_t now[2], round;
};
inline constexpr int MOST_DEALERS = 64;  // in a larger team everyone keeps to a share

// Deals things to the workers of a team: first each takes those of its share, then what others have
// left. Where tenants or programs share the cores, the workers are not equally fast for long.
struct Dealer {
  Team team;
  Taken* taken;  // a line a worker; null where nothing is shared

  Dealer(const Team& team_, Taken* lines)
      : team(team_), taken(team.count > 1 && team.count <= MOST_DEALERS ? lines : nullptr) {}

  // Before the team meets for the first time.
  void start() const {
    if (taken) taken[team.id] = {};
  }

  // f(pass, thing, the next thing) for n things, a share `times` times over, up or down. The team
  // meets between two rounds.
  template <class F>
  inline __attribute__((always_inline)) void deal(i64 n, i64 times, bool down, F f) const {
    i64 mine = 0;
    for (int k = 0; k < (taken ? team.count : 1); k++) {
      const int who = (team.id + k) % team.count;
      const Share s = share(n, who, team.count);
      const i64 size = s.end - s.begin;
      const auto thing = [&](i64 at) { return down ? s.end - 1 - at : s.begin + at; };
      for (;;) {
        const i64 at = taken ? take(who) : mine++;
        if (at >= size * times) break;
        const i64 of_pass = at % size;
        f(at / size, thing(of_pass), thing(smaller(of_pass + 1, size - 1)));
      }
    }
    if (!taken) return;
    Taken& own = taken[team.id];
    own.round ^= 1;  // all have left the one before this behind when they met
    __atomic_store_n(&own.now[own.round], 0, __ATOMIC_RELAXED);
  }

 private:
  i64 take(int who) const {
    return __atomic_fetch_add(&taken[who].now[taken[team.id].round], 1, __ATOMIC_RELAXED);
  }
};

// Which rows and which panels a worker takes. By batch: a piece of the rows and all panels, and the
// workers never meet between steps. By units: all rows and panels of its own, and they meet at
// every step; for rows that would be fewer than `least` for each, and for weights so large that
// each worker had better read a part of them.
struct Split {
  bool by_batch;
  Rows rows;
  Split(const Team& team, const Rows& all, const Sequence& seq, i64 least, bool large)
      : by_batch(team.count == 1 || (!large && all.count() >= least * team.count)),
        rows(by_batch ? piece(all, seq, team.id, team.count) : all) {}
  Share panels(const Team& team, i64 n) const { return by_batch ? Share{0, n} : team.of(n); }
  Dealer dealer(const Team& team, Taken* lines) const {
    return by_batch ? Dealer{Team{0, 1, nullptr}, nullptr} : Dealer{team, lines};
  }
  void meet(const Team& team) const {
    if (!by_batch) team.meet();
  }
};

// A layer's tokens are more than the caches of this machine may hold. Then what the next step reads
// and writes is fetched while this one computes: a worker's rows are a short piece of every array,
// and the processor's own guess begins anew at each of them.
inline constexpr i64 FAR_TOKENS = i64(4) << 20;  // bytes
template <class E>
bool tokens_are_far(const Dims& d, i64 kept) {  // numbers on the tape, a token
  return d.N * (d.I + d.P + kept) * i64(sizeof(Number<E>)) >= FAR_TOKENS;
}

// `count` rows of so many numbers into the second-level cache.
template <class T>
void fetch_rows(const Lines<T>& rows, i64 count, i64 numbers) {
  constexpr i64 line = 64 / i64(sizeof(T));
  for (i64 r = 0; rows.data && r < count; r++)
    for (i64 k = 0; k < numbers; k += line) fetch(uintptr_t(rows[r] + k));
}

// Bytes between what one worker writes again and again in the workspace and what another does: what
// a processor fetches ahead of the one must not be the other's, which would then cross between
// their caches. It was seen to reach as far as this, where 32 KB still cost a third of a step (Zen
// 5).
inline constexpr i64 APART = i64(1) << 16;

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
