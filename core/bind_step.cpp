// One step of one layer for Python: a cell in a loop, where the call costs more than the
// arithmetic. Fewer arrays are read, results are made here, and Python's lock is kept but for a
// large step.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "arrays.h"
#include "cell.h"
#include "dispatch.h"
#include "kernel.h"
#include "lock.h"
#include "workers.h"
#include "workspace.h"

using namespace nb::literals;

namespace gatewise {
namespace {

// torch's own classes of tensors: any other is its own affair, and torch's dispatcher's.
bool is_plain(nb::handle tensor) {
  static PyObject* const classes[] = {
      nb::object(nb::module_::import_("torch").attr("Tensor")).release().ptr(),
      nb::object(nb::module_::import_("torch.nn").attr("Parameter")).release().ptr()};
  const auto* cls = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
  return cls == classes[0] || cls == classes[1];
}

// torch.get_num_threads(), for the price of asking OpenMP. torch tells OpenMP only when a thread of
// Python first asks it, or computes there.
int torch_threads() {
  static thread_local const bool told =
      nb::module_::import_("torch").attr("get_num_threads")().is_valid();
  return told ? usual_threads() : 1;
}

// The arrays of a step: x (B, I), h and c (B, H), six weights, the last two None but for peepholes.
struct Step {
  const int cell;
  const Cell& row;
  Arrays arrays;
  const ExchangeTable* table;  // makes the results
  Array x;
  Dims dims{};

  Step(const std::string& name, nb::handle object, const nb::tuple& weights)
      : cell(cell_index(name)), row(CELLS[cell].cell) {
    for (nb::handle w : weights) refuse_subclass(w);
    refuse_subclass(object);
    table = Arrays::exchange(Py_TYPE(object.ptr()));
    if (!table || !table->to_python) fail_type("x: expected a torch tensor");
    x = arrays.read(object, "x");
    const Array W_hh = weights.size() == 6 ? arrays.read(weights[1], "W_hh") : Array{};
    if (x.ndim != 2 || W_hh.ndim != 2) fail("expected x (B, I) and W_hh (G*H, H)");
    const i64 B = x.shape[0], I = x.shape[1], H = W_hh.shape[1];
    if (B == 0 || I == 0 || H == 0) fail("expected B > 0, I > 0, H > 0");
    if (I > 1 && x.stride[1] != 1) fail("x: expected the last axis to be contiguous");
    if (!is_brief() && (x.code != kFloat || (x.bytes != 4 && x.bytes != 8)))
      fail_type("x: float32, float64 or bfloat16");
    dims = {1, B, I, H, H, 1, B};
  }

  bool is_brief() const { return x.code == kBfloat; }

  // The core knows no sum of their gradients.
  void refuse_peepholes() const {
    if (row.peephole) fail("expected a cell without peepholes");
  }

  int threads(double passes) const { return workers(dims, row.gates(), torch_threads(), passes); }

  template <class Call, class Kernel>
  void run(Call& call, Kernel kernel, int threads, double passes) const {
    const OthersMayGoOn others(passes * products(dims, row.gates()));
    gatewise::run(call, kernel, threads);
  }

  template <class T, template <class> class Call>
  Call<T> call(Reader<T>& r, nb::handle h, nb::handle c, nb::handle weights) const {
    Call<T> call{};
    call.dims = dims;
    call.sequence = {nullptr, nullptr, 1, dims.B};
    call.cell = cell;
    const Axis B{"B", dims.B}, H{"H", dims.H};
    auto& dir = call.direction[0];
    dir.x = {x.as<const T>(), 0, x.stride[0]};
    dir.w = read_weights(r, weights, dims, cell);
    if (dir.w.W_hr) fail("W_hr: expected None");
    refuse_subclasses(h, c);
    dir.h0 = r.input(h, "h", {B, H});
    dir.c0 = r.input(c, "c", {B, H});
    return call;
  }

  static void refuse_subclasses(nb::handle h, nb::handle c) {
    for (nb::handle state : {h, c}) refuse_subclass(state);
  }

 private:
  static void refuse_subclass(nb::handle object) {
    if (!object.is_none() && !is_plain(object)) fail_type("expected a torch.Tensor, no subclass");
  }
};

template <class T>
nb::tuple forward(Step& s, nb::handle h, nb::handle c, nb::handle weights, bool keep_tape,
                  bool reduced) {
  if (keep_tape) s.refuse_peepholes();
  Reader<T> r(s.arrays);
  auto call = s.call<T, ForwardCall>(r, h, c, weights);
  call.reduced = reduced && sizeof(T) == 4 && has_pairs();
  const auto [_, B, I, H, P, D, N] = s.dims;
  constexpr int bytes = sizeof(T);
  Result h_n(true, bytes, B, H), c_n(s.row.has_cell_state(), bytes, B, H),
      tape(keep_tape, call.reduced ? 2 : bytes, B, i64(s.row.slots()), H);
  const i64 state = round_up(B * H * bytes, 64);  // the kernel's h_n: its output is ours
  const int threads = s.threads(1);
  Workspace space(state + kernels<T>().forward_bytes(call, threads));
  auto& dir = call.direction[0];
  dir.y = {h_n.as<T>(), 0, H};
  dir.h_n = reinterpret_cast<T*>(space.data());
  dir.c_n = c_n.as<T>();
  if (call.reduced)
    dir.rounded_tape = tape.as<Bf16>();
  else
    dir.tape = tape.as<T>();
  call.workspace = space.data() + state;
  s.run(call, kernels<T>().forward, threads, 1);
  space.check();
  return nb::make_tuple(h_n.give(*s.table), c_n.give(*s.table), tape.give(*s.table));
}

// A step in bfloat16. To widen the large weights would take longer than to multiply by them: they
// are read as they lie, of more than a few rows in pairs, unless there are many. All the rest is
// widened, and the results, which are float32, shortened; the tape is float32, or rounded where
// products are.
class BriefStep {
 public:
  BriefStep(Step& s, nb::handle h, nb::handle c, const nb::tuple& weights)
      : s_(s), r_(s.arrays), B_(s.dims.B), I_(s.dims.I), H_(s.dims.H), rows_(s.row.gates() * H_) {
    s.refuse_subclasses(h, c);
    const Axis rows{"G*H", rows_}, B{"B", B_}, H{"H", H_};
    W_ih_ = r_.input(weights[0], "W_ih", {rows, {"I", I_}}, true);
    W_hh_ = r_.input(weights[1], "W_hh", {rows, {"H", H_}}, true);
    if (!weights[4].is_none()) fail("W_hr: expected None");
    from_[0] = {r_.input(weights[2], "b_ih", {rows}), rows_};
    from_[1] = {r_.input(weights[3], "b_hh", {rows}), rows_};
    from_[2] = {r_.input(weights[5], "peep", {{"3", 3}, H}, s.row.peephole), 3 * H_};
    from_[3] = {r_.input(h, "h", {B, H}), B_ * H_};
    from_[4] = {r_.input(c, "c", {B, H}), B_ * H_};
  }

  nb::tuple run(bool keep_tape) {
    if (keep_tape) s_.refuse_peepholes();
    const int threads = s_.threads(1);
    ForwardCall<float> call{};
    call.dims = s_.dims;
    call.sequence = {nullptr, nullptr, 1, B_};
    call.cell = s_.cell;
    call.reduced = B_ > kRows && has_pairs();
    const bool wide_weights = B_ > (has_pairs() ? kRowsInPairs : kRows);
    i64 numbers = B_ * I_ + 3 * B_ * H_ + (wide_weights ? rows_ * (I_ + H_) : 0);
    for (const Given& given : from_) numbers += given.data ? given.count : 0;
    const i64 wide = round_up(numbers * i64(sizeof(float)), 64);
    Workspace space(wide + kernels<float>().forward_bytes(call, threads));
    call.workspace = space.data() + wide;
    float* at = reinterpret_cast<float*>(space.data());
    const auto widen = [&](const Bf16* from, i64 n) -> const float* {
      if (!from) return nullptr;
      for (i64 k = 0; k < n; k++) at[k] = widened(from[k]);
      return std::exchange(at, at + n);
    };
    const Bf16* x = s_.x.as<const Bf16>();
    auto& dir = call.direction[0];
    dir.x = {at, 0, I_};
    for (i64 b = 0; b < B_; b++) widen(x + b * s_.x.stride[0], I_);
    const float* of[kGiven];
    for (int k = 0; k < kGiven; k++) of[k] = widen(from_[k].data, from_[k].count);
    dir.w = {nullptr, nullptr, of[0], of[1], nullptr, of[2]};
    if (wide_weights)
      dir.w.W_ih = widen(W_ih_, rows_ * I_), dir.w.W_hh = widen(W_hh_, rows_ * H_);
    else
      dir.brief_W_ih = W_ih_, dir.brief_W_hh = W_hh_;
    dir.h0 = of[3], dir.c0 = of[4];
    const auto result = [&] { return std::exchange(at, at + B_ * H_); };
    float *y = result(), *c_n = s_.row.has_cell_state() ? result() : nullptr;
    dir.y = {y, 0, H_};
    dir.h_n = result();
    dir.c_n = c_n;
    Result tape(keep_tape, call.reduced ? 2 : 4, B_, i64(s_.row.slots()), H_);
    if (call.reduced)
      dir.rounded_tape = tape.as<Bf16>();
    else
      dir.tape = tape.as<float>();
    s_.run(call, kernels<float>().forward, threads, 1);
    space.check();
    return nb::make_tuple(shortened(y), c_n ? shortened(c_n) : nb::none(), tape.give(*s_.table));
  }

 private:
  static constexpr i64 kRows = 16, kRowsInPairs = 128;  // of more, wide weights are worth it
  static constexpr int kGiven = 5;
  struct Given {
    const Bf16* data;
    i64 count;
  };
  Step& s_;
  Reader<Bf16> r_;
  const i64 B_, I_, H_, rows_;
  const Bf16 *W_ih_, *W_hh_;
  Given from_[kGiven];

  nb::object shortened(const float* from) const {
    Result result(true, sizeof(Bf16), B_, H_);
    Bf16* to = result.as<Bf16>();
    for (i64 k = 0; k < B_ * H_; k++) to[k] = Bf16(rounded(from[k]) >> 16);
    return result.give(*s_.table);
  }
};

// The weight gradients of many steps. Those of one step are little work and much memory to add to,
// so the tokens are kept, d_z, x and h of each, until there are enough of them to be added at once.
class TokenSums {
 public:
  TokenSums(nb::object W_ih, nb::object W_hh, nb::object d_W_ih, nb::object d_W_hh, nb::object d_b)
      : results_(nb::make_tuple(d_W_ih, d_W_hh, d_b)) {
    Arrays arrays;
    const Array x = arrays.read(W_ih, "W_ih"), h = arrays.read(W_hh, "W_hh");
    if (x.ndim != 2 || h.ndim != 2 || x.shape[0] != h.shape[0] || x.bytes != h.bytes || x.empty() ||
        h.empty())
      fail("expected W_ih (G*H, I) and W_hh (G*H, H)");
    const bool is_brief = x.code == kBfloat;  // then the sums are float32
    if (!is_brief && (x.code != kFloat || (x.bytes != 4 && x.bytes != 8)))
      fail_type("W_ih: float32, float64 or bfloat16");
    R_ = x.shape[0], I_ = x.shape[1], H_ = h.shape[1], bytes_ = is_brief ? 4 : x.bytes;
    bytes_ == 4 ? read<float>(arrays) : read<double>(arrays);
  }

  // Where the d_z of a step's B tokens are to be written, in T or rounded.
  template <class T, class K>
  K* room(const Dims& d, int G) {
    if (sizeof(T) != std::size_t(bytes_) || d.I != I_ || d.H != H_ || G * d.H != R_)
      fail("sums: expected those of the weights");
    const bool rounded = sizeof(K) == sizeof(Bf16);
    if (held_ && (held_ + d.B > most_ || rounded != rounded_)) add_up();
    rounded_ = rounded;
    if (d.B > most_) {
      most_ = d.B;
      memory_.reset();
    }
    if (!memory_) memory_ = std::make_unique<Workspace>(most_ * (row() + I_ + H_) * bytes_);
    return d_z<K>() + held_ * row();
  }

  // Keeps the step's tokens; h null: zeros.
  template <class T>
  void keep(i64 B, Lines<const T> x, const T* h) {
    for (i64 b = 0; b < B; b++)
      std::memcpy(this->x<T>() + (held_ + b) * I_, x[b], std::size_t(I_) * sizeof(T));
    T* to = this->h<T>() + held_ * H_;
    const std::size_t size = std::size_t(B * H_) * sizeof(T);
    h ? std::memcpy(to, h, size) : std::memset(to, 0, size);
    held_ += B;
  }

  nb::tuple finish() {
    if (held_ || !add_) add_up();
    return results_;
  }

 private:
  static constexpr i64 kTokens = 512;
  nb::tuple results_;
  i64 R_, I_, H_, bytes_, most_ = kTokens, held_ = 0;
  bool add_ = false;      // to what is there; false: that is nothing yet
  bool rounded_ = false;  // the d_z that are held
  void* result_[3];
  std::unique_ptr<Workspace> memory_;  // d_z, x and h, each of the most tokens

  i64 row() const { return even_row(R_); }

  template <class T>
  void read(Arrays& arrays) {
    Reader<T> r(arrays);
    const Axis rows{"G*H", R_};
    result_[0] = r.output(results_[0], "d_W_ih", {rows, {"I", I_}});
    result_[1] = r.output(results_[1], "d_W_hh", {rows, {"H", H_}});
    result_[2] = r.output(results_[2], "d_b", {rows});
  }

  template <class T>
  T* d_z() const {
    return memory_ ? reinterpret_cast<T*>(memory_->data()) : nullptr;
  }
  template <class T>
  T* x() const {
    return d_z<T>() + most_ * row();
  }
  template <class T>
  T* h() const {
    return x<T>() + most_ * I_;
  }

  void add_up() {
    bytes_ == 4 ? add_up_in<float>() : add_up_in<double>();
    held_ = 0;
    add_ = true;
  }
  template <class T>
  void add_up_in() const {
    SumsCall<T> call{};
    call.tokens = {held_,
                   R_,
                   I_,
                   H_,
                   add_,
                   {d_z<T>(), row()},
                   {x<T>(), I_},
                   {h<T>(), H_},
                   static_cast<T*>(result_[0]),
                   static_cast<T*>(result_[1]),
                   static_cast<T*>(result_[2])};
    if (rounded_) call.tokens.rounded_d_z = {d_z<Bf16>(), row()};
    Workspace space(kernels<T>().sums_bytes(call));
    call.workspace = space.data();
    const Dims dims{1, larger(1, held_), I_, H_, H_, 1, larger(1, held_)};
    const int G = int(R_ / H_), threads = workers(dims, G, torch_threads(), 1);
    const OthersMayGoOn others(products(dims, G));
    run(call, kernels<T>().sums, threads);
    space.check();
  }
};

// The gradients of the weights go into the sums, if there are any.
template <class T>
nb::tuple backward(Step& s, nb::tuple wanted, nb::handle h, nb::handle c, nb::handle weights,
                   nb::handle tape, nb::handle d_h_n, nb::handle d_c_n, TokenSums* sums) {
  s.refuse_peepholes();
  Reader<T> r(s.arrays);
  auto call = s.call<T, BackwardCall>(r, h, c, weights);
  const auto [_, B, I, H, P, D, N] = s.dims;
  const i64 S = s.row.slots();
  constexpr int bytes = sizeof(T);
  auto& dir = call.direction[0];
  const bool rounded = sizeof(T) == 4 && has_pairs() && s.arrays.read(tape, "tape").code == kBfloat;
  const std::initializer_list<Axis> of_tape = {{"B", B}, {"S", S}, {"H", H}};
  if (rounded)
    dir.rounded_tape = Reader<Bf16>(s.arrays).input(tape, "tape", of_tape, true);
  else
    dir.tape = r.input(tape, "tape", of_tape, true);
  dir.d_h_n = r.input(d_h_n, "d_h_n", {{"B", B}, {"H", H}});
  dir.d_c_n = r.input(d_c_n, "d_c_n", {{"B", B}, {"H", H}});
  if (wanted.size() != 3) fail("wanted: expected three");
  const auto want = [&](int k) { return wanted[std::size_t(k)].ptr() == Py_True; };
  Result d_x(want(0), bytes, B, I), d_h(want(1) && dir.h0, bytes, B, H),
      d_c(want(2) && dir.c0, bytes, B, H);
  dir.d_x = {d_x.as<T>(), 0, I};
  dir.d_h0 = d_h.as<T>(), dir.d_c0 = d_c.as<T>();
  if (sums && rounded)
    dir.rounded_d_z = sums->room<T, Bf16>(s.dims, s.row.gates());
  else if (sums)
    dir.d_z = sums->room<T, T>(s.dims, s.row.gates());
  const int threads = s.threads(2);
  Workspace space(kernels<T>().backward_bytes(call, threads));
  call.workspace = space.data();
  s.run(call, kernels<T>().backward, threads, 2);
  space.check();
  if (sums) sums->keep<T>(B, {dir.x.data, dir.x.row}, dir.h0);
  return nb::make_tuple(d_x.give(*s.table), d_h.give(*s.table), d_c.give(*s.table));
}

nb::tuple step(const std::string& cell, nb::handle x, nb::handle h, nb::handle c, nb::tuple weights,
               bool keep_tape, bool reduced) {
  Step s(cell, x, weights);
  if (s.is_brief()) return BriefStep(s, h, c, weights).run(keep_tape);
  return s.x.bytes == 4 ? forward<float>(s, h, c, weights, keep_tape, reduced)
                        : forward<double>(s, h, c, weights, keep_tape, reduced);
}

nb::tuple step_gradient(const std::string& cell, nb::tuple wanted, nb::handle x, nb::handle h,
                        nb::handle c, nb::tuple weights, nb::handle tape, nb::handle d_h_n,
                        nb::handle d_c_n, TokenSums* sums) {
  Step s(cell, x, weights);
  if (s.is_brief()) fail_type("x: expected float32 or float64");
  return s.x.bytes == 4 ? backward<float>(s, wanted, h, c, weights, tape, d_h_n, d_c_n, sums)
                        : backward<double>(s, wanted, h, c, weights, tape, d_h_n, d_c_n, sums);
}

// What is asked of the weights at every step of a loop: are they the same tensors, as they were?
// Their state is the dtype of the first, which is that of all, or no step is taken; then two
// numbers each: torch's count of changes in place, and whether a gradient is wanted.
class StateOf {
 public:
  explicit StateOf(const nb::tuple& tensors) : tensors_(tensors) {}

  std::size_t size() const { return 1 + 2 * tensors_.size(); }

  nb::object at(std::size_t k) const {
    static PyObject* const names[] = {PyUnicode_InternFromString("requires_grad"),
                                      PyUnicode_InternFromString("_version"),
                                      PyUnicode_InternFromString("dtype")};
    const nb::handle t = tensors_[k ? (k - 1) / 2 : 0];
    if (t.is_none()) return nb::none();
    nb::object value = nb::steal(PyObject_GetAttr(t.ptr(), names[k ? k % 2 : 2]));
    if (value.is_valid()) return value;
    PyErr_Clear();  // a tensor made in inference mode has no count
    return nb::none();
  }

  // Whether it is that of before, from `first` on in steps.
  bool is(const nb::tuple& before, std::size_t first, std::size_t step) const {
    if (before.size() != size()) fail("before: expected the state of these tensors");
    for (std::size_t k = first; k < size(); k += step) {
      const int same = PyObject_RichCompareBool(at(k).ptr(), before[k].ptr(), Py_EQ);
      if (same < 0) throw nb::python_error();
      if (!same) return false;
    }
    return true;
  }

 private:
  const nb::tuple& tensors_;
};

nb::tuple state(nb::tuple tensors) {
  const StateOf of(tensors);
  nb::list all;
  for (std::size_t k = 0; k < of.size(); k++) all.append(of.at(k));
  return nb::tuple(all);
}

bool are(nb::tuple tensors, nb::tuple others, nb::tuple before) {
  if (tensors.size() != others.size()) return false;
  for (std::size_t k = 0; k < tensors.size(); k++)
    if (!tensors[k].is(others[k])) return false;
  return StateOf(tensors).is(before, 0, 1);
}

bool changed(nb::tuple tensors, nb::tuple before) { return !StateOf(tensors).is(before, 1, 2); }

}  // namespace

void bind_step(nb::module_& m) {
  m.def("state", state, "tensors"_a,
        "Of tensors, None among them: the dtype of the first; then of each how often it was changed"
        " in place and whether it wants a gradient.");
  m.def("are", are, "tensors"_a, "others"_a, "before"_a,
        "Whether the tensors are those others and their state is that of before.");
  m.def("changed", changed, "tensors"_a, "before"_a,
        "Whether one of the tensors was changed in place since it was in that state.");
  nb::class_<TokenSums>(m, "TokenSums", "The weight gradients of many steps of a cell.")
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object>(), "W_ih"_a,
           "W_hh"_a, "d_W_ih"_a.none(), "d_W_hh"_a.none(), "d_b"_a.none(),
           "The last three are written: what finish() returns. None: not wanted.")
      .def("finish", &TokenSums::finish, "d_W_ih, d_W_hh, d_b: the sums over all steps.");
  m.def("step", step, "cell"_a, "x"_a, "h"_a.none(), "c"_a.none(), "weights"_a, "keep_tape"_a,
        "reduced"_a = false,
        "One step of a layer of one direction, on torch tensors: (h, c or None, tape or None)."
        " Reduced as in forward(), with a tape that is rounded. What does not fit or is not "
        "contiguous raises TypeError or ValueError.");
  m.def(
      "step_gradient", step_gradient, "cell"_a, "wanted"_a, "x"_a, "h"_a.none(), "c"_a.none(),
      "weights"_a, "tape"_a, "d_h_n"_a.none(), "d_c_n"_a.none(), "sums"_a.none(),
      "The gradients by x, h and c, where they are wanted; those of the weights go into the sums.");
}

}  // namespace gatewise
