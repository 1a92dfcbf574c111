// One step at a time: all layers, one direction, weights packed beforehand, states kept inside.
//
// The products, their order and the cell are those of forward.h, so a sequence fed step by step
// gives the bits of the sequence fed whole.
#pragma once
#include "pack.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 STREAM_ROWS = 48;  // rows between two visits of the cell

template <class T>
struct StreamLayer {
  Units<T> u;
  Axis<T> out;  // the projection's output
  i64 I, P;
  T *Wx, *Wh, *bias;  // gate panels [J][I][W], [J][P][W], lines [J][W]
  T* Wr;              // [panels][H][width]; null without a projection
  T* peep;            // [3][H]; null without peepholes
  T *h, *c;           // (B, P), (B, H): after the last step
  T* hidden;          // (B, H): h before the projection; h is read until all of it is there

  StreamLayer(const StreamPlan<T>& plan, const typename StreamPlan<T>::Layer& layer, Carver& carver)
      : u(layer.H, CELLS[plan.cell].cell.gates()), out(layer.P), I(layer.I), P(layer.P) {
    Wx = carver.take<T>(u.K * I);
    Wh = carver.take<T>(u.K * P);
    bias = carver.take<T>(u.K);
    Wr = layer.w.W_hr ? carver.take<T>(out.padded * u.H) : nullptr;
    peep = layer.w.peep ? carver.take<T>(3 * u.H) : nullptr;
    h = carver.take<T>(plan.B * P);
    c = carver.take<T>(plan.B * u.H);
    hidden = carver.take<T>(plan.B * u.H);
  }

  void pack(const Weights<T>& w) const {
    for (i64 j = 0; j < u.J; j++) {
      pack_gates(w.W_ih, I, u, Wx, j);
      pack_gates(w.W_hh, P, u, Wh, j);
      pack_bias(w.b_ih, w.b_hh, u, bias, j);
    }
    for (i64 k = 0; peep && k < 3 * u.H; k++) peep[k] = w.peep[k];
    for (i64 p = 0; Wr && p < out.panels; p++) {
      const i64 first = out.first(p), W = i64(out.width(p)) * LANES<T>;
      for (i64 k = 0; k < u.H; k++)
        for (i64 n = 0; n < W; n++)
          Wr[first * u.H + k * W + n] = first + n < P ? w.W_hr[(first + n) * u.H + k] : T(0);
    }
  }

  // x -> h, for rows first .. first+rows-1. The panels are read up and down in turn: so those that
  // were read last, and are still in the cache, come first, where all of them together do not fit.
  void step(const Pointwise<T>& cell, Lines<const T> x, i64 first, i64 rows, bool down) const {
    alignas(64) T z[STREAM_ROWS * NV * LANES<T>];
    const Lines<T> of_z{z, u.W}, of_c{c + first * u.H, u.H}, of_hidden{hidden + first * u.H, u.H};
    const Lines<const T> before{h + first * P, P};
    const i64 most = rows == 1 ? 2 : 1;  // one row: two panels at once
    const i64 visits = ceil_div(u.J, most);
    for (i64 visit = 0; visit < visits; visit++) {
      const i64 at = most * (down ? visits - 1 - visit : visit);
      const i64 panels = smaller(most, u.J - at);
      const Stretch<T> from_x{x, Wx + at * I * u.W, I, 1, 0, I * u.W},
          from_h{before, Wh + at * P * u.W, P, 1, 0, P * u.W};
      panels == 2 ? product_of_two<T>(u.vectors, {from_x, from_h}, {}, of_z)
                  : product<T>(rows, u.vectors, {from_x, from_h}, {}, of_z);
      for (i64 p = 0; p < panels; p++) {
        const i64 j = at + p;
        cell.forward(u, {rows,
                         j,
                         of_z.from(p),
                         bias + j * u.W,
                         peep,
                         of_c.right(j * u.U),
                         of_hidden.right(j * u.U),
                         {}});
      }
    }
    if (!Wr) {
      __builtin_memcpy(h + first * P, hidden + first * P, size_t(rows * P) * sizeof(T));
      return;
    }
    for (i64 p = 0; p < out.panels; p++) {  // h = hidden W_hr^T
      const i64 n = out.first(p), W = i64(out.width(p)) * LANES<T>;
      product<T>(rows, out.width(p), {{of_hidden, Wr + n * u.H, u.H}}, {}, {z, W});
      for (i64 r = 0; r < rows; r++)
        __builtin_memcpy(h + (first + r) * P + n, z + r * W, size_t(smaller(W, P - n)) * sizeof(T));
    }
  }
};

// What stands at the beginning of a stream's memory.
template <class T>
struct Stream {
  Pointwise<T> cell;
  i64 B, count;
  StreamLayer<T>* layers;
  bool down;  // the way through the panels: see StreamLayer::step
};

// Lays the stream out in the carver's memory; where that is null, only counts.
template <class T>
Stream<T>* stream_layout(const StreamPlan<T>& plan, Carver& carver) {
  Stream<T>* stream = carver.take<Stream<T>>(1);
  StreamLayer<T>* layers = carver.take<StreamLayer<T>>(plan.count);
  if (stream) *stream = {pointwise_of<T>(plan.cell), plan.B, plan.count, layers, false};
  for (i64 k = 0; k < plan.count; k++) {
    const StreamLayer<T> layer(plan, plan.layer[k], carver);
    if (layers) layers[k] = layer;
  }
  return stream;
}

template <class T>
i64 stream_bytes(const StreamPlan<T>& plan) {
  Carver carver{nullptr};
  stream_layout(plan, carver);
  return carver.used;
}

template <class T>
void stream_pack(const StreamPlan<T>& plan, unsigned char* memory) {
  Carver carver{memory};
  const Stream<T>& stream = *stream_layout(plan, carver);
  for (i64 k = 0; k < stream.count; k++) stream.layers[k].pack(plan.layer[k].w);
}

template <class T>
StreamState<T> stream_state(unsigned char* memory, i64 layer) {
  const StreamLayer<T>& of = reinterpret_cast<Stream<T>*>(memory)->layers[layer];
  return {of.h, of.c};
}

template <class T>
void stream_step(unsigned char* memory, const T* x, i64 row, T* y) {
  Stream<T>& stream = *reinterpret_cast<Stream<T>*>(memory);
  Lines<const T> in{x, row};
  for (i64 k = 0; k < stream.count; k++) {
    const StreamLayer<T>& layer = stream.layers[k];
    bool down = stream.down;
    for (i64 first = 0; first < stream.B; first += STREAM_ROWS, down = !down)
      layer.step(stream.cell, in.from(first), first, smaller(STREAM_ROWS, stream.B - first), down);
    in = {layer.h, layer.P};
  }
  stream.down = !stream.down;
  __builtin_memcpy(y, in.data, size_t(stream.B * in.stride) * sizeof(T));
}

}  // namespace gatewise::GATEWISE_ISA
