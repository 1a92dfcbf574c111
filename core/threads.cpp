// The workers behind parallel(). Everything that starts, wakes, parks or awaits is here.
//
// torch runs its own operators on the workers of an OpenMP library, and those spin for milliseconds
// after each of them. Workers of ours would fight them for the cores, and did: a training loop ran
// at half its speed. So where the process has such a library, its workers are ours too. Elsewhere,
// and in a forked child, which no OpenMP library survives, there is a pool of our own.
//
// A worker of that pool is a mailbox of one word. The caller puts `offered` there; whoever takes it
// out runs that share of the job: the worker, or the caller itself once its own share is done and
// the worker has not woken yet. So a sleeping or preempted worker costs at most the time of doing
// its share here. That holds with a Barrier in the task too: whom the caller waits for, a woken
// worker runs.
//
// A worker whose core another process takes keeps everybody waiting, in either case. What the
// workers gain is therefore measured at every job, and while it is nothing the caller works alone.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace gatewise {
namespace {

// --- the processor ------------------------------------------------------------------------------

// Builtins and not <immintrin.h>: only simd.h sees intrinsics headers.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The floating point control word. `flushing` is the same word with denormals taken and given as
// zero.
#if defined(__x86_64__)
using Control = unsigned;
inline Control control() { return __builtin_ia32_stmxcsr(); }
inline void set_control(Control word) { __builtin_ia32_ldmxcsr(word); }
inline Control flushing(Control word) { return word | 0x8040; }  // FTZ, DAZ
#elif defined(__aarch64__)
using Control = uint64_t;
inline Control control() {
  Control word;
  asm volatile("mrs %0, fpcr" : "=r"(word));
  return word;
}
inline void set_control(Control word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
inline Control flushing(Control word) { return word | (1u << 24); }  // FZ
#else
using Control = int;
inline Control control() { return 0; }
inline void set_control(Control) {}
inline Control flushing(Control word) { return word; }
#endif

// --- waiting ------------------------------------------------------------------------------------

using Clock = std::chrono::steady_clock;
using Duration = Clock::duration;
using Microseconds = std::chrono::microseconds;

// Waking a sleeping thread takes 30 to 160 us, so a worker that just worked stays awake that long.
constexpr Microseconds kAwake{75};
// The caller waits longer: this is bounded by the job, and its own core has nothing better to do.
// Then it sleeps all the same, which frees the core for a worker that was pushed off its own.
constexpr Microseconds kPatience{200};
constexpr int kPauses = 500;  // at a Barrier: 5 to 25 us, more than a healthy partner needs
// How long a measured meeting is believed, the best of how many rounds of how many it is, and what
// is believed where workers do not come.
constexpr std::chrono::milliseconds kMeetingIsKnown{500};
constexpr int kRounds = 8, kMeetings = 8;
constexpr int kMeetingsKnown = 65;  // teams of fewer have a measurement of their own
constexpr double kUsualMeeting = 0.3e-6;
constexpr int kMostThreads = 1024;  // an absurd request must not fill the machine before it fails

// Spins until done() or for `most`; says whether done.
template <class Done>
bool spin(Microseconds most, Done done) {
  const auto end = Clock::now() + most;
  do {
    for (int k = 0; k < 32; ++k) {
      if (done()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return done();
}

// --- a job --------------------------------------------------------------------------------------

// What the shares of one job took.
struct Tally {
  std::atomic<int> shares{0};
  std::atomic<Duration> quickest{Duration::max()};
  void add(Duration took) {
    ++shares;
    for (Duration best = quickest; took < best && !quickest.compare_exchange_weak(best, took);) {
    }
  }
};

thread_local Duration waited{};  // at barriers, by this thread, once it had spun in vain

struct Job {
  void (*task)(void* context, int id, int count) = nullptr;
  void* context = nullptr;
  int count = 0;
  Control word = {};  // the caller's, flushing: every share computes under the same rounding
  Tally* tally = nullptr;

  void share(int id) const noexcept {
    const auto begin = Clock::now();
    waited = {};
    task(context, id, count);  // must not throw
    tally->add(Clock::now() - begin - waited);
  }
};

// What workers gain over one alone: shares are about equal, so alone it takes their number times
// the quickest. On a free machine that is close to their number. Where it stays below kLeast, as
// when another process has one of two cores, the caller works alone for a while and then tries
// again.
class Gain {
 public:
  bool expected() const { return average >= kLeast || Clock::now() >= alone_until; }
  void learn(const Tally& tally, Duration took) {
    const bool on_trial = average < kLeast;
    const Duration by_one = tally.shares.load() * tally.quickest.load();
    const double gain = double(by_one.count()) / double(took.count());
    average = on_trial ? gain : average + (gain - average) / 4;
    if (average >= kLeast) return;
    alone_until = Clock::now() + larger(kAlone, smaller(kRepay * (took - by_one), kMostAlone));
  }

 private:
  static constexpr double kLeast = 1.0;
  static constexpr Duration kAlone = std::chrono::milliseconds(10);
  // A job with a meeting at every step may take ten times as long: what a trial has lost is to be a
  // small part of the time until the next.
  static constexpr int kRepay = 8;
  static constexpr Duration kMostAlone = std::chrono::seconds(2);
  static Duration smaller(Duration a, Duration b) { return a < b ? a : b; }
  static Duration larger(Duration a, Duration b) { return a < b ? b : a; }
  double average = 2;
  Clock::time_point alone_until{};
};

// --- the workers of OpenMP ----------------------------------------------------------------------

// Found by name among what the process has loaded for all to see (torch loads it so): GNU's
// library, or another that answers to its names.
struct OpenMP {
  void (*run)(void (*share)(void* context), void* context, unsigned threads, unsigned flags);
  int (*most)();   // the threads a region would get now: torch.get_num_threads()
  int (*count)();  // in a region: the threads it got
  int (*id)();

  OpenMP() {
    find("GOMP_parallel", run);
    find("omp_get_max_threads", most);
    find("omp_get_num_threads", count);
    find("omp_get_thread_num", id);
  }
  template <class F>
  static void find(const char* name, F*& to) {
    to = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
  }
  // The library ends the process when it cannot start as many threads as it is asked for, so it is
  // asked for no more than what torch asks for.
  bool has(int threads) const { return run && most && count && id && threads <= most(); }
};

const OpenMP& openmp() {
  static const OpenMP found;
  return found;
}

// A region of another size than the one before makes the library end threads, or start them: they
// all come, and those beyond job.count go.
void run_on_openmp(Job job) noexcept {
  openmp().run(
      [](void* context) {
        Job mine = *static_cast<const Job*>(context);
        const int id = openmp().id(), came = openmp().count();
        if (came < mine.count) mine.count = came;
        if (id >= mine.count) return;
        const Control before = control();
        set_control(mine.word);
        mine.share(id);
        set_control(before);
      },
      &job, static_cast<unsigned>(openmp().most()), 0);
}

// --- a pool of our own --------------------------------------------------------------------------

enum Mail : int32_t { empty, offered, asleep };  // asleep: empty, and the worker must be woken

struct alignas(64) Worker {
  std::atomic<int32_t> mail{empty};

  void offer() {
    if (mail.exchange(offered) == asleep) mail.notify_one();
  }
  bool take() {
    int32_t was = mail.load(std::memory_order_relaxed);
    return was == offered && mail.compare_exchange_strong(was, empty);
  }

  // Returns when a share has been taken. Spins for a while, then sleeps and burns nothing.
  void await() {
    while (!spin(kAwake, [this] { return take(); })) {
      int32_t was = empty;
      if (mail.compare_exchange_strong(was, asleep)) mail.wait(asleep);
    }
  }
};

struct Pool {
  Job job;
  alignas(64) std::atomic<int32_t> unfinished{0};  // shares that workers still hold or may take
  std::vector<std::unique_ptr<Worker>> workers;    // worker k runs share k + 1
  bool refused = false;  // the system would start no more threads; it is not asked again

  void grow(size_t most) noexcept;
  void run(Job job) noexcept;
  [[noreturn]] void work(Worker& mine, int id) noexcept;
};

void Pool::work(Worker& mine, int id) noexcept {
  for (;;) {
    mine.await();
    set_control(job.word);
    job.share(id);
    if (unfinished.fetch_sub(1) == 1) unfinished.notify_one();
  }
}

// Starts workers until there are `most`, or as many as the system grants.
void Pool::grow(size_t most) noexcept {
  if (refused || workers.size() >= most) return;
  sigset_t all, before;  // signals are for the application's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    while (workers.size() < most) {
      workers.push_back(std::make_unique<Worker>());
      Worker& mine = *workers.back();
      const int id = static_cast<int>(workers.size());
      // Detached, and the pool is never freed: nothing to join and nothing to destroy when the
      // process ends, or when the interpreter does while another thread is still in here.
      try {
        std::thread([this, &mine, id] { work(mine, id); }).detach();
      } catch (...) {
        workers.pop_back();
        throw;
      }
    }
  } catch (...) {
    refused = true;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::run(Job next) noexcept {
  const int wanted = next.count < kMostThreads ? next.count : kMostThreads;
  grow(static_cast<size_t>(wanted - 1));
  const int ready = static_cast<int>(workers.size()) + 1;
  next.count = wanted < ready ? wanted : ready;
  job = next;
  unfinished.store(job.count - 1);
  for (int id = 1; id < job.count; ++id) workers[id - 1]->offer();
  job.share(0);
  for (int id = job.count - 1; id > 0; --id) {
    if (!workers[id - 1]->take()) continue;
    job.share(id);
    unfinished.fetch_sub(1);
  }
  if (spin(kPatience, [this] { return unfinished.load() == 0; })) return;
  while (int32_t left = unfinished.load()) unfinished.wait(left);
}

// Whoever sets `held` owns the workers and what is known of them; there is no lock to inherit in a
// forked child or to queue at.
std::atomic<bool> held{false};
Gain gain;
Pool* pool = nullptr;
bool forked = false;

// The workers stay behind in the parent. Their pool is left as it is, perhaps in the middle of
// another thread's job, and the child makes its own when it needs one.
void forget_pool_in_child() {
  pool = nullptr;
  forked = true;
  held.store(false);
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);

}  // namespace

void Barrier::wait(int32_t count) {
  // Builtins, since the kernels that see this struct must not see <atomic>.
  const int32_t now = __atomic_load_n(&phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
    __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase, now ^ 1, __ATOMIC_RELEASE);
    return;
  }
  for (int k = 0; k < kPauses; ++k) {
    if (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) != now) return;
    relax();
  }
  const auto begin = Clock::now();
  while (__atomic_load_n(&phase, __ATOMIC_ACQUIRE) == now) sched_yield();
  waited += Clock::now() - begin;
}

int usual_threads() { return openmp().most ? openmp().most() : 1; }

const int64_t second_level_bytes = [] {
  int64_t found = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return found > 0 ? found : int64_t(2) << 20;
}();

double meeting_time(int threads) {
  struct Known {
    std::atomic<double> time{kUsualMeeting};
    std::atomic<Clock::rep> until{0};
  };
  static Known all[kMeetingsKnown];  // the first is that of all larger teams
  Known& known = all[threads < kMeetingsKnown ? threads : 0];
  const auto now = Clock::now().time_since_epoch();
  if (now.count() < known.until) return known.time;
  known.until = (now + kMeetingIsKnown).count();
  struct Meetings {
    Barrier barrier;
    Duration best = Duration::max();
    bool enough = false;  // set by worker 0 before a meeting, read behind it
  } meetings;
  const auto task = [](void* context, int id, int count) {
    Meetings& of = *static_cast<Meetings*>(context);
    const auto end = Clock::now() + kPatience;
    for (int round = 0; count > 1 && round < kRounds && !of.enough; ++round) {
      const auto begin = Clock::now();
      for (int k = 0; k < kMeetings; ++k) of.barrier.wait(count);
      const auto now = Clock::now();
      if (id == 0) {
        if (now - begin < of.best) of.best = now - begin;
        of.enough = now > end;
      }
      of.barrier.wait(count);
    }
  };
  parallel(threads, task, &meetings, Sharing::as_it_paid);
  const bool came = meetings.best < Duration::max();
  known.time =
      came ? std::chrono::duration<double>(meetings.best).count() / kMeetings : kUsualMeeting;
  return known.time;
}

void parallel(int threads, void (*task)(void* context, int id, int count), void* context,
              Sharing sharing) {
  const Control before = control();
  set_control(flushing(before));
  bool done = false;
  if (threads > 1 && !held.exchange(true)) {
    if (sharing == Sharing::always || gain.expected()) {
      Tally tally;
      const Job job{task, context, threads, flushing(before), &tally};
      const auto begin = Clock::now();
      if (!forked && openmp().has(threads)) {
        run_on_openmp(job);
      } else {
        if (pool == nullptr) pool = new Pool;
        pool->run(job);
      }
      if (sharing == Sharing::where_it_pays) gain.learn(tally, Clock::now() - begin);
      done = true;
    }
    held.store(false);
  }
  if (!done) task(context, 0, 1);
  set_control(before);
}

}  // namespace gatewise
