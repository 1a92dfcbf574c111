// How many workers a call is worth, and the call.
#pragma once
#include <atomic>

#include "kernel.h"

namespace gatewise {

// Waking a worker costs a microsecond or two while it spins, and up to about 100 us once it sleeps;
// below this work one does it alone. In floating-point operations. A test may set it to 0: then
// workers share whatever it is, whether it pays or not.
inline std::atomic<double> work_per_thread{2e6};

// Workers who share the units of a few rows meet at every step, which takes a third of a
// microsecond; below this forward work a step (a part of the above) that is more than they save.
inline constexpr double kStepPart = 0.05;

// A weight must be fetched and packed once, which takes as long as so many operations.
inline constexpr double kWeight = 8;

inline double weights_of(const Dims& d, int G) {
  return double(d.D) * G * double(d.H) * double(d.I + d.P);
}
// The operations of a forward run's products.
inline double products(const Dims& d, int G) { return 2.0 * double(d.N) * weights_of(d, G); }

// passes: over the weights, 1 forward and 2 backward.
inline int workers(const Dims& d, int G, int threads, double passes) {
  const double weights = weights_of(d, G), step = 2.0 * double(d.B) * weights;
  const double least = work_per_thread.load(std::memory_order_relaxed);
  const double useful = passes * (products(d, G) + kWeight * weights) / least;
  threads = useful < threads ? (useful < 1 ? 1 : int(useful)) : threads;
  const bool rows_are_few = d.T > 1 && d.B * d.D < 2 * threads;
  return rows_are_few && step < kStepPart * least * threads ? int(smaller(threads, d.D)) : threads;
}

template <class Call, class Kernel>
void run(Call& call, Kernel kernel, int threads) {
  struct Context {
    Call& call;
    Kernel kernel;
  } context{call, kernel};
  parallel(
      threads,
      [](void* c, int id, int count) {
        auto& context = *static_cast<Context*>(c);
        context.kernel(context.call, id, count);
      },
      &context, work_per_thread.load() > 0 ? Sharing::where_it_pays : Sharing::always);
}

}  // namespace gatewise
