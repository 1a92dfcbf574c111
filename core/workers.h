// How many workers a call is worth, and the call.
#pragma once
#include <atomic>

#include "kernel.h"

namespace gatewise {

// Waking a worker costs a microsecond or two while it spins, and up to about 100 us once it sleeps;
// below this work one does it alone. In floating-point operations. A test may set it to 0: then
// workers share whatever it is, whether it pays or not.
inline std::atomic<double> work_per_thread{2e6};

// Workers who share the units of all rows meet at every step, and each takes from its cache what
// the others have written. Workers who share the rows do not, but have tiles of fewer, and write
// next to each other. What the one or the other must spare is counted in meetings: work of a
// forward step, in operations, that is done at this speed while all meet.
inline constexpr double kWorkInMeeting = 5e11;
inline constexpr double kShortest = 0.04e-6, kLongest = 1e-6;  // of meetings, in seconds
// If a step is worth so many meetings, all share the units of fewer rows for each than these.
struct Tiles {
  i64 rows;
  double meetings;
};
inline constexpr Tiles kGoodTiles{4, 12}, kPairsOfRows{2, 3.5};

// Meetings of n workers who are near each other take no more than n of this, in seconds. Others had
// better not share units that rows would do for.
inline constexpr double kNear = 0.075e-6;
inline bool are_near(double meeting, int threads) { return meeting <= kNear * threads; }

inline std::atomic<i64> rows_of_worker{0};  // for tests: whatever pays, if not 0

// A weight must be fetched and packed once, which takes as long as so many operations.
inline constexpr double kWeight = 8;

// Units are computed by whole vectors; a usual one.
inline constexpr i64 kUnits = 8;

inline double weights_of(const Dims& d, int G) {
  return double(d.D) * G * double(round_up(d.H, kUnits)) * double(d.I + d.P);
}
// The operations of a forward run's products.
inline double products(const Dims& d, int G) { return 2.0 * double(d.N) * weights_of(d, G); }

// passes: over the weights, 1 forward and 2 backward.
inline int workers(const Dims& d, int G, int threads, double passes) {
  const double weights = weights_of(d, G), step = 2.0 * double(d.B) * weights;
  const double least = work_per_thread.load(std::memory_order_relaxed);
  const double useful = passes * (products(d, G) + kWeight * weights) / least;
  threads = useful < threads ? (useful < 1 ? 1 : int(useful)) : threads;
  const i64 good = larger(d.D, d.D * d.B / kGoodTiles.rows);  // for whom there are good tiles
  if (good >= threads || d.T == 1 || least == 0) return threads;
  const auto pays = [&](double meeting) { return step >= kWorkInMeeting * meeting * threads; };
  return pays(kLongest) || (pays(kShortest) && pays(meeting_time(threads))) ? threads : int(good);
}

// The rows that each of so many workers must have to take a part of the batch.
inline i64 least_rows(const Dims& d, int G, int threads, double meeting, int tile_rows) {
  if (const i64 forced = rows_of_worker.load(std::memory_order_relaxed)) return forced;
  const double meetings =
      2.0 * double(d.B) * weights_of(d, G) / (kWorkInMeeting * meeting * threads);
  if (meetings >= kGoodTiles.meetings && are_near(meeting, threads) && tile_rows >= kGoodTiles.rows)
    return kGoodTiles.rows;
  return meetings >= kPairsOfRows.meetings ? kPairsOfRows.rows : 1;
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
