// The weight gradients of tokens whose d_z lie as rows: of few tokens (few.h), or of many steps of
// a cell at once (bind_step.cpp). R = G*H:
//
//   d_W_ih (R, I) = d_z^T (R, n) x (n, I)     d_W_hh (R, H) = d_z^T (R, n) h (n, H)
//
// Workers take parts of the rows of the results.
#pragma once
#include "lines.h"
#include "pack.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

template <class T>
struct WeightSums {
  static constexpr i64 L = LANES<T>;
  static constexpr T one = T(1);
  Tokens<T> of{};
  i64 length = 0;
  T* turned = nullptr;  // [R][length]: d_z as columns; null where the tokens are few

  WeightSums() = default;
  WeightSums(const Tokens<T>& tokens, Carver& carver)
      : of(tokens),
        length(round_up(of.n, L) + L),  // not a power of two: rows would share cache sets
        turned(any() && !rows_are_few(of.n) ? carver.take<T>(of.R * length) : nullptr) {}

  bool any() const { return of.d_W_ih || of.d_W_hh || of.d_b; }

  void run(const Team& team) const {
    if (!any()) return;
    if (!rows_are_few(of.n)) {
      turn(team);
      team.meet();
    }
    const Share mine = team.of(ceil_div(of.R, MR));
    const i64 begin = mine.begin * MR, rows = smaller(of.R, mine.end * MR) - begin;
    if (rows <= 0) return;
    add_up(begin, rows, of.I, of.x, of.d_W_ih);
    add_up(begin, rows, of.H, of.h, of.d_W_hh);
    if (of.d_b)
      lines_product<T>(1, rows, {&one, 0, 0}, of.n, of.d_z.right(begin), {of.d_b + begin, 0},
                       of.add);
  }

 private:
  void turn(const Team& team) const {
    const Share mine = team.of(ceil_div(of.n, L));
    for (i64 k = mine.begin; k < mine.end; k++) {
      const T* token[L];
      const int count = int(smaller(L, of.n - k * L));
      for (int r = 0; r < count; r++) token[r] = of.d_z[k * L + r];
      pack_columns(token, count, of.R, turned, length, k * L);
    }
  }

  void add_up(i64 begin, i64 rows, i64 width, Lines<const T> lines, T* d_W) const {
    if (!d_W) return;
    const Lines<T> out{d_W + begin * width, width};
    if (rows_are_few(of.n))
      lines_product<T>(rows, width, {of.d_z.data + begin, 1, of.d_z.stride}, of.n, lines, out,
                       of.add);
    else
      block_product<T>(rows, width, Lines<const T>{turned, length}.from(begin), of.n, lines, out,
                       of.add);
  }
};

template <class T>
i64 sums_bytes(const SumsCall<T>& call) {
  Carver carver{nullptr};
  WeightSums<T>(call.tokens, carver);
  return carver.used;
}

template <class T>
void sums(SumsCall<T>& call, int id, int count) {
  Carver carver{call.workspace};
  WeightSums<T>(call.tokens, carver).run({id, count, &call.barrier});
}

}  // namespace gatewise::GATEWISE_ISA
