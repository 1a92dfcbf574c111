// Arrays from Python, read and checked.
//
// Arrays come as torch tensors (through the DLPack exchange table that torch's type carries: no
// Python code runs, about 50 ns each), as anything with the buffer protocol (numpy), or as anything
// else that speaks DLPack. Every shape, dtype and stride is checked before a pointer is used.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cell.h"
#include "kernel.h"
#include "workspace.h"

namespace nb = nanobind;

namespace gatewise {

// --- arrays -------------------------------------------------------------------------------------

// DLPack's exchange table (DLPack 1.3, dlpack.h), as far as it is used here.
struct PlainTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct OwnedTensor {
  uint32_t major, minor;
  void* context;
  void (*free)(OwnedTensor* self);
  uint64_t flags;
  PlainTensor tensor;
};
struct ExchangeTable {
  uint32_t major, minor;
  void* previous;
  void *allocate, *from_python;
  int (*to_python)(OwnedTensor* tensor, void** object);  // takes the tensor over
  int (*tensor_from_python)(void* object, PlainTensor* out);
  void* stream;
};
constexpr int32_t kCpu = 1;
enum Code : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct Array {
  static constexpr int kAxes = 5;  // the tape has (D, T, B, S, H)
  char* data = nullptr;
  int ndim = 0;
  int64_t shape[kAxes] = {}, stride[kAxes] = {};  // strides in elements
  uint8_t code = 0;
  int bytes = 0;  // of an element
  bool present = false, read_only = false;

  std::string describe() const {
    std::string text = "(";
    for (int k = 0; k < ndim; k++) text += (k ? ", " : "") + std::to_string(shape[k]);
    return text + ")";
  }
  std::string dtype() const {
    const char* kind = code == kFloat ? "float" : code == kBfloat ? "bfloat" : "no float of ";
    return kind + std::to_string(8 * bytes) + (code == kFloat || code == kBfloat ? "" : " bits");
  }
  bool contiguous() const {
    if (empty()) return true;  // whatever its strides
    int64_t expected = 1;
    for (int k = ndim - 1; k >= 0; expected *= shape[k--])
      if (shape[k] > 1 && stride[k] != expected) return false;
    return true;
  }
  bool empty() const {
    for (int k = 0; k < ndim; k++)
      if (shape[k] == 0) return true;
    return false;
  }
  template <class T>
  T* as() const {
    return present ? reinterpret_cast<T*>(data) : nullptr;
  }
};

// A part of a conjugate is a view with a mark: its numbers in memory have the other sign. To say
// whether there is a mark torch gives Python's lock away, at the price of a change of threads where
// another waits for it. So it is asked only where there may be one: numbers of a conjugate lie two
// apart.
inline bool may_be_marked(const Array& a) {
  for (int k = 0; k < a.ndim; k++)
    if (a.shape[k] > 1 && a.stride[k] % 2) return false;
  return !a.empty();
}

// An error of errors.py, by the name of its class; bind.cpp raises it in Python.
struct Error : std::runtime_error {
  const char* const name;
  Error(const char* name_, const std::string& what) : std::runtime_error(what), name(name_) {}
};
[[noreturn]] inline void fail(const std::string& what) { throw Error("ShapeError", what); }
[[noreturn]] inline void fail_type(const std::string& what) { throw Error("DTypeError", what); }
[[noreturn]] inline void fail_argument(const std::string& what) {
  throw Error("ArgumentError", what);
}

// Keeps what has to live as long as the call: buffers and DLPack capsules.
class Arrays {
 public:
  ~Arrays() {
    while (count_ > 0) PyBuffer_Release(&buffers_[--count_]);
  }
  Arrays() {}
  Arrays(const Arrays&) = delete;
  Arrays& operator=(const Arrays&) = delete;

  Array read(nb::handle object, const char* name) {
    Array a;
    if (object.is_none()) return a;
    if (PyObject_CheckBuffer(object.ptr()))
      from_buffer(object, name, a);
    else if (const ExchangeTable* table = exchange(Py_TYPE(object.ptr())))
      from_exchange(*table, object, name, a);
    else
      from_dlpack(object, name, a);
    a.present = true;
    return a;
  }
  Array read(const ExchangeTable& table, nb::handle object, const char* name) {
    Array a;
    from_exchange(table, object, name, a);
    a.present = true;
    return a;
  }

  // The table of a type, or null. The last types are remembered, with a reference, so that no new
  // type can come to stand where one of them was: torch's Tensor and Parameter take turns.
  static const ExchangeTable* exchange(PyTypeObject* type) {
    struct Known {
      PyTypeObject* type = nullptr;
      const ExchangeTable* table = nullptr;
    };
    static Known known[4];
    static unsigned next = 0;
    for (const Known& k : known)
      if (k.type == type) return k.table;
    const ExchangeTable* table = ask_for_table(type);
    Known& oldest = known[next++ % 4];
    Py_INCREF(type);
    Py_XDECREF(oldest.type);
    oldest = {type, table};
    return table;
  }

 private:
  static constexpr int kBuffers = 64;  // a backward call has at most 50 arrays
  Py_buffer buffers_[kBuffers];        // a Py_buffer must not move
  int count_ = 0;
  std::vector<nb::ndarray<>> capsules_;

  static const ExchangeTable* ask_for_table(PyTypeObject* type) {
    auto* object = reinterpret_cast<PyObject*>(type);
    if (!PyObject_HasAttrString(object, "__dlpack_c_exchange_api__")) return nullptr;
    const nb::object capsule = nb::getattr(nb::handle(object), "__dlpack_c_exchange_api__");
    auto* table = static_cast<const ExchangeTable*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) PyErr_Clear();
    return table && table->major == 1 && table->tensor_from_python ? table : nullptr;
  }

  static void fill(const PlainTensor& t, const char* name, Array& a) {
    if (t.device_type != kCpu) fail_type(std::string(name) + ": expected an array on the CPU");
    if (t.ndim > Array::kAxes)
      fail(std::string(name) + ": expected at most 5 axes, got " + std::to_string(t.ndim));
    a.data = static_cast<char*>(t.data) + t.byte_offset;
    a.ndim = t.ndim;
    a.code = t.code;
    a.bytes = t.bits * t.lanes / 8;
    if (!t.data) a.data = nullptr;
    int64_t step = 1;
    for (int k = t.ndim - 1; k >= 0; k--) {
      a.shape[k] = t.shape[k];
      a.stride[k] = t.strides ? t.strides[k] : step;
      step *= t.shape[k];
    }
    if (!a.data && step > 0)
      fail(std::string(name) + ": expected numbers in memory; call .clone() first");
  }

  void from_exchange(const ExchangeTable& table, nb::handle object, const char* name, Array& a) {
    PlainTensor t;
    if (table.tensor_from_python(object.ptr(), &t) != 0) {  // sparse, meta
      PyErr_Clear();
      fail_type(std::string(name) + ": expected a dense tensor on the CPU; convert it first");
    }
    fill(t, name, a);
    if (may_be_marked(a)) refuse_marked(object, name);
  }
  static void refuse_marked(nb::handle tensor, const char* name) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    const nb::object marked = nb::steal(PyObject_CallMethodNoArgs(tensor.ptr(), is_neg));
    if (!marked.is_valid()) throw nb::python_error();
    if (marked.ptr() == Py_True)
      fail(std::string(name) + ": a lazy negative; call .resolve_neg() first");
  }

  void from_buffer(nb::handle object, const char* name, Array& a) {
    if (count_ == kBuffers) fail(std::string(name) + ": too many arrays in one call");
    Py_buffer& buffer = buffers_[count_];
    if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_RECORDS_RO) != 0) {  // dates
      PyErr_Clear();
      fail_type(std::string(name) + ": expected floating-point numbers; convert it first");
    }
    count_++;
    if (buffer.ndim > Array::kAxes) fail(std::string(name) + ": expected at most 5 axes");
    const char* format = buffer.format ? buffer.format : "B";
    if (format[0] == '@' || format[0] == '=') format++;
    a.code = format[1] != 0                         ? 255
             : format[0] == 'f' || format[0] == 'd' ? kFloat
             : format[0] == 'l' || format[0] == 'q' ? kInt
                                                    : 255;
    a.data = static_cast<char*>(buffer.buf);
    a.ndim = buffer.ndim;
    a.bytes = int(buffer.itemsize);
    a.read_only = buffer.readonly;
    for (int k = 0; k < buffer.ndim; k++) {
      a.shape[k] = buffer.shape[k];
      if (a.bytes == 0 || buffer.strides[k] % a.bytes != 0)
        fail(std::string(name) + ": expected strides of whole elements");
      a.stride[k] = buffer.strides[k] / a.bytes;
    }
  }

  void from_dlpack(nb::handle object, const char* name, Array& a) {
    nb::ndarray<> array;
    if (!nb::try_cast(object, array))
      fail_type(std::string(name) + ": expected a torch tensor or a numpy array, got " +
                nb::type_name(object.type()).c_str());
    PlainTensor t{array.data(),
                  array.device_type(),
                  array.device_id(),
                  int32_t(array.ndim()),
                  array.dtype().code,
                  array.dtype().bits,
                  array.dtype().lanes,
                  nullptr,
                  nullptr,
                  0};
    std::vector<int64_t> shape(array.ndim()), strides(array.ndim());
    for (std::size_t k = 0; k < array.ndim(); k++)
      shape[k] = int64_t(array.shape(k)), strides[k] = array.stride(k);
    t.shape = shape.data();
    t.strides = strides.data();
    fill(t, name, a);
    capsules_.push_back(std::move(array));
  }
};

// A fresh torch tensor on memory of ours, through torch's exchange table: half the price of
// torch.empty. What torch does not do to memory of others, it does not do to it: resize_.
struct Fresh {
  static constexpr std::size_t kAlign = 64;           // of the numbers
  static constexpr int64_t kMost = int64_t(1) << 56;  // bytes; nobody has as many
  OwnedTensor owned;
  int64_t shape[Array::kAxes], strides[Array::kAxes];

  char* numbers() {
    const auto end = reinterpret_cast<std::uintptr_t>(this + 1);
    return reinterpret_cast<char*>((end + kAlign - 1) / kAlign * kAlign);
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(numbers());
  }

  static Fresh* make(int bytes, std::initializer_list<int64_t> shape, Code code = kFloat) {
    return make(bytes, shape.begin(), int(shape.size()), code);
  }
  static Fresh* make(int bytes, const int64_t* shape, int ndim, Code code = kFloat) {
    const int64_t size = room(bytes, shape, ndim);
    const Block block = take_result(size);
    if (!block.data) out_of_memory(size);
    const auto free = [](OwnedTensor* self) {
      give_back_result({reinterpret_cast<unsigned char*>(self), std::intptr_t(self->context)});
    };
    return at(block.data, bytes, shape, ndim, code, free, reinterpret_cast<void*>(block.size));
  }
  // What it takes, numbers and all.
  static int64_t room(int bytes, const int64_t* shape, int ndim) {
    int64_t size = bytes;
    bool too_much = false;
    for (int k = 0; k < ndim; k++) too_much |= __builtin_mul_overflow(size, shape[k], &size);
    if (too_much || size > kMost) out_of_memory(std::numeric_limits<int64_t>::max());
    return size + int64_t(sizeof(Fresh) + kAlign);
  }
  // In this memory, which free(the beginning of it) takes back.
  static Fresh* at(void* memory, int bytes, const int64_t* shape, int ndim, Code code,
                   void (*free)(OwnedTensor*), void* context) {
    auto* fresh = static_cast<Fresh*>(memory);
    for (int64_t k = ndim, step = 1; k-- > 0; step *= shape[k])
      fresh->shape[k] = shape[k], fresh->strides[k] = step;
    fresh->owned = {1, 0, context, free, 0, {}};
    fresh->owned.tensor = {fresh->numbers(), kCpu,           0, ndim, code, uint8_t(8 * bytes), 1,
                           fresh->shape,     fresh->strides, 0};
    return fresh;
  }
  // The tensor; it owns this from now on.
  nb::object give(const ExchangeTable& table) {
    void* tensor = nullptr;
    if (table.to_python(&owned, &tensor) != 0) throw nb::python_error();
    return nb::steal(static_cast<PyObject*>(tensor));
  }
};

// A result in the making: freed if something fails before it is given away.
class Result {
 public:
  template <class... Sizes>
  Result(bool wanted, int bytes, Sizes... sizes)
      : fresh_(wanted ? Fresh::make(bytes, {sizes...}, bytes == 2 ? kBfloat : kFloat) : nullptr) {}
  template <class T>
  T* as() const {
    return fresh_ ? reinterpret_cast<T*>(fresh_->numbers()) : nullptr;
  }
  nb::object give(const ExchangeTable& table) {
    return fresh_ ? fresh_.release()->give(table) : nb::none();
  }

 private:
  struct Free {
    void operator()(Fresh* fresh) const { fresh->owned.free(&fresh->owned); }
  };
  std::unique_ptr<Fresh, Free> fresh_;
};

// --- checks -------------------------------------------------------------------------------------

struct Axis {
  const char* letter;
  int64_t size;
};

// The axes that an array must have. Seen, not owned: an initializer list lives as long as the call.
struct Axes {
  const Axis* first;
  int count;
  Axes(const std::initializer_list<Axis>& axes) : count(int(axes.size())) { first = axes.begin(); }
  Axes(const std::vector<Axis>& axes) : first(axes.data()), count(int(axes.size())) {}

  bool fit(const Array& a) const {
    bool fits = a.ndim == count;
    for (int k = 0; fits && k < count; k++) fits = a.shape[k] == first[k].size;
    return fits;
  }
  std::string describe() const {
    std::string text = "(";
    for (int k = 0; k < count; k++)
      text +=
          (k ? ", " : "") + std::string(first[k].letter) + " = " + std::to_string(first[k].size);
    return text + ")";
  }
};

// One call's arrays: reads them one by one, each with the shape it must have.
template <class T>
class Reader {
 public:
  explicit Reader(Arrays& arrays) : arrays_(arrays) {}

  Array any(nb::handle object, const char* name, const Axes& axes, bool required) {
    const Array a = arrays_.read(object, name);
    if (!a.present) {
      if (required)
        fail_type(std::string(name) + ": expected an array of shape " + axes.describe() +
                  ", got None");
      return a;
    }
    if (a.code != (sizeof(T) == 2 ? kBfloat : kFloat) || a.bytes != int(sizeof(T)))
      fail_type(std::string(name) + ": expected the dtype of x (" +
                (sizeof(T) == 4 ? "float32" : "float64") + "), got " + a.dtype() + "; convert it");
    if (!axes.fit(a))
      fail(std::string(name) + ": expected shape " + axes.describe() + ", got " + a.describe());
    return a;
  }
  const T* input(nb::handle object, const char* name, const Axes& axes, bool required = false) {
    const Array a = any(object, name, axes, required);
    if (a.present && !a.contiguous())
      fail(std::string(name) + ": expected a contiguous array; call .contiguous()");
    return a.template as<const T>();
  }
  T* output(nb::handle object, const char* name, const Axes& axes, bool required = false) {
    const Array a = any(object, name, axes, required);
    if (a.present && !a.contiguous())
      fail(std::string(name) + ": expected a contiguous array; call .contiguous()");
    if (a.read_only) fail(std::string(name) + ": expected an array that may be written");
    return a.template as<T>();
  }
  // Vectors of `size` numbers a token: (T, B, size) or (N, size).
  template <class U>
  View<U> tokens(nb::handle object, const char* name, const Dims& d, bool packed, const Axis& last,
                 bool required) {
    const Array a = packed ? any(object, name, {{"N", d.N}, last}, required)
                           : any(object, name, {{"T", d.T}, {"B", d.B}, last}, required);
    if (!a.present) return {};
    if (a.shape[a.ndim - 1] > 1 && a.stride[a.ndim - 1] != 1)
      fail(std::string(name) + ": expected the last axis to be contiguous; call .contiguous()");
    if constexpr (!std::is_const_v<U>)
      if (a.read_only) fail(std::string(name) + ": expected an array that may be written");
    return {a.template as<U>(), packed ? 0 : a.stride[0], packed ? a.stride[0] : a.stride[1]};
  }

 private:
  Arrays& arrays_;
};

inline int cell_index(const std::string& name) {
  std::string valid;
  for (int k = 0; k < CELL_COUNT; k++) {
    if (name == CELLS[k].name) return k;
    valid += std::string(k ? ", " : "") + CELLS[k].name;
  }
  fail_argument("cell: expected one of " + valid + ", got '" + name + "'");
}

// The weights of one direction, a tuple in the order of reference.Weights.
template <class T>
Weights<T> read_weights(Reader<T>& r, nb::handle item, const Dims& d, int cell) {
  const nb::tuple w = nb::cast<nb::tuple>(item);
  if (w.size() != 6)
    fail("weights: expected (W_ih, W_hh, b_ih, b_hh, W_hr, peep) for each direction");
  const Axis rows{"G*H", CELLS[cell].cell.gates() * d.H};
  const bool projected = !w[4].is_none(), peephole = CELLS[cell].cell.peephole;
  if (!projected && d.P != d.H)
    fail("W_hh: expected shape (G*H, H) where there is no W_hr, got P = " + std::to_string(d.P) +
         ", H = " + std::to_string(d.H));
  return {r.input(w[0], "W_ih", {rows, {"I", d.I}}, true),
          r.input(w[1], "W_hh", {rows, {"P", d.P}}, true),
          r.input(w[2], "b_ih", {rows}),
          r.input(w[3], "b_hh", {rows}),
          r.input(w[4], "W_hr", {{"P", d.P}, {"H", d.H}}),
          r.input(w[5], "peep", {{"3", 3}, {"H", d.H}}, peephole)};
}

// f(T()) for the dtype of x.
template <class F>
void by_dtype(const Array& x, F f) {
  if (x.code == kFloat && x.bytes == 4)
    f(float{});
  else if (x.code == kFloat && x.bytes == 8)
    f(double{});
  else
    fail_type("x: expected float32 or float64");
}

inline int checked_threads(int threads) {
  if (threads < 1) fail_argument("threads: expected at least 1, got " + std::to_string(threads));
  return threads > 1024 ? 1024 : threads;
}

}  // namespace gatewise
