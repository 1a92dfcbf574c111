// The kernels of one instruction set (GATEWISE_ISA) without Python: for processors that only an
// emulator has (tools/aarch64.sh). Forward is compared with the cell written out in double;
// backward with the slope of that along random directions, one for each array it differentiates.
#include "kernel.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "cell.h"
#include "groups.h"

namespace gatewise::GATEWISE_ISA {
extern const Table table;
}

using namespace gatewise;
using Array = std::vector<double>;

namespace {

const double NOT_WRITTEN = std::numeric_limits<double>::quiet_NaN();

double random_number() {  // in -1 .. 1, with few enough bits to be exact in float
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return double(int64_t(state >> 44) - (1 << 19)) / (1 << 19);
}
Array random_array(i64 n, double scale = 1) {
  Array a(static_cast<size_t>(n));
  for (double& v : a) v = double(float(random_number() * scale));
  return a;
}

struct Problem {
  const char* what;
  i64 I, H, P;  // P = H: no projection
  std::vector<i64> lengths;
  i64 D;
  int threads;
};

// One direction's inputs: also where a gradient is asked for.
struct Inputs {
  Array x, h0, c0, W_ih, W_hh, b, W_hr, peep;
  std::vector<Array*> all() { return {&x, &h0, &c0, &W_ih, &W_hh, &b, &W_hr, &peep}; }
};
const char* const INPUT_NAMES[] = {"x", "h0", "c0", "W_ih", "W_hh", "b", "W_hr", "peep"};

struct Outputs {
  Array y, h_n, c_n, tape;
  std::vector<Array*> all() { return {&y, &h_n, &c_n, &tape}; }
};
const char* const OUTPUT_NAMES[] = {"y", "h_n", "c_n", "tape"};

struct Shape {
  Problem p;
  Cell cell;
  i64 T, B, N, G, S;
  std::vector<i64> active, offsets, row_offsets, first_offsets;
  bool projected() const { return p.P != p.H; }

  Shape(const Problem& problem, const Cell& c) : p(problem), cell(c) {
    T = p.lengths[0];
    B = i64(p.lengths.size());
    G = cell.gates();
    S = cell.slots();
    N = 0;
    for (i64 t = 0; t < T; t++) {
      i64 n = 0;
      for (i64 length : p.lengths) n += length > t;
      active.push_back(n);
      offsets.push_back(N);
      N += n;
    }
    offsets.push_back(N);
    row_offsets.push_back(0);
    for (i64 length : p.lengths) row_offsets.push_back(row_offsets.back() + length);
    first_offsets.push_back(0);
    for (i64 n : active) first_offsets.push_back(first_offsets.back() + smaller(first_rows(), n));
  }
  i64 first_rows() const { return border({0, B}, row_offsets.data(), 1, GROUPS); }
  // What a kernel is told of the lengths: nothing where they are all T.
  Sequence sequence() const {
    if (p.lengths.front() == p.lengths.back()) return {nullptr, nullptr, T, B};
    return {active.data(),        offsets.data(),    T, B, first_rows(),
            first_offsets.data(), row_offsets.data()};
  }
  Inputs random_inputs(double scale) const {
    const double s = scale / std::sqrt(double(p.I + p.H));
    return {random_array(N * p.I, scale),
            random_array(B * p.P, scale),
            random_array(cell.has_cell_state() ? B * p.H : 0, scale),
            random_array(G * p.H * p.I, 2 * s),
            random_array(G * p.H * p.P, 2 * s),
            random_array(G * p.H, scale),
            random_array(projected() ? p.P * p.H : 0, 2 * s),
            random_array(cell.peephole ? 3 * p.H : 0, scale)};
  }
  Outputs outputs(double value) const {
    const auto room = [value](i64 n) { return Array(size_t(n), value); };
    return {room(N * p.P), room(B * p.P), room(cell.has_cell_state() ? B * p.H : 0),
            room(N * S * p.H)};
  }
};

double activation(Act a, double z) {
  switch (a) {
    case Act::sigmoid:
      return 1 / (1 + std::exp(-z));
    case Act::tanh:
      return std::tanh(z);
    case Act::relu:
      return z < 0 ? 0 : z;
    case Act::identity:
      return z;
    case Act::one:
      return 1;
    case Act::zero:
      return 0;
  }
  return NOT_WRITTEN;
}

// The cell, as it reads.
Outputs written_out(const Shape& s, const Inputs& in, bool reverse) {
  Outputs out = s.outputs(0);
  const Cell& cell = s.cell;
  const i64 H = s.p.H, P = s.p.P, I = s.p.I;
  for (i64 b = 0; b < s.B; b++) {
    Array h(in.h0.begin() + b * P, in.h0.begin() + (b + 1) * P), c(size_t(H), 0.0);
    if (!in.c0.empty()) c.assign(in.c0.begin() + b * H, in.c0.begin() + (b + 1) * H);
    const i64 length = s.p.lengths[size_t(b)];
    for (i64 step = 0; step < length; step++) {
      const i64 token = s.offsets[size_t(reverse ? length - 1 - step : step)] + b;
      Array hidden(size_t(H), 0.0);
      for (i64 u = 0; u < H; u++) {
        const auto z = [&](int slot) {
          const i64 row = slot * H + u;
          double sum = in.b[size_t(row)];
          for (i64 k = 0; k < I; k++)
            sum += in.W_ih[size_t(row * I + k)] * in.x[size_t(token * I + k)];
          for (i64 k = 0; k < P; k++) sum += in.W_hh[size_t(row * P + k)] * h[size_t(k)];
          return sum;
        };
        const auto peep = [&](i64 k) { return cell.peephole ? in.peep[size_t(k * H + u)] : 0.0; };
        const auto keep = [&](int slot, double v) {
          if (slot >= 0) out.tape[size_t((token * s.S + slot) * H + u)] = v;
          return v;
        };
        const auto gate = [&](Act a, int slot, i64 k, double seen) {
          return slot < 0 ? activation(a, 0) : keep(slot, activation(a, z(slot) + peep(k) * seen));
        };
        const double before = c[size_t(u)];
        const double i = gate(cell.i, cell.slot_i(), 0, before);
        const double f = cell.coupled ? 1 - i : gate(cell.f, cell.slot_f(), 1, before);
        const double g = keep(cell.slot_g(), activation(cell.g, z(cell.slot_g())));
        c[size_t(u)] = keep(cell.slot_c(), f * before + i * g);
        const double o = gate(cell.o, cell.slot_o(), 2, c[size_t(u)]);
        hidden[size_t(u)] = o * activation(cell.out, c[size_t(u)]);
      }
      h = hidden;
      if (s.projected()) {
        h.assign(size_t(P), 0.0);
        for (i64 k = 0; k < P; k++)
          for (i64 u = 0; u < H; u++)
            h[size_t(k)] += in.W_hr[size_t(k * H + u)] * hidden[size_t(u)];
      }
      for (i64 k = 0; k < P; k++) out.y[size_t(token * P + k)] = h[size_t(k)];
    }
    for (i64 k = 0; k < P; k++) out.h_n[size_t(b * P + k)] = h[size_t(k)];
    for (i64 u = 0; u < H && !out.c_n.empty(); u++) out.c_n[size_t(b * H + u)] = c[size_t(u)];
  }
  return out;
}

// An array in the kernel's number type, and back.
template <class T>
struct Buffer {
  std::vector<T> data;
  explicit Buffer(const Array& a) : data(a.begin(), a.end()) {}
  T* get() { return data.empty() ? nullptr : data.data(); }
  Array back() const { return Array(data.begin(), data.end()); }
};

struct Workspace {
  std::vector<unsigned char> bytes;
  unsigned char* take(i64 n) {
    bytes.assign(size_t(n) + 64, 0xff);  // NaN in both types
    const uintptr_t at = reinterpret_cast<uintptr_t>(bytes.data());
    return bytes.data() + (64 - at % 64) % 64;
  }
};

template <class Call, class F>
void run(const F& kernel, Call& call, int threads) {
  struct Context {
    const F& kernel;
    Call& call;
  } context{kernel, call};
  parallel(
      threads,
      [](void* c, int id, int count) {
        static_cast<Context*>(c)->kernel(static_cast<Context*>(c)->call, id, count);
      },
      &context);
}

int faults = 0;

void expect(double error, double bound, const Problem& p, const char* cell, const char* name,
            size_t bits) {
  if (error <= bound) return;
  std::printf("%s, %s, %zu bits: %s is off by %g of the largest, more than %g\n", p.what, cell,
              bits, name, error, bound);
  faults++;
}

double largest(const Array& a) {
  double m = 0.1;  // what is smaller is left of larger numbers that cancelled
  for (double v : a) m = std::fmax(m, std::fabs(v));
  return m;
}

// NaN where got has one.
double difference(const Array& got, const Array& want) {
  double m = 0;
  for (size_t k = 0; k < want.size(); k++) {
    const double d = std::fabs(got[k] - want[k]);
    m = d > m || std::isnan(d) ? d : m;
  }
  return m / largest(want);
}

template <class T>
struct Layer {
  const Shape& s;
  int row;
  std::vector<Inputs> in;  // a direction each; x is that of the first
  const Kernels<T>& kernels;

  void check() {
    const bool narrow = sizeof(T) == 4;
    const Problem& p = s.p;
    const i64 P = p.P, D = p.D;
    std::vector<Outputs> want, ask;
    std::vector<std::vector<Buffer<T>>> given, got, asked, grads;
    for (i64 d = 0; d < D; d++) {
      Inputs& mine = in[size_t(d)];
      want.push_back(written_out(s, mine, d == 1));
      ask.push_back(s.outputs(0));
      std::vector<Buffer<T>> a, b, c, g;
      for (Array* v : mine.all()) {
        a.emplace_back(*v);
        g.emplace_back(Array(v->size(), NOT_WRITTEN));
      }
      Outputs empty = s.outputs(NOT_WRITTEN);
      for (Array* v : empty.all()) b.emplace_back(*v);
      for (Array* v : ask.back().all()) {
        *v = random_array(i64(v->size()));
        c.emplace_back(*v);
      }
      given.push_back(a), got.push_back(b), asked.push_back(c), grads.push_back(g);
    }
    // Both directions write one array of D*P numbers a token.
    Buffer<T> y(Array(size_t(s.N * D * P), NOT_WRITTEN)), d_y(Array(size_t(s.N * D * P), 0));
    for (i64 n = 0; n < s.N; n++)
      for (i64 d = 0; d < D; d++)
        for (i64 k = 0; k < P; k++)
          d_y.data[size_t((n * D + d) * P + k)] = T(ask[size_t(d)].y[size_t(n * P + k)]);

    const Dims dims{s.T, s.B, p.I, p.H, P, D, s.N};
    const Sequence sequence = s.sequence();
    const auto weights = [](std::vector<Buffer<T>>& v) {
      return Weights<T>{v[3].get(), v[4].get(), v[5].get(), nullptr, v[6].get(), v[7].get()};
    };
    Workspace room;
    ForwardCall<T> forward{};
    forward.dims = dims, forward.sequence = sequence, forward.cell = row;
    forward.least_rows = s.B % 2 ? 4 : 2;  // rows of the batch, or units, for each
    forward.near = s.B % 3 == 0;
    for (size_t d = 0; d < size_t(D); d++) {
      auto& f = forward.direction[d];
      f.reverse = d == 1;
      f.x = {given[0][0].get(), s.B * p.I, p.I};
      f.w = weights(given[d]);
      f.y = {y.get() + i64(d) * P, s.B * D * P, D * P};
      f.h0 = given[d][1].get(), f.c0 = given[d][2].get();
      f.h_n = got[d][1].get(), f.c_n = got[d][2].get(), f.tape = got[d][3].get();
    }
    forward.workspace = room.take(kernels.forward_bytes(forward, p.threads));
    run(kernels.forward, forward, p.threads);
    for (size_t d = 0; d < size_t(D); d++) {
      for (i64 n = 0; n < s.N; n++)
        for (i64 k = 0; k < P; k++)
          got[d][0].data[size_t(n * P + k)] = y.data[size_t((n * D + i64(d)) * P + k)];
      auto wanted = want[d].all();
      for (size_t k = 0; k < wanted.size(); k++)
        expect(difference(got[d][k].back(), *wanted[k]), narrow ? 2e-6 : 1e-14, p, CELLS[row].name,
               OUTPUT_NAMES[k], 8 * sizeof(T));
    }

    BackwardCall<T> backward{};
    backward.dims = dims, backward.sequence = sequence, backward.cell = row;
    backward.least_rows = forward.least_rows;
    for (size_t d = 0; d < size_t(D); d++) {
      auto &b = backward.direction[d], *g = &b;
      auto& mine = grads[d];
      b.reverse = d == 1;
      b.x = forward.direction[d].x;
      b.d_x = {grads[0][0].get(), s.B * p.I, p.I};
      b.w = weights(given[d]);
      b.y = {y.get() + i64(d) * P, s.B * D * P, D * P};
      b.h0 = given[d][1].get(), b.c0 = given[d][2].get(), b.tape = got[d][3].get();
      b.d_y = {d_y.get() + i64(d) * P, s.B * D * P, D * P};
      b.d_h_n = asked[d][1].get(), b.d_c_n = asked[d][2].get(), b.d_tape = asked[d][3].get();
      g->d_h0 = mine[1].get(), g->d_c0 = mine[2].get();
      g->d_W_ih = mine[3].get(), g->d_W_hh = mine[4].get(), g->d_b = mine[5].get();
      g->d_W_hr = mine[6].get(), g->d_peep = mine[7].get();
    }
    backward.workspace = room.take(kernels.backward_bytes(backward, p.threads));
    run(kernels.backward, backward, p.threads);
    slopes(ask, grads, narrow);
  }

  double loss(std::vector<Inputs>& at, std::vector<Outputs>& ask) const {
    double sum = 0;
    for (size_t d = 0; d < at.size(); d++) {
      Outputs out = written_out(s, at[d], d == 1);
      auto values = out.all(), factors = ask[d].all();
      for (size_t k = 0; k < values.size(); k++)
        for (size_t n = 0; n < values[k]->size(); n++) sum += (*values[k])[n] * (*factors[k])[n];
    }
    return sum;
  }

  // The gradient of every input along a random direction, and the loss's slope along it.
  void slopes(std::vector<Outputs>& ask, std::vector<std::vector<Buffer<T>>>& grads, bool narrow) {
    for (size_t d = 0; d < in.size(); d++)
      for (size_t k = d ? 1 : 0; k < 8; k++) {  // x belongs to both directions
        const Array before = *in[d].all()[k];
        if (before.empty()) continue;
        const Array way = random_array(i64(before.size()));
        const auto at = [&](double by) {
          for (size_t other = 0; other < in.size(); other++) {
            if (other != d && k != 0) continue;
            for (size_t n = 0; n < before.size(); n++)
              (*in[other].all()[k])[n] = before[n] + by * way[n];
          }
          return loss(in, ask);
        };
        const double e = 1e-5;  // so short that no relu bends on the way
        const double slope = (8 * (at(e) - at(-e)) - (at(2 * e) - at(-2 * e))) / (12 * e);
        at(0);
        const Array g = grads[d][k].back();
        double along = 0, size = 0.1;
        for (size_t n = 0; n < g.size(); n++) along += g[n] * way[n], size += g[n] * g[n];
        expect(std::fabs(along - slope) / std::sqrt(size), narrow ? 2e-5 : 1e-8, s.p,
               CELLS[row].name, INPUT_NAMES[k], 8 * sizeof(T));
        if (std::isnan(along))
          expect(along, 0, s.p, CELLS[row].name, INPUT_NAMES[k], 8 * sizeof(T));
      }
  }
};

template <class T>
void check(const Problem& p, int row, const Kernels<T>& kernels) {
  const Shape s(p, CELLS[row].cell);
  std::vector<Inputs> in;
  for (i64 d = 0; d < p.D; d++) in.push_back(s.random_inputs(0.5));
  for (i64 d = 1; d < p.D; d++) in[size_t(d)].x = in[0].x;
  Layer<T>{s, row, in, kernels}.check();
}

const Problem PROBLEMS[] = {
    {"one number", 1, 1, 1, {2}, 1, 1},
    {"one step", 3, 5, 5, {1, 1, 1}, 1, 1},
    {"odd sizes", 5, 17, 17, {4, 4, 4}, 1, 1},
    {"many rows, two ways", 3, 9, 9, std::vector<i64>(13, 3), 2, 1},
    {"lengths, two workers", 6, 37, 37, {5, 4, 4, 1, 1}, 2, 2},
    {"lengths, two groups", 6, 19, 19, {6, 5, 5, 4, 3, 2, 2, 1, 1}, 2, 2},
    {"projection", 7, 21, 10, {4, 3, 1}, 2, 1},
    {"one row, two workers", 9, 40, 40, {7}, 1, 2},
};

}  // namespace

int main() {
  int done = 0;
  for (const Problem& p : PROBLEMS)
    for (int row = 0; row < CELL_COUNT; row++) {
      check<float>(p, row, gatewise::GATEWISE_ISA::table.f32);
      check<double>(p, row, gatewise::GATEWISE_ISA::table.f64);
      done += 2;
    }
  std::printf("%s: %d layers, %d faults\n", gatewise::GATEWISE_ISA::table.isa, done, faults);
  return faults != 0;
}
