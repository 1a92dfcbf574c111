// The cells as data: the same rows as src/gatewise/spec.py (a test holds the two equal).
// A Cell is a template argument of the pointwise functions, so no flag is tested in an inner loop.
#pragma once
#include <cstdint>

namespace gatewise {

enum class Act : uint8_t { sigmoid, tanh, relu, identity, one, zero };

constexpr bool welded(Act a) { return a == Act::one || a == Act::zero; }

struct Cell {
  Act i = Act::sigmoid, f = Act::sigmoid, g = Act::tanh, o = Act::sigmoid, out = Act::tanh;
  bool coupled = false;   // f = 1 - i, without weights of its own
  bool peephole = false;  // i and f see c(t-1), o sees c(t)

  // Where a gate stands among the computed ones (torch's order i f g o), or -1 where it is welded.
  constexpr int slot_i() const { return welded(i) ? -1 : 0; }
  constexpr int slot_f() const { return welded(f) || coupled ? -1 : !welded(i); }
  constexpr int slot_g() const { return !welded(i) + (slot_f() >= 0); }
  constexpr int slot_o() const { return welded(o) ? -1 : slot_g() + 1; }
  constexpr int gates() const { return slot_g() + 1 + !welded(o); }
  // c(t) is g(t) itself where i is welded open and f shut: then the tape has no slot for it.
  constexpr bool has_cell_state() const { return !(i == Act::one && f == Act::zero); }
  constexpr int slot_c() const { return has_cell_state() ? gates() : slot_g(); }
  constexpr int slots() const { return gates() + has_cell_state(); }
};

struct Row {
  const char* name;
  Cell cell;
};

// Not inline: a symbol shared between kernel objects is refused by tools/lint_symbols.py, data too.
constexpr Row CELLS[] = {
    {"lstm", {}},
    {"rnn", {.i = Act::one, .f = Act::zero, .o = Act::one, .out = Act::identity}},
    {"rnn_relu",
     {.i = Act::one, .f = Act::zero, .g = Act::relu, .o = Act::one, .out = Act::identity}},
    {"no_input_gate", {.i = Act::one}},
    {"no_forget_gate", {.f = Act::one}},
    {"no_output_gate", {.o = Act::one}},
    {"no_input_activation", {.g = Act::identity}},
    {"no_output_activation", {.out = Act::identity}},
    {"coupled", {.coupled = true}},
    {"peephole", {.peephole = true}},
    {"linear",
     {.i = Act::identity,
      .f = Act::identity,
      .g = Act::identity,
      .o = Act::identity,
      .out = Act::identity}},
};
constexpr int CELL_COUNT = sizeof(CELLS) / sizeof(CELLS[0]);

}  // namespace gatewise
