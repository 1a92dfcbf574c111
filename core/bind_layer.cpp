// A layer and its gradient for Python: check, call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "arrays.h"
#include "cell.h"
#include "dispatch.h"
#include "groups.h"
#include "kernel.h"
#include "lock.h"
#include "workers.h"
#include "workspace.h"

using namespace nb::literals;

namespace gatewise {
namespace {

// What every call has: sizes, lengths, weights.
struct Problem {
  Dims dims{};
  Sequence sequence{};
  std::vector<i64> offsets, first_offsets, row_offsets;
  bool packed = false;
  int G = 0, S = 0;
};

// Packed input of N tokens.
void read_lengths(const Array& lengths, i64 N, Problem& p) {
  if (lengths.code != kInt || lengths.bytes != 8 || lengths.ndim != 1 || !lengths.contiguous())
    fail_type("batch_sizes: expected a contiguous array of int64 with one axis");
  const i64 *sizes = lengths.as<const i64>(), T = lengths.shape[0];
  p.offsets.assign(1, 0), p.row_offsets.assign(1, 0), p.first_offsets.assign(1, 0);
  for (i64 t = 0; t < T; t++) {
    if (sizes[t] < 1 || (t && sizes[t] > sizes[t - 1]) || sizes[t] > N)
      fail("batch_sizes: expected positive numbers that never grow");
    p.offsets.push_back(p.offsets.back() + sizes[t]);
  }
  if (p.offsets.back() != N)
    fail("batch_sizes: expected a sum of N = " + std::to_string(N) + ", got " +
         std::to_string(p.offsets.back()));
  const i64 B = T ? sizes[0] : 0;
  for (i64 b = 0, length = T; b < B; b++) {
    while (sizes[length - 1] <= b) length--;
    p.row_offsets.push_back(p.row_offsets.back() + length);
  }
  const i64 first_rows = border({0, B}, p.row_offsets.data(), 1, GROUPS);
  for (i64 t = 0; t < T; t++)
    p.first_offsets.push_back(p.first_offsets.back() + smaller(first_rows, sizes[t]));
  p.dims.T = T, p.dims.B = B, p.dims.N = N;
  p.sequence = {
      sizes, p.offsets.data(), T, B, first_rows, p.first_offsets.data(), p.row_offsets.data()};
}

Problem measure(const Array& x, const Array& lengths, nb::tuple weights, Arrays& arrays, int cell) {
  Problem p;
  Dims& d = p.dims;
  p.packed = lengths.present;
  if (!x.present || x.ndim != (p.packed ? 2 : 3))
    fail(std::string("x: expected shape ") + (p.packed ? "(N, I) with batch_sizes" : "(T, B, I)") +
         ", got " + (x.present ? x.describe() : "None"));
  d.D = i64(weights.size());
  if (d.D != 1 && d.D != 2) fail("weights: expected 1 or 2 directions, got " + std::to_string(d.D));
  if (p.packed) {
    read_lengths(lengths, x.shape[0], p);
  } else {
    d.T = x.shape[0];
    d.B = x.shape[1];
    d.N = d.T * d.B;
    p.sequence = {nullptr, nullptr, d.T, d.B};
  }
  if (d.T == 0) fail("x: expected at least one step, T > 0");
  d.I = x.shape[x.ndim - 1];
  p.G = CELLS[cell].cell.gates();
  p.S = CELLS[cell].cell.slots();
  const nb::tuple first = nb::cast<nb::tuple>(weights[0]);
  if (first.size() != 6)
    fail("weights: expected (W_ih, W_hh, b_ih, b_hh, W_hr, peep) for each direction");
  const Array W_hh = arrays.read(first[1], "W_hh");
  if (!W_hh.present || W_hh.ndim != 2 || W_hh.shape[0] % p.G != 0 || W_hh.shape[0] == 0 ||
      W_hh.shape[1] == 0)
    fail("W_hh: expected shape (G*H, P) with G = " + std::to_string(p.G) + ", got " +
         (W_hh.present ? W_hh.describe() : "None") + "; give each of the G gates H rows");
  d.H = W_hh.shape[0] / p.G;
  d.P = W_hh.shape[1];
  if (d.I == 0) fail("x: expected at least one number a token, I > 0");
  return p;
}

// A direction's part of an array whose first axis is D.
template <class T>
T* part(T* all, int direction, i64 size) {
  return all ? all + direction * size : nullptr;
}

// Whether an array is of bfloat16, as those of reduced calls may be.
bool is_brief(const Array& a) { return a.code == kBfloat && a.bytes == 2; }

// The same of the tape; else it is of the dtype of the weights.
bool is_rounded(Arrays& arrays, nb::handle tape) {
  const bool rounded = is_brief(arrays.read(tape, "tape"));
  if (rounded && !has_pairs())
    fail_type(std::string("tape: expected the dtype of x: no bfloat16 products in ") +
              active().isa);
  return rounded;
}

std::vector<Axis> token_shape(const Problem& p, const Axis& last) {
  if (p.packed) return {{"N", p.dims.N}, last};
  return {{"T", p.dims.T}, {"B", p.dims.B}, last};
}

std::vector<Axis> tape_shape(const Problem& p) {
  const Dims& d = p.dims;
  if (p.packed) return {{"D", d.D}, {"N", d.N}, {"S", p.S}, {"H", d.H}};
  return {{"D", d.D}, {"T", d.T}, {"B", d.B}, {"S", p.S}, {"H", d.H}};
}

std::vector<Axis> hidden_shape(const Problem& p) {
  const Dims& d = p.dims;
  if (p.packed) return {{"D", d.D}, {"N", d.N}, {"P", d.P}};
  return {{"D", d.D}, {"T", d.T}, {"B", d.B}, {"P", d.P}};
}

// --- calls --------------------------------------------------------------------------------------

// The arrays of a call that say what it is.
struct Layer {
  Arrays arrays;
  const int cell, threads;
  const Array x;
  Problem p;

  Layer(const std::string& name, nb::handle x_, nb::handle batch_sizes, const nb::tuple& weights,
        int threads_)
      : cell(cell_index(name)),
        threads(checked_threads(threads_)),
        x(arrays.read(nb::isinstance<nb::tuple>(x_) ? nb::handle(x_[0]) : x_, "x")),
        p(measure(x, arrays.read(batch_sizes, "batch_sizes"), weights, arrays, cell)) {}
};

// The tokens of both directions, `own` numbers each: they share an array of all, or a tuple has one
// for each.
template <class U, class T>
std::array<View<U>, 2> tokens(Reader<T>& r, nb::handle of, const char* name, const Problem& p,
                              const Axis& own, const Axis& all, bool required) {
  const auto read = [&](nb::handle array, const Axis& axis) {
    return r.template tokens<U>(array, name, p.dims, p.packed, axis, required);
  };
  if (nb::isinstance<nb::tuple>(of)) {
    if (i64(nb::len(of)) != p.dims.D)
      fail(std::string(name) + ": expected an array, or a tuple of one for each direction");
    const View<U> first = read(of[0], own);
    return {first, p.dims.D == 2 ? read(of[1], own) : first};
  }
  const View<U> first = read(of, all);
  View<U> other = first;
  if (first.data) other.data += all.size > own.size ? own.size : 0;
  return {first, other};
}

// The same, in bfloat16 if that is what is given to a reduced call.
template <class U>
struct Either {
  using Brief = std::conditional_t<std::is_const_v<U>, const Bf16, Bf16>;
  std::array<View<U>, 2> whole{};
  std::array<View<Brief>, 2> brief{};
};
template <class U, class T>
Either<U> either(Reader<T>& r, Arrays& arrays, bool reduced, nb::handle of, const char* name,
                 const Problem& p, const Axis& own, const Axis& all, bool required) {
  Either<U> found;
  if (reduced && !nb::isinstance<nb::tuple>(of) && is_brief(arrays.read(of, name))) {
    Reader<Bf16> brief(arrays);
    found.brief = tokens<typename Either<U>::Brief>(brief, of, name, p, own, all, required);
  } else {
    found.whole = tokens<U>(r, of, name, p, own, all, required);
  }
  return found;
}

// f(T()) for the number type of a call, that of x unless it is reduced.
template <class F>
void by_number(const Layer& layer, bool reduced, F f) {
  if (reduced && is_brief(layer.x))
    f(float{});
  else
    by_dtype(layer.x, f);
}

// Direction k of a call, with its weights.
template <class T, class Call>
auto& direction(Call& call, int k, bool reverse, Reader<T>& r, const nb::tuple& weights) {
  auto& dir = call.direction[k];
  dir.reverse = k == 1 || reverse;
  dir.w = read_weights(r, weights[std::size_t(k)], call.dims, call.cell);
  if (bool(dir.w.W_hr) != bool(call.direction[0].w.W_hr))
    fail("W_hr: expected for both directions or for none");
  return dir;
}

// passes: over the weights.
template <class Call>
void execute(Call& call, i64 (*bytes)(const Call&, int), void (*kernel)(Call&, int, int),
             int threads, double passes) {
  if (call.dims.N == 0) return;
  const int G = CELLS[call.cell].cell.gates();
  threads = workers(call.dims, G, threads, passes);
  const double meeting = threads > call.dims.D && call.dims.T > 1 ? meeting_time(threads) : 0;
  call.least_rows = least_rows(call.dims, G, threads, meeting, active().tile_rows);
  if constexpr (requires { call.near; }) call.near = are_near(meeting, threads);
  const OthersMayGoOn others(passes * products(call.dims, G));
  Workspace space(bytes(call, threads));
  call.workspace = space.data();
  run(call, kernel, threads);
  space.check();
}

template <class T>
void forward(Layer& layer, nb::handle x, nb::handle h0, nb::handle c0, const nb::tuple& weights,
             nb::handle y, nb::handle h_n, nb::handle c_n, nb::handle tape, bool reduced,
             bool by_groups, bool in_parts, bool reverse = false) {
  auto& [arrays, cell, threads, _, p] = layer;
  Reader<T> r(arrays);
  const Dims& d = p.dims;
  const Axis D{"D", d.D}, B{"B", d.B}, I{"I", d.I}, H{"H", d.H}, P{"P", d.P};
  ForwardCall<T> call{};
  call.dims = d;
  call.sequence = p.sequence;
  call.cell = cell;
  call.reduced = reduced && sizeof(T) == 4 && has_pairs();
  call.in_parts = in_parts;
  const auto in = either<const T>(r, arrays, call.reduced, x, "x", p, I, I, true);
  const auto out = either<T>(r, arrays, call.reduced, y, "y", p, P, {"D*P", d.D * d.P}, true);
  const T* h = r.input(h0, "h0", {D, B, P});
  const T* c = r.input(c0, "c0", {D, B, H});
  T* hn = r.output(h_n, "h_n", {D, B, P}, true);
  T* cn = r.output(c_n, "c_n", {D, B, H}, CELLS[cell].cell.has_cell_state());
  const bool rounded = is_rounded(arrays, tape);
  if (rounded && !call.reduced) fail_type("tape: expected the dtype of x unless reduced");
  call.by_groups = by_groups;
  if (by_groups && call.reduced && !rounded && !tape.is_none())
    fail_type("tape: expected bfloat16 of a reduced run, to lie by groups");
  T* kept = rounded ? nullptr : r.output(tape, "tape", tape_shape(p));
  Bf16* short_kept = rounded ? Reader<Bf16>(arrays).output(tape, "tape", tape_shape(p)) : nullptr;
  for (int k = 0; k < d.D; k++) {
    auto& dir = direction(call, k, reverse, r, weights);
    const auto way = std::size_t(k);
    dir.x = in.whole[way], dir.brief_x = in.brief[way];
    dir.y = out.whole[way], dir.brief_y = out.brief[way];
    dir.h0 = part(h, k, d.B * d.P);
    dir.c0 = part(c, k, d.B * d.H);
    dir.h_n = part(hn, k, d.B * d.P);
    dir.c_n = part(cn, k, d.B * d.H);
    dir.tape = part(kept, k, d.N * p.S * d.H);
    dir.rounded_tape = part(short_kept, k, d.N * p.S * d.H);
  }
  execute(call, kernels<T>().forward_bytes, kernels<T>().forward, threads, 1);
}

struct BackwardArrays {
  nb::handle x, h0, c0, y, tape, d_y, d_h_n, d_c_n, d_tape, d_x, d_h0, d_c0, g_tape, g_h;
  nb::tuple weights, d_weights;
  bool by_groups = false, adds = false, reverse = false, adds_inputs = false;
};

template <class T>
void clear(T* data, i64 n) {
  for (i64 k = 0; data && k < n; k++) data[k] = T(0);
}

template <class T>
void backward(Layer& layer, const BackwardArrays& a) {
  auto& [arrays, cell, threads, _, p] = layer;
  Reader<T> r(arrays);
  const Dims& d = p.dims;
  const Axis D{"D", d.D}, B{"B", d.B}, I{"I", d.I}, H{"H", d.H}, P{"P", d.P},
      rows{"G*H", p.G * d.H};
  BackwardCall<T> call{};
  call.dims = d;
  call.sequence = p.sequence;
  call.cell = cell;
  call.adds = a.adds;
  call.adds_inputs = a.adds_inputs;
  call.by_groups = a.by_groups;
  const Axis DP{"D*P", d.D * d.P};
  const bool rounded = is_rounded(arrays, a.tape);
  const auto x = either<const T>(r, arrays, rounded, a.x, "x", p, I, I, true);
  const auto d_x = either<T>(r, arrays, rounded && !a.adds_inputs, a.d_x, "d_x", p, I, I, false);
  const auto y = either<const T>(r, arrays, rounded, a.y, "y", p, P, DP, true);
  const auto d_y = either<const T>(r, arrays, rounded, a.d_y, "d_y", p, P, DP, false);
  const T *h0 = r.input(a.h0, "h0", {D, B, P}), *c0 = r.input(a.c0, "c0", {D, B, H});
  const T *d_h_n = r.input(a.d_h_n, "d_h_n", {D, B, P}),
          *d_c_n = r.input(a.d_c_n, "d_c_n", {D, B, H});
  const T *tape = rounded ? nullptr : r.input(a.tape, "tape", tape_shape(p), true),
          *d_tape = r.input(a.d_tape, "d_tape", tape_shape(p));
  T *d_h0 = r.output(a.d_h0, "d_h0", {D, B, P}), *d_c0 = r.output(a.d_c0, "d_c0", {D, B, H});
  T *g_tape = r.output(a.g_tape, "g_tape", tape_shape(p)),
    *g_h = r.output(a.g_h, "g_h", hidden_shape(p));
  const Bf16* short_tape =
      rounded ? Reader<Bf16>(arrays).input(a.tape, "tape", tape_shape(p)) : nullptr;
  if (i64(a.d_weights.size()) != d.D) fail("d_weights: expected one tuple for each direction");
  const i64 states = d.B * d.P, cells = d.B * d.H, slots = d.N * p.S * d.H;
  for (int k = 0; k < d.D; k++) {
    auto& dir = direction(call, k, a.reverse, r, a.weights);
    const auto way = std::size_t(k);
    const nb::tuple w = nb::cast<nb::tuple>(a.d_weights[std::size_t(k)]);
    if (w.size() != 6 || !w[3].is_none())
      fail(
          "d_weights: expected (d_W_ih, d_W_hh, d_b_ih, None, d_W_hr, d_peep) for each direction; "
          "d_b_ih serves both biases");
    dir.d_W_ih = r.output(w[0], "d_W_ih", {rows, I});
    dir.d_W_hh = r.output(w[1], "d_W_hh", {rows, P});
    dir.d_b = r.output(w[2], "d_b", {rows});
    dir.d_W_hr = r.output(w[4], "d_W_hr", {P, H});
    dir.d_peep = r.output(w[5], "d_peep", {{"3", 3}, H});
    if (dir.d_W_hr && !dir.w.W_hr) fail("d_W_hr: expected None where there is no W_hr");
    if (dir.d_peep && !dir.w.peep) fail("d_peep: expected None where there are no peepholes");
    dir.x = x.whole[way], dir.brief_x = x.brief[way];
    dir.d_x = d_x.whole[way], dir.brief_d_x = d_x.brief[way];
    dir.y = y.whole[way], dir.brief_y = y.brief[way];
    dir.d_y = d_y.whole[way], dir.brief_d_y = d_y.brief[way];
    dir.h0 = part(h0, k, states), dir.c0 = part(c0, k, cells);
    dir.d_h_n = part(d_h_n, k, states), dir.d_c_n = part(d_c_n, k, cells);
    dir.d_h0 = part(d_h0, k, states), dir.d_c0 = part(d_c0, k, cells);
    dir.tape = part(tape, k, slots), dir.rounded_tape = part(short_tape, k, slots);
    dir.d_tape = part(d_tape, k, slots);
    dir.g_tape = part(g_tape, k, slots), dir.g_h = part(g_h, k, d.N * d.P);
    if (d.N == 0 && !a.adds) {  // a sum over no tokens
      clear(dir.d_W_ih, p.G * d.H * d.I), clear(dir.d_W_hh, p.G * d.H * d.P),
          clear(dir.d_b, p.G * d.H);
      clear(dir.d_W_hr, d.P * d.H), clear(dir.d_peep, 3 * d.H);
    }
  }
  execute(call, kernels<T>().backward_bytes, kernels<T>().backward, threads, 2);
}

void forward_any(const std::string& cell, nb::handle x, nb::handle batch_sizes, nb::handle h0,
                 nb::handle c0, nb::tuple weights, nb::handle y, nb::handle h_n, nb::handle c_n,
                 nb::handle tape, int threads, bool reduced, bool in_parts, bool reverse,
                 bool by_groups) {
  Layer layer(cell, x, batch_sizes, weights, threads);
  by_number(layer, reduced, [&]<class T>(T) {
    forward<T>(layer, x, h0, c0, weights, y, h_n, c_n, tape, reduced, by_groups, in_parts, reverse);
  });
}

void backward_any(const std::string& cell, nb::handle x, nb::handle batch_sizes, nb::handle h0,
                  nb::handle c0, nb::tuple weights, nb::handle y, nb::handle tape, nb::handle d_y,
                  nb::handle d_h_n, nb::handle d_c_n, nb::handle d_tape, nb::handle d_x,
                  nb::handle d_h0, nb::handle d_c0, nb::tuple d_weights, nb::handle g_tape,
                  nb::handle g_h, int threads, bool adds, bool reverse, bool by_groups,
                  bool adds_inputs) {
  Layer layer(cell, x, batch_sizes, weights, threads);
  by_number(layer, is_rounded(layer.arrays, tape), [&]<class T>(T) {
    backward<T>(layer, {x,       h0,        c0,        y,    tape,    d_y,        d_h_n,
                        d_c_n,   d_tape,    d_x,       d_h0, d_c0,    g_tape,     g_h,
                        weights, d_weights, by_groups, adds, reverse, adds_inputs});
  });
}

// --- results made here --------------------------------------------------------------------------

// The inputs of a call, flat: x, batch_sizes, h0, c0, then the weights of each direction.
constexpr std::size_t kStates = 4, kFields = 6, kB_ih = 2, kB_hh = 3;

// On torch tensors, none of them lazy, the results are made here: around a small layer, to make
// them in Python and to ask there how everything lies takes longer than to run it.
struct Maker {
  const ExchangeTable* table;
  const int bytes;
  const Problem& p;

  Maker(nb::handle x, const Layer& layer)
      : table(Arrays::exchange(Py_TYPE(x.ptr()))),
        bytes(is_brief(layer.x) ? int(sizeof(float)) : layer.x.bytes),
        p(layer.p) {
    if (!table || !table->to_python) fail_type("x: expected a torch tensor");
  }

  nb::object of(std::initializer_list<i64> shape) const {
    return Fresh::make(bytes, shape)->give(*table);
  }
  nb::object like(const Array& a) const {
    return Fresh::make(a.bytes, a.shape, a.ndim, is_brief(a) ? kBfloat : kFloat)->give(*table);
  }
  nb::object of(const std::vector<Axis>& axes, bool brief) const {
    i64 shape[Array::kAxes];
    int ndim = 0;
    for (const Axis& axis : axes) shape[ndim++] = axis.size;
    return (brief ? Fresh::make(sizeof(Bf16), shape, ndim, kBfloat)
                  : Fresh::make(bytes, shape, ndim))
        ->give(*table);
  }
};

nb::tuple layer(const std::string& cell, nb::handle x, nb::handle batch_sizes, nb::handle h0,
                nb::handle c0, nb::tuple weights, bool keep_tape, bool rounded, bool reduced,
                bool brief, bool by_groups, int threads) {
  Layer layer(cell, x, batch_sizes, weights, threads);
  const Maker make(x, layer);
  const auto [_, B, I, H, P, D, N] = layer.p.dims;
  const bool stateful = CELLS[layer.cell].cell.has_cell_state();
  const nb::object y = make.of(token_shape(layer.p, {"D*P", D * P}), brief),
                   h_n = make.of({D, B, P}), c_n = stateful ? make.of({D, B, H}) : nb::none(),
                   tape = keep_tape ? make.of(tape_shape(layer.p), rounded) : nb::none();
  by_number(layer, reduced, [&]<class T>(T) {
    forward<T>(layer, x, h0, c0, weights, y, h_n, c_n, tape, reduced, by_groups, false);
  });
  return nb::make_tuple(y, h_n, c_n, tape);
}

nb::tuple layer_gradient(const std::string& cell, nb::tuple wanted, nb::handle x,
                         nb::handle batch_sizes, nb::handle h0, nb::handle c0, nb::tuple weights,
                         nb::handle y, nb::handle tape, nb::handle d_y, nb::handle d_h_n,
                         nb::handle d_c_n, nb::handle d_tape, bool by_groups, int threads) {
  Layer layer(cell, x, batch_sizes, weights, threads);
  const Maker make(x, layer);
  const std::size_t D = weights.size();
  if (wanted.size() != kStates + D * kFields) fail("wanted: expected one for each input");
  std::vector<nb::object> found(wanted.size(), nb::none());
  const auto gradient = [&](std::size_t k, nb::handle of) {
    if (!of.is_none() && wanted[k].ptr() == Py_True)
      found[k] = make.like(layer.arrays.read(of, "input"));
  };
  gradient(0, x), gradient(2, h0), gradient(3, c0);
  nb::list d_weights;
  for (std::size_t k = 0; k < D; k++) {
    const nb::tuple w = nb::cast<nb::tuple>(weights[k]);
    const std::size_t first = kStates + k * kFields;
    for (std::size_t n = 0; n < kFields; n++) gradient(first + n, w[n]);
    const nb::object* of = &found[first];
    d_weights.append(nb::make_tuple(of[0], of[1], of[of[kB_ih].is_none() ? kB_hh : kB_ih],
                                    nb::none(), of[4], of[5]));
  }
  by_number(layer, is_rounded(layer.arrays, tape), [&]<class T>(T) {
    backward<T>(layer, {x, h0, c0, y, tape, d_y, d_h_n, d_c_n, d_tape, found[0], found[2], found[3],
                        nb::none(), nb::none(), weights, nb::tuple(d_weights), by_groups});
  });
  for (std::size_t k = 0; k < D; k++) {  // the two biases have one gradient
    const nb::object *b_ih = &found[kStates + k * kFields + kB_ih],
                     *b_hh = &found[kStates + k * kFields + kB_hh];
    if (b_ih->is_none() || b_hh->is_none()) continue;
    const Array from = layer.arrays.read(*b_ih, "d_b_ih"), to = layer.arrays.read(*b_hh, "d_b_hh");
    std::memcpy(to.data, from.data, std::size_t(from.shape[0] * from.bytes));
  }
  nb::list all;
  for (const nb::object& d : found) all.append(d);
  return nb::tuple(all);
}

}  // namespace

void bind_layer(nb::module_& m) {
  m.def(
      "rows_of_first_group",
      [](const std::string& cell, nb::handle batch_sizes, i64 T, i64 B, i64 N, i64 I, i64 H, i64 P,
         i64 bytes) {
        Arrays arrays;
        Problem p;
        p.sequence = {nullptr, nullptr, T, B};
        const Array lengths = arrays.read(batch_sizes, "batch_sizes");
        if (lengths.present) read_lengths(lengths, N, p);
        const int G = CELLS[cell_index(cell)].cell.gates();
        const i64 groups = tape_groups({T, B, I, H, P, 0, N}, G, bytes);
        return group_rows(p.sequence, 0, groups).end;
      },
      "cell"_a, "batch_sizes"_a.none(), "T"_a, "B"_a, "N"_a, "I"_a, "H"_a, "P"_a, "bytes"_a,
      "A tape of numbers of so many bytes that lies by groups has all tokens of so many rows, the "
      "first of the batch, before those of the others; and is in the order of time if these are "
      "all B.");
  m.def("forward", forward_any, "cell"_a, "x"_a, "batch_sizes"_a.none(), "h0"_a.none(),
        "c0"_a.none(), "weights"_a, "y"_a, "h_n"_a, "c_n"_a.none(), "tape"_a.none(), "threads"_a,
        "reduced"_a = false, "in_parts"_a = false, "reverse"_a = false, "by_groups"_a = false,
        "Run the D directions of one layer; fills y, h_n, c_n and, unless it is None, the tape. "
        "Reduced: in float32 the products round what they multiply to bfloat16, where has_pairs(), "
        "and x, y and the tape may be bfloat16. In parts: a part of a longer run, with the bits of "
        "the whole, "
        "even if it is one step; x and y may be tuples, of an array for each direction. Reverse: "
        "direction 0 runs from right to left, too. By groups: so lies the tape, see "
        "rows_of_first_group().");
  m.def(
      "backward", backward_any, "cell"_a, "x"_a, "batch_sizes"_a.none(), "h0"_a.none(),
      "c0"_a.none(), "weights"_a, "y"_a, "tape"_a, "d_y"_a.none(), "d_h_n"_a.none(),
      "d_c_n"_a.none(), "d_tape"_a.none(), "d_x"_a.none(), "d_h0"_a.none(), "d_c0"_a.none(),
      "d_weights"_a, "g_tape"_a.none(), "g_h"_a.none(), "threads"_a, "adds"_a = false,
      "reverse"_a = false, "by_groups"_a = false, "adds_inputs"_a = false,
      "Run the layer's gradient; fills every output that is not None, and changes no input. "
      "Adds: those of the weights to what is there; adds_inputs: that of x, too. x, y, d_y and d_x "
      "may be tuples, of an array for each direction. Reverse: direction 0 runs from right to "
      "left, too. "
      "Of a tape in bfloat16: with products that round what they multiply to it; x, y, d_y and, "
      "unless it is added to, d_x may then be bfloat16, too.");
  m.def("layer", layer, "cell"_a, "x"_a, "batch_sizes"_a.none(), "h0"_a.none(), "c0"_a.none(),
        "weights"_a, "keep_tape"_a, "rounded"_a, "reduced"_a, "brief"_a, "by_groups"_a, "threads"_a,
        "The same on torch tensors: y, h_n, c_n or None, tape or None; the tape rounded to bfloat16"
        " or not, and y, brief, too. What does not fit, is not contiguous or lazy raises TypeError "
        "or ValueError.");
  m.def("layer_gradient", layer_gradient, "cell"_a, "wanted"_a, "x"_a, "batch_sizes"_a.none(),
        "h0"_a.none(), "c0"_a.none(), "weights"_a, "y"_a, "tape"_a, "d_y"_a.none(),
        "d_h_n"_a.none(), "d_c_n"_a.none(), "d_tape"_a.none(), "by_groups"_a, "threads"_a,
        "The same of the gradient: one for each of x, batch_sizes, h0, c0 and the fields of the"
        " weights, None where it is not wanted.");
}

}  // namespace gatewise
