// One step at a time: all layers, one direction, weights packed beforehand, states kept inside.
//
// The products, their order and the cell are those of forward.h, so a sequence fed step by step
// gives the bits of the sequence fed whole. A brief stream takes and gives bfloat16, and keeps its
// weights so; states and all sums are float.
#pragma once
#include "pack.h"
#include "pairs.h"
#include "pointwise.h"
#include "team.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr i64 STREAM_ROWS = 48;  // rows between two visits of the cell

template <class T, class Panels>
struct StreamLayer {
  using Number = typename Panels::Number;
  Units<T> u;
  Axis<T> out;  // the projection's output
  i64 I, P;
  Number *Wx, *Wh;      // gate panels [J][I][W], [J][P][W]
  Number* Wr;           // [panels][H][width]; null without a projection
  T* bias;              // [J][W]
  T* peep;              // [3][H]; null without peepholes
  T *h, *c;             // (B, P), (B, H): after the last step
  T* hidden;            // (B, H): h before the projection; h is read until all of it is there
  Number *of_x, *of_h;  // scratch: see Panels::rows

  StreamLayer(const StreamPlan<T>& plan, const typename StreamPlan<T>::Layer& layer, Carver& carver)
      : u(layer.H, CELLS[plan.cell].cell.gates()), out(layer.P), I(layer.I), P(layer.P) {
    Wx = carver.take<Number>(u.K * Panels::lines(I));
    Wh = carver.take<Number>(u.K * Panels::lines(P));
    Wr = layer.w.W_hr ? carver.take<Number>(out.padded * Panels::lines(u.H)) : nullptr;
    bias = carver.take<T>(u.K);
    peep = layer.w.peep ? carver.take<T>(3 * u.H) : nullptr;
    h = carver.take<T>(plan.B * P);
    c = carver.take<T>(plan.B * u.H);
    hidden = carver.take<T>(plan.B * u.H);
    const i64 rows = smaller(plan.B, STREAM_ROWS);
    of_x = carver.take<Number>(rows * Panels::room(I));
    of_h = carver.take<Number>(rows * Panels::room(larger(P, u.H)));
  }

  void pack(const Weights<T>& w) const {
    for (i64 j = 0; j < u.J; j++) {
      Panels::pack(w.W_ih, I, u, Wx, j);
      Panels::pack(w.W_hh, P, u, Wh, j);
      pack_bias(w.b_ih, w.b_hh, u, bias, j);
    }
    for (i64 k = 0; peep && k < 3 * u.H; k++) peep[k] = w.peep[k];
    for (i64 p = 0; Wr && p < out.panels; p++) {
      const i64 first = out.first(p), W = i64(out.width(p)) * LANES<T>;
      for (i64 k = 0; k < u.H; k++)
        for (i64 n = 0; n < W; n++)
          Panels::set(projection(p), W, k, n, first + n < P ? w.W_hr[(first + n) * u.H + k] : T(0));
    }
  }

  Number* projection(i64 p) const { return Wr + out.first(p) * Panels::lines(u.H); }

  // x -> h, for rows first .. first+rows-1. The panels are read up and down in turn: so those that
  // were read last, and are still in the cache, come first, where all of them together do not fit.
  void step(const Pointwise<T>& cell, Lines<const T> x, i64 first, i64 rows, bool down) const {
    alignas(64) T z[STREAM_ROWS * NV * LANES<T>];
    const Lines<T> of_z{z, u.W}, of_c{c + first * u.H, u.H}, of_hidden{hidden + first * u.H, u.H};
    const auto input = Panels::rows(x, rows, I, true, of_x);
    const auto before = Panels::rows({h + first * P, P}, rows, P, false, of_h);
    const i64 most = rows == 1 ? 2 : 1;  // one row: two panels at once
    const i64 visits = ceil_div(u.J, most);
    for (i64 visit = 0; visit < visits; visit++) {
      const i64 at = most * (down ? visits - 1 - visit : visit);
      const i64 panels = smaller(most, u.J - at);
      Panels::product(rows, int(panels), u.vectors,
                      {Panels::stretch(input, Wx + at * Panels::lines(I) * u.W, I, u.W),
                       Panels::stretch(before, Wh + at * Panels::lines(P) * u.W, P, u.W)},
                      of_z);
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
      copy(hidden + first * P, h + first * P, rows * P);
      return;
    }
    const auto output = Panels::rows(of_hidden, rows, u.H, false, of_h);
    for (i64 p = 0; p < out.panels; p++) {  // h = hidden W_hr^T
      const i64 n = out.first(p), W = i64(out.width(p)) * LANES<T>;
      Panels::product(rows, 1, out.width(p), {Panels::stretch(output, projection(p), u.H, W)},
                      {z, W});
      for (i64 r = 0; r < rows; r++) copy(z + r * W, h + (first + r) * P + n, smaller(W, P - n));
    }
  }
};

// What stands at the beginning of a stream's memory.
struct StreamKind {
  bool brief;  // see StreamPlan
};

template <class T, class Panels_>
struct Stream : StreamKind {
  using Panels = Panels_;
  Pointwise<T> cell;
  i64 B, count;
  StreamLayer<T, Panels>* layers;
  T* x;       // (B, I) of a layer, widened; null where the stream is not brief
  bool down;  // the way through the panels: see StreamLayer::step
};

// f with the type of stream that is meant.
template <class T, class F>
auto as_stream(bool brief, F f) {
  if constexpr (sizeof(T) == 4)
    if (brief) return f(static_cast<Stream<T, BriefPanels>*>(nullptr));
  return f(static_cast<Stream<T, WholePanels<T>>*>(nullptr));
}

// f with the stream that lives in this memory.
template <class T, class F>
auto with_stream(unsigned char* memory, F f) {
  return as_stream<T>(reinterpret_cast<StreamKind*>(memory)->brief,
                      [&](auto* kind) { return f(*reinterpret_cast<decltype(kind)>(memory)); });
}

// Lays the stream out in the carver's memory; where that is null, only counts.
template <class T, class Of>
Of* stream_layout(const StreamPlan<T>& plan, Carver& carver) {
  using Layer = StreamLayer<T, typename Of::Panels>;
  Of* stream = carver.take<Of>(1);
  Layer* layers = carver.take<Layer>(plan.count);
  i64 widest = 0;
  for (i64 k = 0; plan.brief && k < plan.count; k++) widest = larger(widest, plan.layer[k].I);
  T* x = plan.brief ? carver.take<T>(plan.B * widest) : nullptr;
  if (stream)
    *stream = {{plan.brief}, pointwise_of<T>(plan.cell), plan.B, plan.count, layers, x, false};
  for (i64 k = 0; k < plan.count; k++) {
    const Layer layer(plan, plan.layer[k], carver);
    if (layers) layers[k] = layer;
  }
  return stream;
}

template <class T>
i64 stream_bytes(const StreamPlan<T>& plan) {
  return as_stream<T>(plan.brief, [&]<class Of>(Of*) {
    Carver carver{nullptr};
    stream_layout<T, Of>(plan, carver);
    return carver.used;
  });
}

template <class T>
void stream_pack(const StreamPlan<T>& plan, unsigned char* memory) {
  as_stream<T>(plan.brief, [&]<class Of>(Of*) {
    Carver carver{memory};
    const Of& stream = *stream_layout<T, Of>(plan, carver);
    for (i64 k = 0; k < stream.count; k++) stream.layers[k].pack(plan.layer[k].w);
  });
}

template <class T>
StreamState<T> stream_state(unsigned char* memory, i64 layer) {
  return with_stream<T>(memory, [&](auto& stream) {
    return StreamState<T>{stream.layers[layer].h, stream.layers[layer].c};
  });
}

template <class T>
void stream_step(unsigned char* memory, const void* x, i64 row, void* y) {
  with_stream<T>(memory, [&](auto& stream) {
    Lines<const T> in{static_cast<const T*>(x), row};
    if (stream.x) {
      const i64 I = stream.layers[0].I;
      for (i64 b = 0; b < stream.B; b++)
        widen(static_cast<const uint16_t*>(x) + b * row, I, stream.x + b * I);
      in = {stream.x, I};
    }
    for (i64 k = 0; k < stream.count; k++) {
      const auto& layer = stream.layers[k];
      bool down = stream.down;
      for (i64 first = 0; first < stream.B; first += STREAM_ROWS, down = !down)
        layer.step(stream.cell, in.from(first), first, smaller(STREAM_ROWS, stream.B - first),
                   down);
      in = {layer.h, layer.P};
      if (stream.x && k + 1 < stream.count) {  // layers hand on what they would give
        shorten_and_widen(layer.h, stream.B * layer.P, stream.x);
        in.data = stream.x;
      }
    }
    stream.down = !stream.down;
    const i64 numbers = stream.B * in.stride;
    if (stream.x)
      shorten(in.data, numbers, static_cast<uint16_t*>(y));
    else
      copy(in.data, static_cast<T*>(y), numbers);
  });
}

}  // namespace gatewise::GATEWISE_ISA
