// The cell itself: what happens between the products, for the units of one panel and the rows of
// one tile. The letters and the order of the lines are those of reference.py and docs/math.md.
#pragma once
#include "act.h"
#include "cell.h"
#include "pack.h"

namespace gatewise::GATEWISE_ISA {

// T: what is computed in; E: the operands of the products, as which h goes on to the next of them;
// K: the numbers of the tape. Lines begin at the panel's first unit, one line a row. Those without
// data are absent.
template <class T, class E = T, class K = Number<E>>
struct ForwardRows {
  i64 rows, j;
  Lines<T> z;         // [W] read: W_ih x + W_hh h; scratch after that
  const T* bias;      // [W] read
  const T* peep;      // [3][H] read; null without peepholes
  Lines<T> c;         // the running cell state, read and written; absent in a cell without one
  Lines<T> h;         // written; absent where only products read it
  Lines<K> tape;      // written, slots H apart; absent: nothing is kept
  bool past = false;  // the tape past the caches; its whole vectors are aligned
  Lines<Number<E>> h_rounded{};  // written, where operands are pairs
  Lines<Number<E>> h_brief{};    // written in place of h, where that is bfloat16, too
};

template <class T, class E = T>
struct BackwardRows {
  using K = Number<E>;
  i64 rows, j;
  const T* peep;             // [3][H] read
  Lines<const K> tape;       // read, slots H apart
  Lines<const K> c_before;   // read: c(t-1); absent: zeros
  Lines<const T> d_h;        // read: gradient from the step after; padded to whole vectors
  Lines<const T> d_y;        // read: gradient from above; absent: zeros
  Lines<const K> brief_d_y;  // read in its place, where operands are pairs
  Lines<const T> d_tape;     // read, slots H apart; absent: zeros
  Lines<T> d_c;              // read: d loss / d c(t) from the step after; written: towards c(t-1)
  Lines<K> d_z;              // written, [W]
  Lines<T> g_tape;           // written, slots H apart; absent: not wanted
};

// Group q of the panel, n of its lanes; `whole` where that is all of them. p and H are copies: what
// lies in the caller's memory would have to be read again after every store. They are made here, a
// field at a time: an argument by value is copied as vectors, which would wait for all stores
// before them, those of the product and of the group before among them.
template <class T, class E, class K, Cell cell, bool whole>
void forward_group(const Units<T>& u, const ForwardRows<T, E, K>& given, int q, int n) {
  constexpr int L = LANES<T>, G = cell.gates();
  const ForwardRows<T, E, K> p = given;
  const i64 H = u.H;
  const i64 at = i64(q) * L;  // the group's first unit, counted in the panel
  const auto get = [n](const T* from) { return whole ? load(from) : load(from, n); };
  const auto put = [n](auto* to, Vec<T> v) { whole ? store(to, v) : store(to, v, n); };
  const auto line = [&](i64 r, int gate) { return p.z[r] + (q * G + gate) * L; };
  Vec<T> bias[G], peep[3];
#pragma GCC unroll 4
  for (int k = 0; k < G; k++) bias[k] = load(p.bias + (q * G + k) * L);
  if constexpr (cell.peephole)
    for (int k = 0; k < 3; k++) peep[k] = get(p.peep + k * H + p.j * u.U + at);
  for (i64 r = 0; r < p.rows; r++) {
    Vec<T> z[G];
#pragma GCC unroll 4
    for (int k = 0; k < G; k++) z[k] = load(line(r, k)) + bias[k];
    Vec<T> c = {};
    if constexpr (cell.has_cell_state()) c = get(p.c[r] + at);
    if constexpr (cell.peephole) {
      if constexpr (cell.slot_i() >= 0) z[cell.slot_i()] = fma(peep[0], c, z[cell.slot_i()]);
      if constexpr (cell.slot_f() >= 0) z[cell.slot_f()] = fma(peep[1], c, z[cell.slot_f()]);
    }
    const Vec<T> g = activate<T, cell.g, E>(z[cell.slot_g()]);
    K* tape = p.tape.data ? p.tape[r] + at : nullptr;
    const auto keep = [&](int slot, Vec<T> v) {
      if (!tape) return;
      if constexpr (whole && !IS_PAIR<E>)
        if (p.past) return store_past(tape + slot * H, v);
      put(tape + slot * H, v);
    };
    keep(cell.slot_g(), g);
    if constexpr (!cell.has_cell_state()) {
      c = g;
    } else {
      Vec<T> i = set1(T(1)), f = set1(T(1));
      if constexpr (cell.slot_i() >= 0) {
        i = activate<T, cell.i, E>(z[cell.slot_i()]);
        keep(cell.slot_i(), i);
      }
      if constexpr (cell.slot_f() >= 0) {
        f = activate<T, cell.f>(z[cell.slot_f()]);  // in full: what it forgets adds up over steps
        keep(cell.slot_f(), f);
      }
      if constexpr (cell.coupled) f = set1(T(1)) - i;
      if constexpr (cell.f == Act::zero)
        c = i * g;
      else
        c = fma(i, g, f * c);
      put(p.c[r] + at, c);
      keep(cell.slot_c(), c);
    }
    if constexpr (cell.slot_o() >= 0) {
      if constexpr (cell.peephole) z[cell.slot_o()] = fma(peep[2], c, z[cell.slot_o()]);
      const Vec<T> o = activate<T, cell.o, E>(z[cell.slot_o()]);
      keep(cell.slot_o(), o);
      store(line(r, cell.slot_o()), o);
    }
    store(line(r, cell.slot_g()), c);
  }
  // A loop of its own: its chains do not wait for those above, and more rows are in flight in each.
  for (i64 r = 0; r < p.rows; r++) {
    Vec<T> h = activate<T, cell.out, E>(load(line(r, cell.slot_g())));
    if constexpr (cell.slot_o() >= 0) h = load(line(r, cell.slot_o())) * h;
    if constexpr (IS_PAIR<E>) {
      put(p.h_rounded[r] + at, h);
      if (p.h_brief.data) put(p.h_brief[r] + at, h);
      if (!p.h.data) continue;
    }
    put(p.h[r] + at, h);
  }
}

template <class T, class E, class K, Cell cell>
void forward_units(const Units<T>& u, const ForwardRows<T, E, K>& p) {
  for (int q = 0; q < u.groups; q++) {
    const int n = u.lanes(p.j, q);
    if (n == LANES<T>)
      forward_group<T, E, K, cell, true>(u, p, q, n);
    else if (n > 0)
      forward_group<T, E, K, cell, false>(u, p, q, n);
  }
}

// watched: some gradient arrives at the slots, or the gradients of the slots are wanted.
template <class T, class E, Cell cell, bool watched, bool whole>
void backward_group(const Units<T>& u, const BackwardRows<T, E>& given, int q, int n) {
  constexpr int L = LANES<T>, G = cell.gates();
  const BackwardRows<T, E> p = given;
  const i64 H = u.H;
  const Vec<T> one = set1(T(1));
  const i64 at = i64(q) * L;
  const auto get = [n](const auto* from) { return whole ? load(from) : load(from, n); };
  const auto put = [n](T* to, Vec<T> v) { whole ? store(to, v) : store(to, v, n); };
  Vec<T> peep[3];
  if constexpr (cell.peephole)
    for (int k = 0; k < 3; k++) peep[k] = get(p.peep + k * H + p.j * u.U + at);
  for (i64 r = 0; r < p.rows; r++) {
    const Number<E>* tape = p.tape[r] + at;
    const auto kept = [&](int slot) { return slot < 0 ? one : get(tape + slot * H); };
    // The total gradient at a slot: what came through the cell, and what arrives from outside.
    const auto total = [&](int slot, Vec<T> d) {
      if constexpr (watched) {
        if (p.d_tape.data) d = d + get(p.d_tape[r] + at + slot * H);
        if (p.g_tape.data) put(p.g_tape[r] + at + slot * H, d);
      }
      return d;
    };
    const auto emit = [&](int slot, Vec<T> d_z) { store(p.d_z[r] + (q * G + slot) * L, d_z); };

    Vec<T> d_h = load(p.d_h[r] + at);
    if (p.d_y.data) d_h = d_h + get(p.d_y[r] + at);
    if constexpr (IS_PAIR<E>)
      if (p.brief_d_y.data) d_h = d_h + get(p.brief_d_y[r] + at);
    const Vec<T> c = kept(cell.slot_c());
    const Vec<T> a = activate<T, cell.out, E>(c);
    Vec<T> d_c = d_h;
    if constexpr (cell.slot_o() >= 0) {
      const Vec<T> o = kept(cell.slot_o());
      const Vec<T> d_zo = through<T, cell.o>(total(cell.slot_o(), d_h * a), o);
      emit(cell.slot_o(), d_zo);
      d_c = through<T, cell.out>(d_h * o, a);
      if constexpr (cell.peephole) d_c = fma(d_zo, peep[2], d_c);
    } else {
      d_c = through<T, cell.out>(d_h, a);
    }
    if constexpr (!cell.has_cell_state()) {
      emit(cell.slot_g(), through<T, cell.g>(total(cell.slot_g(), d_c), c));
    } else {
      d_c = total(cell.slot_c(), d_c + get(p.d_c[r] + at));
      const Vec<T> g = kept(cell.slot_g()), i = kept(cell.slot_i());
      const Vec<T> before = p.c_before.data ? get(p.c_before[r] + at) : Vec<T>{};
      emit(cell.slot_g(), through<T, cell.g>(total(cell.slot_g(), d_c * i), g));
      Vec<T> towards = {};  // d loss / d c(t-1)
      if constexpr (cell.coupled) {
        const Vec<T> d_zi = through<T, cell.i>(total(cell.slot_i(), d_c * (g - before)), i);
        emit(cell.slot_i(), d_zi);
        towards = d_c * (one - i);
        if constexpr (cell.peephole) towards = fma(d_zi, peep[0], towards);
      } else {
        if constexpr (cell.slot_i() >= 0) {
          const Vec<T> d_zi = through<T, cell.i>(total(cell.slot_i(), d_c * g), i);
          emit(cell.slot_i(), d_zi);
          if constexpr (cell.peephole) towards = d_zi * peep[0];
        }
        if constexpr (cell.slot_f() >= 0) {
          const Vec<T> f = kept(cell.slot_f());
          const Vec<T> d_zf = through<T, cell.f>(total(cell.slot_f(), d_c * before), f);
          emit(cell.slot_f(), d_zf);
          if constexpr (cell.peephole) towards = fma(d_zf, peep[1], towards);
          towards = fma(d_c, f, towards);
        } else if constexpr (cell.f == Act::one) {
          towards = towards + d_c;
        }
      }
      put(p.d_c[r] + at, towards);
    }
  }
}

template <class T, class E, Cell cell, bool watched>
void backward_units(const Units<T>& u, const BackwardRows<T, E>& p) {
  constexpr int G = cell.gates(), L = LANES<T>;
  for (int q = 0; q < u.groups; q++) {
    const int n = u.lanes(p.j, q);
    if (n == L)
      backward_group<T, E, cell, watched, true>(u, p, q, n);
    else if (n > 0)
      backward_group<T, E, cell, watched, false>(u, p, q, n);
    else  // no such units, but the product reads the whole line
      for (i64 r = 0; r < p.rows; r++)
        for (int k = 0; k < G; k++) store(p.d_z[r] + (q * G + k) * L, Vec<T>{});
  }
}

// The pointwise functions of a cell, chosen once a call.
template <class T, class E = T, class K = Number<E>>
struct Pointwise {
  void (*forward)(const Units<T>&, const ForwardRows<T, E, K>&);
  void (*backward)(const Units<T>&, const BackwardRows<T, E>&);
  void (*backward_watched)(const Units<T>&, const BackwardRows<T, E>&);
  Cell cell;
};

template <class T, class E = T, class K = Number<E>, int row = 0>
Pointwise<T, E, K> pointwise_of(int index) {
  if constexpr (row == CELL_COUNT) {
    return {};
  } else {
    constexpr Cell cell = CELLS[row].cell;
    if (index == row)
      return {forward_units<T, E, K, cell>, backward_units<T, E, cell, false>,
              backward_units<T, E, cell, true>, cell};
    return pointwise_of<T, E, K, row + 1>(index);
  }
}

}  // namespace gatewise::GATEWISE_ISA
