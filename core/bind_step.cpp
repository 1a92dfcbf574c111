// One step of one small layer for Python: a cell in a loop, where the call costs more than the
// arithmetic. Fewer arrays are read, results are made here, and Python's lock is kept.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>

#include "arrays.h"
#include "cell.h"
#include "dispatch.h"
#include "kernel.h"
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
    refuse_lazy(object);
    const Array W_hh = weights.size() == 6 ? arrays.read(weights[1], "W_hh") : Array{};
    if (x.ndim != 2 || W_hh.ndim != 2) fail("expected x (B, I) and W_hh (G*H, H)");
    const i64 B = x.shape[0], I = x.shape[1], H = W_hh.shape[1];
    if (B == 0 || I == 0 || H == 0) fail("expected B > 0, I > 0, H > 0");
    if (I > 1 && x.stride[1] != 1) fail("x: expected the last axis to be contiguous");
    if (x.code != kFloat || (x.bytes != 4 && x.bytes != 8)) fail_type("x: float32 or float64");
    if (I == 1 || H == 1)
      for (nb::handle w : weights) refuse_lazy(w);
    dims = {1, B, I, H, H, 1, B};
    if (!is_single(dims)) fail("too many rows: expected a step of few");
  }

  // The core knows no sum of their gradients.
  void refuse_peepholes() const {
    if (row.peephole) fail("expected a cell without peepholes");
  }

  int threads(double passes) const { return workers(dims, row.gates(), usual_threads(), passes); }

  // A part of a conjugate is a view with a mark: its numbers in memory have the other sign. It has
  // gaps where there is more than one number, so weights are asked only where there may be one.
  static void refuse_lazy(nb::handle object) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    if (object.is_none()) return;
    const nb::object marked = nb::steal(PyObject_CallMethodNoArgs(object.ptr(), is_neg));
    if (!marked.is_valid()) throw nb::python_error();
    if (marked.ptr() == Py_True) fail("expected no lazy negative");
  }

  template <class T, template <class> class Call>
  Call<T> call(Reader<T>& r, nb::handle h, nb::handle c, nb::handle weights) const {
    Call<T> call{};
    call.dims = dims;
    call.sequence = {nullptr, nullptr, 1, dims.B};
    call.cell = cell;
    call.x = {x.as<const T>(), 0, x.stride[0]};
    const Axis B{"B", dims.B}, H{"H", dims.H};
    auto& dir = call.direction[0];
    dir.w = read_weights(r, weights, dims, cell);
    if (dir.w.W_hr) fail("W_hr: expected None");
    for (nb::handle state : {h, c}) {
      refuse_subclass(state);
      refuse_lazy(state);
    }
    dir.h0 = r.input(h, "h", {B, H});
    dir.c0 = r.input(c, "c", {B, H});
    return call;
  }

 private:
  static void refuse_subclass(nb::handle object) {
    if (!object.is_none() && !is_plain(object)) fail_type("expected a torch.Tensor, no subclass");
  }
};

// A result in the making: freed if something fails before it is given away.
class Result {
 public:
  template <class... Sizes>
  Result(bool wanted, int bytes, Sizes... sizes)
      : fresh_(wanted ? Fresh::make(bytes, {sizes...}) : nullptr) {}
  template <class T>
  T* as() const {
    return fresh_ ? reinterpret_cast<T*>(fresh_->numbers()) : nullptr;
  }
  nb::object give(const Step& step) {
    return fresh_ ? fresh_.release()->give(*step.table) : nb::none();
  }

 private:
  struct Free {
    void operator()(Fresh* fresh) const { std::free(fresh); }
  };
  std::unique_ptr<Fresh, Free> fresh_;
};

template <class T>
nb::tuple forward(Step& s, nb::handle h, nb::handle c, nb::handle weights, bool keep_tape) {
  if (keep_tape) s.refuse_peepholes();
  Reader<T> r(s.arrays);
  auto call = s.call<T, ForwardCall>(r, h, c, weights);
  const auto [_, B, I, H, P, D, N] = s.dims;
  constexpr int bytes = sizeof(T);
  Result h_n(true, bytes, B, H), c_n(s.row.has_cell_state(), bytes, B, H),
      tape(keep_tape, bytes, B, i64(s.row.slots()), H);
  const i64 state = round_up(B * H * bytes, 64);  // the kernel's h_n: its output is ours
  const int threads = s.threads(1);
  Workspace space(state + kernels<T>().forward_bytes(call, threads));
  auto& dir = call.direction[0];
  dir.y = {h_n.as<T>(), 0, H};
  dir.h_n = reinterpret_cast<T*>(space.data());
  dir.c_n = c_n.as<T>();
  dir.tape = tape.as<T>();
  call.workspace = space.data() + state;
  run(call, kernels<T>().forward, threads);
  space.check();
  return nb::make_tuple(h_n.give(s), c_n.give(s), tape.give(s));
}

// The gradients of the weights are added to sums: d_W_ih, d_W_hh, d_b, each may be None.
template <class T>
nb::tuple backward(Step& s, nb::tuple wanted, nb::handle h, nb::handle c, nb::handle weights,
                   nb::handle tape, nb::handle d_h_n, nb::handle d_c_n, nb::tuple sums) {
  s.refuse_peepholes();
  Reader<T> r(s.arrays);
  auto call = s.call<T, BackwardCall>(r, h, c, weights);
  const auto [_, B, I, H, P, D, N] = s.dims;
  const i64 rows = s.row.gates() * H, S = s.row.slots();
  constexpr int bytes = sizeof(T);
  auto& dir = call.direction[0];
  dir.tape = r.input(tape, "tape", {{"B", B}, {"S", S}, {"H", H}}, true);
  for (nb::handle d : {d_h_n, d_c_n}) s.refuse_lazy(d);
  dir.d_h_n = r.input(d_h_n, "d_h_n", {{"B", B}, {"H", H}});
  dir.d_c_n = r.input(d_c_n, "d_c_n", {{"B", B}, {"H", H}});
  if (wanted.size() != 3 || sums.size() != 3) fail("wanted and sums: expected three");
  const auto want = [&](int k) { return wanted[std::size_t(k)].ptr() == Py_True; };
  Result d_x(want(0), bytes, B, I), d_h(want(1) && dir.h0, bytes, B, H),
      d_c(want(2) && dir.c0, bytes, B, H);
  call.d_x = {d_x.as<T>(), 0, I};
  dir.d_h0 = d_h.as<T>(), dir.d_c0 = d_c.as<T>();
  call.add = true;
  dir.d_W_ih = r.output(sums[0], "d_W_ih", {{"G*H", rows}, {"I", I}});
  dir.d_W_hh = r.output(sums[1], "d_W_hh", {{"G*H", rows}, {"H", H}});
  dir.d_b = r.output(sums[2], "d_b", {{"G*H", rows}});
  const int threads = s.threads(2);
  Workspace space(kernels<T>().backward_bytes(call, threads));
  call.workspace = space.data();
  run(call, kernels<T>().backward, threads);
  space.check();
  return nb::make_tuple(d_x.give(s), d_h.give(s), d_c.give(s));
}

nb::tuple step(const std::string& cell, nb::handle x, nb::handle h, nb::handle c, nb::tuple weights,
               bool keep_tape) {
  Step s(cell, x, weights);
  return s.x.bytes == 4 ? forward<float>(s, h, c, weights, keep_tape)
                        : forward<double>(s, h, c, weights, keep_tape);
}

nb::tuple step_gradient(const std::string& cell, nb::tuple wanted, nb::handle x, nb::handle h,
                        nb::handle c, nb::tuple weights, nb::handle tape, nb::handle d_h_n,
                        nb::handle d_c_n, nb::tuple sums) {
  Step s(cell, x, weights);
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
  m.def(
      "step", step, "cell"_a, "x"_a, "h"_a.none(), "c"_a.none(), "weights"_a, "keep_tape"_a,
      "One step of a small layer of one direction, on torch tensors: (h, c or None, tape or None)."
      " What does not fit, is not contiguous or is too large raises TypeError or ValueError.");
  m.def(
      "step_gradient", step_gradient, "cell"_a, "wanted"_a, "x"_a, "h"_a.none(), "c"_a.none(),
      "weights"_a, "tape"_a, "d_h_n"_a.none(), "d_c_n"_a.none(), "sums"_a,
      "The gradients by x, h and c, where they are wanted; those of the weights are added to sums:"
      " d_W_ih, d_W_hh, d_b, or None.");
}

}  // namespace gatewise
