// What the host hands to a kernel, and the table of kernels of one instruction set.
// Lengths and axes: see the legend in shape.h. All pointers stay valid and unaliased for the whole
// call, and belong to the caller; "read" and "written" say which side touches them.
#pragma once
#include "shape.h"
#include "threads.h"

namespace gatewise {

// Read. Contiguous; null where the layer has none.
template <class T>
struct Weights {
  const T* W_ih;  // (G*H, I)
  const T* W_hh;  // (G*H, P)
  const T* b_ih;  // (G*H)
  const T* b_hh;  // (G*H)
  const T* W_hr;  // (P, H)
  const T* peep;  // (3, H)
};

// One layer, D directions. Each has tokens of its own: they are others where the call is a part of
// a longer run, which begins at either end.
template <class T>
struct ForwardCall {
  Dims dims;
  Sequence sequence;
  int cell;        // index in CELLS
  bool in_parts;   // a part of a longer run, with the bits of the whole, even if it is one step
  bool reduced;    // products round what they multiply to bfloat16; only if Table::probe_pairs
  bool by_groups;  // the tape lies by groups (groups.h); only if it is of the products' numbers
  i64 least_rows;  // of a worker who takes a part of the batch (team.h)
  bool near;       // workers meet quickly
  struct Direction {
    bool reverse;              // from each sequence's last step to its first
    View<const T> x;           // read, I numbers a token
    View<const Bf16> brief_x;  // in its place, of reduced calls, if it has data
    Weights<T> w;
    const Bf16 *brief_W_ih, *brief_W_hh;  // of a single step, read in their place; else null
    View<T> y;                            // written, P numbers a token
    View<Bf16> brief_y;                   // in its place, as above
    const T* h0;                          // read, (B, P); null: zeros
    const T* c0;                          // read, (B, H); null: zeros
    T* h_n;                               // written, (B, P)
    T* c_n;   // written, (B, H); the running cell state. Null is allowed for cells without one
    T* tape;  // written, (N, S, H); null: nothing is kept
    Bf16* rounded_tape;  // written in its place, if the call is reduced and this is not null
  } direction[2];
  unsigned char*
      workspace;  // forward_bytes() of it; 64-byte aligned; contents undefined before and after
  Barrier barrier[3];  // for all workers, and one a direction
};

// Everything overwrites its output, but what is added to. Null outputs are not wanted, null input
// gradients are zeros.
template <class T>
struct BackwardCall {
  Dims dims;
  Sequence sequence;
  int cell;
  bool adds;         // the weights' gradients to what is there: a part of a longer run
  bool adds_inputs;  // d_x, too
  bool by_groups;    // so lies the tape
  i64 least_rows;    // as forward
  struct Direction {
    bool reverse;
    View<const T> x;
    View<T> d_x;  // written, the sum where they share it; data null: not wanted, of either
    Weights<T> w;
    View<const T> y;                               // read: what forward wrote
    View<const Bf16> brief_x, brief_y, brief_d_y;  // in their places, if they have data; only
    View<Bf16> brief_d_x;      // with a rounded tape, and brief_d_x only if nothing is added to it
    const T *h0, *c0;          // read
    const T* tape;             // read
    const Bf16* rounded_tape;  // read in its place; then products round what they multiply, too
    View<const T> d_y;         // read; data null: zeros
    const T *d_h_n, *d_c_n;    // read, (B, P), (B, H)
    const T* d_tape;           // read, (N, S, H): gradients that arrive at the slots themselves
    T *d_h0, *d_c0;            // written, (B, P), (B, H)
    T *d_W_ih, *d_W_hh, *d_b, *d_W_hr,
        *d_peep;  // written, shapes as in Weights; d_b serves both biases
    T* g_tape;    // written, (N, S, H): total gradient at every slot
    T* g_h;       // written, (N, P): total gradient at every hidden state
    T* d_z;  // written, (B, even_row(G*H)): gate gradients; of a single step only, without W_hr
    Bf16* rounded_d_z;  // in its place, with a rounded tape

    bool wants_inputs() const { return d_x.data || brief_d_x.data; }
  } direction[2];
  unsigned char* workspace;
  Barrier barrier[7];  // for all workers, one a direction, two a direction for its groups of rows
};

// Numbers of a row of gate gradients: products read rounded ones two by two.
constexpr i64 even_row(i64 n) { return round_up(n, 2); }

// The weight gradients that n tokens make together; each may be null.
template <class T>
struct Tokens {
  i64 n, R, I, H;                  // R = G*H
  bool add;                        // to what is there
  Lines<const T> d_z{}, x{}, h{};  // read, n rows; h: the states that the steps began with
  T *d_W_ih = nullptr, *d_W_hh = nullptr, *d_b = nullptr;  // written, (R, I), (R, H), (R)
  Lines<const Bf16> rounded_d_z{};  // in place of d_z; then products round what they multiply, too
};

template <class T>
struct SumsCall {
  Tokens<T> tokens;
  unsigned char* workspace;
  Barrier barrier;
};

// A stack of layers that a stream runs, one direction. The weights are read once, when it is
// packed.
template <class T>
struct StreamPlan {
  int cell;    // index in CELLS
  bool brief;  // x, y and the weights are bfloat16; the weights come widened
  i64 B, count;
  struct Layer {
    i64 I, H, P;
    Weights<T> w;
  };
  const Layer* layer;  // count of them
};

// Where a stream keeps the states of a layer, for others to read and write between steps.
template <class T>
struct StreamState {
  T* h;  // (B, P)
  T* c;  // (B, H); not used by a cell without cell state
};

// The kernels of one number type on one instruction set. `threads` is the largest number of workers
// that may run the call; every worker calls with its id and the common count.
template <class T>
struct Kernels {
  i64 (*forward_bytes)(const ForwardCall<T>&, int threads);
  void (*forward)(ForwardCall<T>&, int id, int count);
  i64 (*backward_bytes)(const BackwardCall<T>&, int threads);
  void (*backward)(BackwardCall<T>&, int id, int count);
  i64 (*sums_bytes)(const SumsCall<T>&);
  void (*sums)(SumsCall<T>&, int id, int count);
  void (*activations)(const T* x, T* sigmoid, T* tanh, i64 n);  // for the test that measures them
  // A stream lives in stream_bytes() of memory, 64-byte aligned, and only there; stream_pack fills
  // it but for the states. A step reads x, (B, I) with rows `row` apart, and writes y, (B, P); both
  // of T, or of bfloat16 where the plan is brief.
  i64 (*stream_bytes)(const StreamPlan<T>&);
  void (*stream_pack)(const StreamPlan<T>&, unsigned char* memory);
  StreamState<T> (*stream_state)(unsigned char* memory, i64 layer);
  void (*stream_step)(unsigned char* memory, const void* x, i64 row, void* y);
  i64 (*probe)(i64 rounds, T* sink);  // for the bench: see probe.h
};

struct Table {
  const char* isa;
  int vector_bytes;
  int tile_rows;  // most
  Kernels<float> f32;
  Kernels<double> f64;
  i64 (*probe_pairs)(i64 rounds, float* sink);  // null: it multiplies no pairs of bfloat16 (bf16.h)
};

}  // namespace gatewise
