// The door to Python: what is no layer's, step's or stream's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include "arrays.h"
#include "cell.h"
#include "dispatch.h"
#include "kernel.h"
#include "workers.h"
#include "workspace.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gatewise {

void bind_layer(nb::module_& m);   // bind_layer.cpp
void bind_step(nb::module_& m);    // bind_step.cpp
void bind_stream(nb::module_& m);  // bind_stream.cpp

namespace {

nb::dict cells() {
  static const char* names[] = {"sigmoid", "tanh", "relu", "identity", "one", "zero"};
  const auto name = [](Act a) { return names[int(a)]; };
  nb::dict rows;
  for (const Row& row : CELLS) {
    const Cell& c = row.cell;
    nb::dict fields;
    fields["i"] = name(c.i), fields["f"] = name(c.f), fields["g"] = name(c.g),
    fields["o"] = name(c.o);
    fields["out"] = name(c.out), fields["coupled"] = c.coupled, fields["peephole"] = c.peephole;
    fields["gates"] = c.gates(), fields["slots"] = c.slots();
    rows[row.name] = fields;
  }
  return rows;
}

nb::dict info() {
  nb::dict d;
  nb::list isas;
  for (const Table* table : supported()) isas.append(table->isa);
  d["isas"] = isas;
  d["isa"] = active().isa;
  d["vector_bytes"] = active().vector_bytes;
  d["cells"] = cells();
  d["compiler"] = GATEWISE_COMPILER;
  d["workspace_bytes"] = workspace_held();
  d["result_bytes"] = results_held();
  return d;
}

// Tensors whose memory goes back to the workspaces with the last of them.
struct Scratch {
  std::atomic<std::size_t> holders;
  Block block;

  static void let_go(Scratch* scratch, std::size_t count = 1) {
    if (scratch->holders.fetch_sub(count) == count) give_back(Block(scratch->block));
  }
};

nb::tuple scratch(nb::handle like, const std::vector<std::vector<i64>>& shapes) {
  const ExchangeTable* table = Arrays::exchange(Py_TYPE(like.ptr()));
  if (!table || !table->to_python) fail_type("like: expected a torch tensor");
  constexpr int bytes = sizeof(float);
  const auto room = [](const std::vector<i64>& shape) {
    if (shape.size() > Array::kAxes) fail("shapes: expected at most 5 axes");
    return round_up(Fresh::room(bytes, shape.data(), int(shape.size())), i64(Fresh::kAlign));
  };
  i64 size = round_up(i64(sizeof(Scratch)), i64(Fresh::kAlign)), at = size;
  for (const auto& shape : shapes) size += room(shape);
  const Block block = take_block(size);
  auto* const all = new (block.data) Scratch{shapes.size() + 1, block};  // one is this call
  nb::list tensors;
  for (std::size_t k = 0; k < shapes.size(); at += room(shapes[k++])) {
    Fresh* fresh = Fresh::at(
        block.data + at, bytes, shapes[k].data(), int(shapes[k].size()), kFloat,
        [](OwnedTensor* self) { Scratch::let_go(static_cast<Scratch*>(self->context)); }, all);
    try {
      tensors.append(fresh->give(*table));
    } catch (...) {
      Scratch::let_go(all, shapes.size() + 1 - k);
      throw;
    }
  }
  Scratch::let_go(all);
  return nb::tuple(tensors);
}

nb::object empty(nb::handle like, const std::vector<i64>& shape, int bytes) {
  const ExchangeTable* table = Arrays::exchange(Py_TYPE(like.ptr()));
  if (!table || !table->to_python) fail_type("like: expected a torch tensor");
  if (shape.size() > Array::kAxes) fail("shape: expected at most 5 axes");
  const Code code = bytes == sizeof(Bf16) ? kBfloat : kFloat;
  return Fresh::make(bytes, shape.data(), int(shape.size()), code)->give(*table);
}

void activations(nb::handle x, nb::handle sigmoid, nb::handle tanh) {
  Arrays arrays;
  const Array in = arrays.read(x, "x");
  by_dtype(in, [&]<class T>(T) {
    Reader<T> r(arrays);
    if (in.ndim != 1) fail("x: expected one axis");
    const Axis n{"n", in.shape[0]};
    const T* from = r.input(x, "x", {n}, true);
    T* s = r.output(sigmoid, "sigmoid", {n}, true);
    T* t = r.output(tanh, "tanh", {n}, true);
    kernels<T>().activations(from, s, t, in.shape[0]);
  });
}

// All workers begin together and run for `seconds`; the work they did over the time of the last.
template <class T>
double probe(i64 (*kernel)(i64, T*), int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  struct Context {
    i64 (*kernel)(i64, T*);
    Clock::duration time;
    Barrier barrier;
    std::atomic<int64_t> work{0}, longest{0};
  } context{kernel,
            std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))};
  const auto task = [](void* c, int, int count) {
    auto& shared = *static_cast<Context*>(c);
    T sink[16 * 64 / sizeof(T)] = {T(0.5), T(0.25)};
    int64_t work = 0;
    if (count > 1) shared.barrier.wait(count);
    const auto begin = Clock::now();
    do work += shared.kernel(2000, sink);
    while (Clock::now() - begin < shared.time);
    const int64_t took = (Clock::now() - begin).count();
    shared.work += work;
    for (int64_t known = shared.longest; known < took;)
      if (shared.longest.compare_exchange_weak(known, took)) break;
  };
  nb::gil_scoped_release release;
  parallel(threads, task, &context);
  return double(context.work) /
         std::chrono::duration<double>(Clock::duration(context.longest.load())).count();
}

double probe_any(const std::string& dtype, int threads, double seconds) {
  threads = checked_threads(threads);
  if (!(seconds > 0 && seconds <= 60))
    fail_argument("seconds: expected more than 0, at most 60, got " + std::to_string(seconds));
  if (dtype == "float32") return probe(kernels<float>().probe, threads, seconds);
  if (dtype == "float64") return probe(kernels<double>().probe, threads, seconds);
  if (dtype == "bfloat16" && has_pairs()) return probe(active().probe_pairs, threads, seconds);
  fail_argument("dtype: expected 'float32' or 'float64', or 'bfloat16' where has_pairs(), got '" +
                dtype + "'");
}

// Of our own errors, those of errors.py; others are nanobind's to translate.
void raise_ours(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& ours) {
    const nb::object type = nb::module_::import_("gatewise.errors").attr(ours.name);
    PyErr_SetString(type.ptr(), ours.what());
  }
}

}  // namespace
}  // namespace gatewise

NB_MODULE(_core, m) {
  using namespace gatewise;
  nb::register_exception_translator(raise_ours);
  bind_layer(m);
  bind_step(m);
  bind_stream(m);
  m.doc() =
      "The native kernels. gatewise.ops is the door that checks, differentiates and dispatches.";
  m.def("scratch", scratch, "like"_a, "shapes"_a,
        "Tensors of these shapes in float32, of the kind of like, in memory that is kept for reuse"
        " like that of a call. Their numbers are undefined.");
  m.def(
      "empty", empty, "like"_a, "shape"_a, "bytes"_a,
      "A tensor of this shape, of the kind of like, of numbers of so many bytes: 8 or 4, or 2 for "
      "bfloat16; in memory that is kept for the next result. Its numbers are undefined.");
  m.def("activations", activations, "x"_a, "sigmoid"_a, "tanh"_a,
        "The kernels' own sigmoid and tanh of a vector.");
  m.def("probe", probe_any, "dtype"_a, "threads"_a, "seconds"_a,
        "Multiply-adds a second, in floating-point operations, of the instruction set in use.");
  m.def("cells", cells, "The kernels' table of cells, to be held against gatewise.CELLS.");
  m.def("info", info, "Instruction sets found and in use, compiler, memory kept for reuse.");
  m.def(
      "select_isa", [](const std::string& name) { gatewise::select(name); }, "name"_a,
      "Use the kernels of this instruction set from now on.");
  m.def(
      "work_per_thread", [](double operations) { return work_per_thread.exchange(operations); },
      "operations"_a,
      "The work below which a further thread is not woken; returns what it was. 0 for tests: all "
      "threads, however small the work and whatever they gain.");
  m.def(
      "rows_of_worker", [](i64 rows) { return rows_of_worker.exchange(rows); }, "rows"_a,
      "For tests: the rows that a worker must have to take a part of the batch, whatever pays; "
      "returns what it was. 0: what pays.");
  m.def(
      "meeting_time", [](int threads) { return meeting_time(checked_threads(threads)); },
      "threads"_a,
      "Seconds that a meeting of so many workers takes, measured in the last half second.");
  m.def("has_pairs", has_pairs, "Whether the kernels in use have products of pairs of bfloat16.");
  m.def("guard_workspaces", guard_workspaces, "on"_a,
        "For tests; returns what it was. The scratch memory of a call is then filled with NaN "
        "before, and a call that has written behind its end raises RuntimeError.");
  m.def("release", release_workspaces,
        "Give the scratch memory kept for reuse back to the system.");
}
