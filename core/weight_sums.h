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

template <class T, class E = T>
struct WeightSums {
  using K = Number<E>;
  static constexpr i64 L = LANES<T>;
  static constexpr T one = T(1);
  Tokens<T> of{};
  i64 length = 0;       // of a column, in operands
  E* turned = nullptr;  // [R][length]: d_z as columns; null where the tokens lie as they are used

  WeightSums() = default;
  WeightSums(const Tokens<T>& tokens, Carver& carver)
      : of(tokens),
        length(operands<E>(round_up(of.n, L) + L)),  // no power of two: rows would share cache sets
        turned(any() && are_turned() ? carver.take<E>(of.R * length) : nullptr) {}

  bool any() const { return of.d_W_ih || of.d_W_hh || of.d_b; }
  bool are_turned() const { return IS_PAIR<E> || !rows_are_few(of.n); }

  void run(const Team& team) const {
    if (!any()) return;
    if (are_turned()) {
      turn(team);
      team.meet();
    }
    const Share mine = team.of(ceil_div(of.R, MR));
    const i64 begin = mine.begin * MR, rows = smaller(of.R, mine.end * MR) - begin;
    if (rows <= 0) return;
    add_up(begin, rows, of.I, of.x, of.d_W_ih);
    add_up(begin, rows, of.H, of.h, of.d_W_hh);
    if (of.d_b) biases(begin, rows);
  }

 private:
  Lines<const K> d_z() const {
    if constexpr (IS_PAIR<E>)
      return of.rounded_d_z;
    else
      return of.d_z;
  }

  void turn(const Team& team) const {
    const Share mine = team.of(ceil_div(of.n, L));
    for (i64 k = mine.begin; k < mine.end; k++) {
      const K* token[L];
      const int count = int(smaller(L, of.n - k * L));
      for (int r = 0; r < count; r++) token[r] = d_z()[k * L + r];
      pack_columns(token, count, of.R, turned, length, k * L);
    }
  }

  void add_up(i64 begin, i64 rows, i64 width, Lines<const T> lines, T* d_W) const {
    if (!d_W) return;
    const Lines<T> out{d_W + begin * width, width};
    if constexpr (!IS_PAIR<E>)
      if (!are_turned())
        return lines_product<T>(rows, width, {of.d_z.data + begin, 1, of.d_z.stride}, of.n, lines,
                                out, of.add);
    block_product<E>(rows, width, Lines<const E>{turned, length}.from(begin), of.n, lines, out,
                     of.add);
  }

  void biases(i64 begin, i64 rows) const {
    if constexpr (IS_PAIR<E>) {
      for (i64 k = begin; !of.add && k < begin + rows; k++) of.d_b[k] = T(0);
      for (i64 t = 0; t < of.n; t++)
        for (i64 k = begin; k < begin + rows; k++) of.d_b[k] += widened(d_z()[t][k]);
    } else {
      lines_product<T>(1, rows, {&one, 0, 0}, of.n, of.d_z.right(begin), {of.d_b + begin, 0},
                       of.add);
    }
  }
};

template <class T, class E = T>
i64 sums_bytes(const SumsCall<T>& call) {
  Carver carver{nullptr};
  WeightSums<T, E>(call.tokens, carver);
  return carver.used;
}

template <class T, class E = T>
void sums(SumsCall<T>& call, int id, int count) {
  Carver carver{call.workspace};
  WeightSums<T, E>(call.tokens, carver).run({id, count, &call.barrier});
}

}  // namespace gatewise::GATEWISE_ISA
