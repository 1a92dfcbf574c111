// How work is split. Declared here, done in threads.cpp, the only file that starts or joins
// anything. Kernel objects include this header, so it names nothing of the standard library but
// <cstdint>.
#pragma once
#include <cstdint>

namespace gatewise {

// A meeting point. wait(count) returns when `count` workers have arrived; it spins for a bounded
// time, then yields the processor, so that a worker whose core was taken does not burn the other
// one.
struct alignas(64) Barrier {
  alignas(64) int32_t arrived = 0;
  alignas(64) int32_t phase = 0;
  void wait(int32_t count);
};

// As many as the application's OpenMP library would use in this thread; 1 without one.
int usual_threads();

// What the second-level cache of a core holds; 2 MB where the system does not say. (No function: an
// emulated kernel calls none of this processor's.)
extern const int64_t second_level_bytes;

// What a meeting of so many workers at a Barrier takes, in seconds, as it was lately: a twentieth
// of a microsecond between cores that share a cache, some ten times that between others, and a
// virtual machine moves from the one to the other within minutes. Measured anew when it is half a
// second old, which takes some 20 us. Usual where the workers are not to be had.
double meeting_time(int threads);

// as_it_paid: where it pays by what is known, and nothing is learnt from it.
enum class Sharing { always, where_it_pays, as_it_paid };

// Runs task(context, id, count) for id = 0 .. count-1 and returns when all have ended. The caller
// is worker 0. count <= threads: it is 1 while another Python thread holds the workers, so a task
// takes its share from the `count` it is given and never from a number fixed beforehand. It is 1
// too where it is left to what pays, while workers come too late to be of use. Safe in a child
// forked after the parent used workers. Denormals are flushed to zero in every worker.
void parallel(int threads, void (*task)(void* context, int id, int count), void* context,
              Sharing sharing = Sharing::always);

}  // namespace gatewise
