// A stream for Python: weights packed once, one step a call.
//
// A step must cost little beside its arithmetic (0.3 us for 32 units), so everything that can be
// found out beforehand is: shapes, kernels, and what to compare to see that the weights are those
// that were packed.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "arrays.h"
#include "cell.h"
#include "dispatch.h"
#include "kernel.h"
#include "lock.h"
#include "workspace.h"

using namespace nb::literals;

namespace gatewise {
namespace {

// --- attributes of tensors ----------------------------------------------------------------------

// An attribute of the objects of one type. Where the type computes it in C, as torch's tensors do,
// that function is called at once: to find it again at every step takes as long as it does.
class Attribute {
 public:
  explicit Attribute(const char* name) : name_(PyUnicode_InternFromString(name)) {}

  // A new reference; null, with Python's error set, where there is none.
  PyObject* of(PyObject* object) {
    if (Py_TYPE(object) != type_) find(Py_TYPE(object));
    return get_ ? get_->get(object, get_->closure) : PyObject_GetAttr(object, name_);
  }

 private:
  void find(PyTypeObject* type) {
    Py_INCREF(type);  // held, so that no other type can come to stand where it was
    Py_XDECREF(type_);
    type_ = type;
    get_ = nullptr;
    PyObject* found = PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_);
    if (!found) PyErr_Clear();
    if (found && Py_IS_TYPE(found, &PyGetSetDescr_Type))
      get_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
    Py_XDECREF(found);
  }

  PyObject* const name_;
  PyTypeObject* type_ = nullptr;
  const PyGetSetDef* get_ = nullptr;
};

// --- whether a weight is as it was --------------------------------------------------------------

// One tensor and the place in its module that held it. That the place holds another tensor is cheap
// to see. A look costs more: whether the tensor lies in other memory, what torch counts of changes
// in place, and, since not everybody has torch count (.data, a numpy view, another process), 64
// bytes of its numbers, the next at each look.
class Watched {
 public:
  Watched(nb::dict holder, nb::str name, nb::object tensor)
      : holder_(std::move(holder)), name_(std::move(name)), tensor_(std::move(tensor)) {
    Py_ssize_t next = 0;
    while (!is_at(next) && PyDict_Next(holder_.ptr(), &next, nullptr, nullptr)) at_ = next;
    table_ = Arrays::exchange(Py_TYPE(tensor_.ptr()));
    version_ = version();
    data_ = read(&bytes_);
    sums_.reserve(std::size_t(blocks()));
    for (i64 k = 0; k < blocks(); k++) sums_.push_back(sum(k));
  }

  // Where it still is the dict's item of so many, that is seen without a search.
  bool replaced() const {
    return !is_at(at_) && PyDict_GetItemWithError(holder_.ptr(), name_.ptr()) != tensor_.ptr();
  }
  // What has changed; null: nothing that can be seen.
  const char* look() {
    i64 bytes = 0;
    if (read(&bytes) != data_ || bytes != bytes_) return "was moved to other memory";
    if (version_ != kUncounted && version() != version_) return "was changed in place";
    if (sums_.empty()) return nullptr;
    if (sum(next_) != sums_[std::size_t(next_)]) return "was changed in place";
    if (++next_ == blocks()) next_ = 0;
    return nullptr;
  }
  const char* name() const { return PyUnicode_AsUTF8(name_.ptr()); }

 private:
  static constexpr i64 kBlock = 64;
  static constexpr i64 kUncounted = -1;  // made in inference mode

  // Whether it is what iteration over the dict comes to from there.
  bool is_at(Py_ssize_t place) const {
    PyObject *key, *value;
    return PyDict_Next(holder_.ptr(), &place, &key, &value) && key == name_.ptr() &&
           value == tensor_.ptr();
  }
  i64 blocks() const { return (bytes_ + kBlock - 1) / kBlock; }

  i64 version() const {
    static Attribute attribute("_version");
    PyObject* number = attribute.of(tensor_.ptr());
    if (!number) {
      PyErr_Clear();
      return kUncounted;
    }
    const i64 version = PyLong_AsLongLong(number);
    Py_DECREF(number);
    return version;
  }

  // Where the numbers are, and how many bytes of them; none where they do not lie in one piece.
  const char* read(i64* bytes) const {
    Arrays arrays;
    const Array a =
        table_ ? arrays.read(*table_, tensor_, "weight") : arrays.read(tensor_, "weight");
    *bytes = a.bytes;
    for (int k = 0; k < a.ndim; k++) *bytes *= a.shape[k];
    if (!a.contiguous()) *bytes = 0;
    return a.data;
  }

  uint64_t sum(i64 block) const {
    uint64_t word[kBlock / 8] = {};
    std::memcpy(word, data_ + block * kBlock,
                std::size_t(std::min(kBlock, bytes_ - block * kBlock)));
    uint64_t even = 0, odd = 0;
    for (int k = 0; k < kBlock / 8; k += 2) {
      even = (even ^ word[k]) * 0x9e3779b97f4a7c15u;
      odd = (odd ^ word[k + 1]) * 0xc2b2ae3d27d4eb4fu;
      even ^= even >> 29, odd ^= odd >> 29;
    }
    return even ^ (odd << 1);
  }

  nb::dict holder_;
  nb::str name_;
  nb::object tensor_;
  Py_ssize_t at_ = 0;
  const ExchangeTable* table_;
  i64 version_ = 0, bytes_ = 0, next_ = 0;
  const char* data_ = nullptr;
  std::vector<uint64_t> sums_;
};

// --- the stream ---------------------------------------------------------------------------------

template <class T>
class Layers {
 public:
  Layers(const std::string& cell, i64 batch, bool brief, const std::vector<nb::tuple>& weights)
      : kernels_(&kernels<T>()) {
    StreamPlan<T> plan{cell_index(cell), brief, batch, i64(weights.size()), nullptr};
    const Cell& row = CELLS[plan.cell].cell;
    gated_ = row.has_cell_state();
    Arrays arrays;
    Reader<T> r(arrays);
    std::vector<typename StreamPlan<T>::Layer> layers;
    for (const nb::tuple& w : weights) {
      if (w.size() != 6) fail("weights: expected (W_ih, W_hh, b_ih, b_hh, W_hr, peep) a layer");
      const Array W_ih = arrays.read(w[0], "W_ih"), W_hh = arrays.read(w[1], "W_hh");
      if (W_ih.ndim != 2 || W_hh.ndim != 2 || W_hh.shape[0] % row.gates() || W_hh.empty() ||
          W_ih.empty())
        fail("weights: expected W_ih (G*H, I) and W_hh (G*H, P)");
      const i64 I = W_ih.shape[1], H = W_hh.shape[0] / row.gates(), P = W_hh.shape[1];
      if (!layers.empty() && I != layers.back().P) fail("weights: layers do not fit together");
      if (w[4].is_none() && P != H) fail("W_hh: expected shape (G*H, H) where there is no W_hr");
      const Axis rows{"G*H", W_hh.shape[0]};
      layers.push_back(
          {I,
           H,
           P,
           {r.input(w[0], "W_ih", {rows, {"I", I}}, true),
            r.input(w[1], "W_hh", {rows, {"P", P}}, true), r.input(w[2], "b_ih", {rows}),
            r.input(w[3], "b_hh", {rows}), r.input(w[4], "W_hr", {{"P", P}, {"H", H}}),
            r.input(w[5], "peep", {{"3", 3}, {"H", H}}, row.peephole)}});
      work += 2.0 * double(W_ih.shape[0] * (I + P));
    }
    if (layers.empty()) fail("weights: expected at least one layer");
    plan.layer = layers.data();
    I = layers[0].I, H = layers[0].H, P = layers.back().P, B = batch, L = plan.count;
    work *= double(B);
    // What it keeps of a row is a few bytes for each of these operations.
    if (work > double(Fresh::kMost)) out_of_memory(std::numeric_limits<i64>::max());
    memory_ = std::make_unique<Workspace>(kernels_->stream_bytes(plan));
    kernels_->stream_pack(plan, memory_->data());
    reset();
  }

  void step(const char* x, i64 row, char* y) {
    struct Context {
      const Layers& self;
      const char* x;
      i64 row;
      char* y;
    } context{*this, x, row, y};
    parallel(
        1,
        [](void* c, int, int) {
          auto& context = *static_cast<Context*>(c);
          context.self.kernels_->stream_step(context.self.memory_->data(), context.x, context.row,
                                             context.y);
        },
        &context);
  }

  void reset() {
    for (i64 k = 0; k < L; k++) {
      const StreamState<T> state = kernels_->stream_state(memory_->data(), k);
      std::fill_n(state.h, B * P, T(0));
      std::fill_n(state.c, B * H, T(0));
    }
  }

  // The states, to or from the arrays (L, B, P) and (L, B, H).
  void exchange(nb::handle h, nb::handle c, bool load) {
    Arrays arrays;
    Reader<T> r(arrays);
    const Axis l{"L", L}, b{"B", B};
    T* all_h = const_cast<T*>(load ? r.input(h, "h", {l, b, {"P", P}}, true)
                                   : r.output(h, "h", {l, b, {"P", P}}, true));
    T* all_c = const_cast<T*>(load ? r.input(c, "c", {l, b, {"H", H}}, gated_)
                                   : r.output(c, "c", {l, b, {"H", H}}, gated_));
    for (i64 k = 0; k < L; k++) {
      const StreamState<T> state = kernels_->stream_state(memory_->data(), k);
      move(state.h, all_h + k * B * P, B * P, load);
      if (gated_) move(state.c, all_c + k * B * H, B * H, load);
    }
  }

  i64 I = 0, H = 0, P = 0, B = 0, L = 0;
  double work = 0;  // of a step, in floating-point operations

 private:
  static void move(T* mine, T* theirs, i64 n, bool load) {
    load ? std::copy_n(theirs, n, mine) : std::copy_n(mine, n, theirs);
  }

  const Kernels<T>* kernels_;  // those that packed the weights
  std::unique_ptr<Workspace> memory_;
  bool gated_ = true;
};

class StreamCore {
 public:
  StreamCore(const std::string& cell, i64 batch, const std::string& dtype,
             const std::vector<nb::tuple>& weights, const std::vector<nb::tuple>& watched,
             nb::object is_recording, nb::object numpy_empty, nb::object numpy_dtype)
      : layers_(dtype == "float64"
                    ? Either(std::in_place_index<1>, cell, batch, false, weights)
                    : Either(std::in_place_index<0>, cell, batch, dtype == "bfloat16", weights)),
        is_recording_(std::move(is_recording)),
        numpy_empty_(std::move(numpy_empty)),
        numpy_dtype_(std::move(numpy_dtype)),
        dtype_(dtype),
        code_(dtype == "bfloat16" ? kBfloat : kFloat),
        bytes_(dtype == "float64"   ? 8
               : dtype == "float32" ? 4
                                    : 2) {
    with([&](auto& layers) {
      I_ = layers.I, H_ = layers.H, P_ = layers.P;
      B_ = layers.B, L_ = layers.L, work_ = layers.work;
    });
    shapes_[0] = nb::make_tuple(P_);
    shapes_[1] = nb::make_tuple(B_, P_);
    for (const nb::tuple& w : watched)
      watched_.emplace_back(nb::cast<nb::dict>(w[0]), nb::cast<nb::str>(w[1]), nb::object(w[2]));
  }

  // x (B, I), or (I) where B is 1, to a new array of its kind, or to `out`.
  nb::object step(nb::handle x, nb::handle out) {
    watch();
    Arrays arrays;
    const Array in = arrays.read(x, "x");
    check(in, "x", I_);
    if (in.shape[in.ndim - 1] > 1 && in.stride[in.ndim - 1] != 1)
      fail("x: expected the last axis to be contiguous; copy it first");
    const i64 row = in.ndim == 2 ? in.stride[0] : 0;
    const ExchangeTable* table = Arrays::exchange(Py_TYPE(x.ptr()));
    if (table) refuse_unfit(x);
    if (!out.is_none()) {
      const Array to = arrays.read(out, "out");
      check(to, "out", P_);
      if (to.ndim != in.ndim) fail("out: expected as many axes as x has");
      if (!to.contiguous() || to.read_only) fail("out: expected a contiguous, writable array");
      run(in.data, row, to.data);
      return nb::borrow(out);
    }
    if (table && table->to_python) {
      Result y = in.ndim == 2 ? Result(true, bytes_, B_, P_) : Result(true, bytes_, P_);
      run(in.data, row, y.as<char>());
      return y.give(*table);
    }
    if (numpy_dtype_.is_none()) fail_type("x: expected a torch tensor; numpy has no " + dtype_);
    PyObject* args[] = {nullptr, shapes_[in.ndim - 1].ptr(), numpy_dtype_.ptr()};
    nb::object made = nb::steal(PyObject_Vectorcall(numpy_empty_.ptr(), args + 1,
                                                    2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    if (!made.is_valid()) throw nb::python_error();
    run(in.data, row, arrays.read(made, "out").data);
    return made;
  }

  void reset() {
    refuse_while_busy();
    with([](auto& layers) { layers.reset(); });
  }
  void exchange(nb::handle h, nb::handle c, bool load) {
    refuse_while_busy();
    with([&](auto& layers) { layers.exchange(h, c, load); });
  }
  // Goes on with the weights and the state of another.
  void become(StreamCore& other) {
    refuse_while_busy();
    *this = std::move(other);
  }
  nb::tuple sizes() const { return nb::make_tuple(L_, B_, H_, P_); }

 private:
  using Either = std::variant<Layers<float>, Layers<double>>;

  template <class F>
  void with(F f) {
    layers_.index() == 0 ? f(*std::get_if<0>(&layers_)) : f(*std::get_if<1>(&layers_));
  }

  // Whether the weights are those that were packed: all are where they were, and the one whose turn
  // it is stands a look.
  void watch() {
    if (stale_) fail_stale();
    for (const Watched& weight : watched_)
      if (weight.replaced()) refuse_stale(weight, "was replaced");
    if (watched_.empty()) return;
    Watched& weight = watched_[turn_];
    if (++turn_ == watched_.size()) turn_ = 0;
    if (const char* change = weight.look()) refuse_stale(weight, change);
  }
  [[noreturn]] void refuse_stale(const Watched& weight, const char* change) {
    stale_ = std::string(weight.name()) + " " + change;
    fail_stale();
  }

  // Tensors that are more than their numbers: one that wants a gradient would silently get none.
  void refuse_unfit(nb::handle x) const {
    static Attribute attribute("requires_grad");
    const nb::object wanted = nb::steal(attribute.of(x.ptr()));
    if (!wanted.is_valid()) throw nb::python_error();
    if (wanted.ptr() != Py_True || !nb::cast<bool>(is_recording_())) return;
    fail_argument(
        "x: expected no gradient to be wanted, since none passes through a Stream. "
        "Give x.detach(), or call the module itself.");
  }

  void check(const Array& a, const char* name, i64 last) const {
    const bool fits = a.present && (a.ndim == 2 ? a.shape[0] == B_ && a.shape[1] == last
                                                : a.ndim == 1 && B_ == 1 && a.shape[0] == last);
    const char* letter = name[0] == 'x' ? "I" : "P";
    if (!fits) {
      std::string shape = "(B = " + std::to_string(B_) + ", " + letter + " = " +
                          std::to_string(last) + ")" + (B_ == 1 ? " or without B" : "");
      fail(std::string(name) + ": expected shape " + shape + ", got " +
           (a.present ? a.describe() : "None"));
    }
    if (a.code != code_ || a.bytes != bytes_)
      fail_type(std::string(name) + ": expected " + dtype_ +
                ", as the weights are; convert it first");
  }

  void run(const char* x, i64 row, char* y) {
    refuse_while_busy();
    busy_ = true;
    {
      const OthersMayGoOn others(work_);
      with([&](auto& layers) { layers.step(x, row, y); });
    }
    busy_ = false;
  }

  void refuse_while_busy() const {  // the flag changes under Python's lock alone
    if (busy_)
      throw std::runtime_error(
          "Stream: another thread is in the middle of a step. Make one Stream for each thread.");
  }
  [[noreturn]] void fail_stale() const {
    throw Error("StaleError",
                "Stream: " + *stale_ +
                    " since the weights were copied. Call .reload() to copy them again.");
  }

  Either layers_;
  std::vector<Watched> watched_;
  std::size_t turn_ = 0;  // who is looked at next
  std::optional<std::string> stale_;
  nb::object is_recording_, numpy_empty_, numpy_dtype_;
  std::string dtype_;
  nb::tuple shapes_[2];
  i64 I_ = 0, H_ = 0, P_ = 0, B_ = 0, L_ = 0;
  double work_ = 0;
  Code code_;
  int bytes_;
  bool busy_ = false;
};

}  // namespace

void bind_stream(nb::module_& m) {
  nb::class_<StreamCore>(m, "Stream", "Layers that run one step a call. gatewise.Stream wraps it.")
      .def(
          nb::init<const std::string&, i64, const std::string&, const std::vector<nb::tuple>&,
                   const std::vector<nb::tuple>&, nb::object, nb::object, nb::object>(),
          "cell"_a, "batch"_a, "dtype"_a, "weights"_a, "watched"_a, "is_recording"_a,
          "numpy_empty"_a, "numpy_dtype"_a.none(),
          "dtype: of x and the results: float32, float64 or bfloat16. weights: (W_ih, W_hh, b_ih,"
          " b_hh, W_hr, peep) a layer, those of bfloat16 as float32. watched: (dict, key, tensor).")
      .def("step", &StreamCore::step, "x"_a.none(), "out"_a = nb::none(),
           "One step of all layers: help(gatewise.Stream.step).")
      .def("reset", &StreamCore::reset, "All states to zero.")
      .def("exchange", &StreamCore::exchange, "h"_a, "c"_a.none(), "load"_a,
           "The states from (load) or into the arrays h (L, B, P) and c (L, B, H).")
      .def("sizes", &StreamCore::sizes, "L, B, H, P.")
      .def("become", &StreamCore::become, "other"_a,
           "Goes on with the weights and the state of another, which is not used any more.");
}

}  // namespace gatewise
