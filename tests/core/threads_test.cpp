// Checks of core/threads.cpp. Run with the name of a check; prints its name and exits 0, or says
// what was wrong and exits 1. tests/test_threads.py compiles and runs it, also under
// ThreadSanitizer.
#include "threads.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

using gatewise::Barrier;
using gatewise::parallel;
using gatewise::Sharing;

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "line %d: not true: %s\n", __LINE__, #condition); \
      std::exit(1);                                                          \
    }                                                                        \
  } while (0)

namespace {

template <class Task>
void run(int threads, Task task, Sharing sharing = Sharing::always) {
  parallel(
      threads, [](void* context, int id, int count) { (*static_cast<Task*>(context))(id, count); },
      &task, sharing);
}

// How often each id ran, and the count each was told; every id below count must have run once.
struct Roll {
  static constexpr int kMost = 1100;
  std::vector<std::atomic<int>> runs = std::vector<std::atomic<int>>(kMost);
  std::atomic<int> told{0}, total{0};

  void operator()(int id, int count) {
    ++runs[id];
    ++total;
    told = count;
  }
  int call(int threads) {
    for (auto& r : runs) r = 0;
    told = total = 0;
    run(threads, [this](int id, int count) { (*this)(id, count); });
    CHECK(told >= 1 && told <= (threads > 1 ? threads : 1));
    CHECK(total == told);
    for (int id = 0; id < told; ++id) CHECK(runs[id] == 1);
    return told;
  }
};

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Runs `body` in a forked child and insists that it ends well, soon.
template <class Body>
void in_child(Body body) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(10);
    body();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void counts() {
  Roll roll;
  for (int threads : {1, 2, 3, 8, 2, 5, 1, 16, 4, 0, -3}) {
    CHECK(roll.call(threads) == (threads > 1 ? threads : 1));
  }
}

void caller_is_worker_0() {
  for (int threads : {1, 2, 4}) {
    std::thread::id first;
    run(threads, [&](int id, int) {
      if (id == 0) first = std::this_thread::get_id();
    });
    CHECK(first == std::this_thread::get_id());
  }
}

void back_to_back() {
  Roll roll;
  for (int k = 0; k < 10'000; ++k) CHECK(roll.call(2 + k % 3) == 2 + k % 3);
}

// Every share sees what every other wrote before the meeting, step after step.
void barrier() {
  constexpr int kThreads = 4, kSteps = 500;
  std::vector<int> values(kThreads, 0);  // plain ints: ThreadSanitizer judges the ordering
  std::atomic<int> wrong{0};
  Barrier meeting;
  run(kThreads, [&](int id, int count) {
    if (count != kThreads) ++wrong;
    for (int step = 0; step < kSteps; ++step) {
      values[id] = step;
      meeting.wait(kThreads);
      for (int v : values) wrong += v != step;
      meeting.wait(kThreads);
    }
  });
  CHECK(wrong == 0);
  Barrier alone;
  for (int k = 0; k < 3; ++k) alone.wait(1);
}

// A task that asks for threads, while the pool is held by its own caller, gets itself.
void nested() {
  std::atomic<int> outer{0}, inner{0}, told{0};
  run(3, [&](int, int) {
    ++outer;
    run(3, [&](int id, int count) {
      ++inner;
      told += count + id;
    });
  });
  CHECK(outer == 3 && inner == 3 && told == 3);
  Roll roll;
  CHECK(roll.call(3) == 3);  // and the pool is whole again
}

// Many threads call at once: nobody waits for the pool, every job is done once.
void concurrent() {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int k = 0; k < 6; ++k) {
    callers.emplace_back([&] {
      for (int n = 0; n < 500; ++n) {
        std::atomic<int> ran{0}, told{0};
        run(3, [&](int, int count) {
          ++ran;
          told = count;
        });
        wrong += ran != told;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(wrong == 0);
}

void second_caller_does_not_wait() {
  std::atomic<bool> inside{false}, release{false};
  std::thread holder([&] {
    run(2, [&](int, int) {
      inside = true;
      while (!release) sleep_ms(1);
    });
  });
  while (!inside) sleep_ms(1);
  Roll roll;
  CHECK(roll.call(8) == 1);
  release = true;
  holder.join();
  CHECK(roll.call(8) == 8);
}

void fork_after_use() {
  Roll roll;
  roll.call(4);
  in_child([&] { CHECK(roll.call(4) == 4); });
  in_child([&] { in_child([&] { CHECK(roll.call(2) == 2); }); });
  CHECK(roll.call(4) == 4);
}

// The fork happens while another thread is inside parallel(), at every point of it.
void fork_in_the_middle() {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) run(3, [](int, int) { sleep_ms(0); });
  });
  for (int k = 0; k < 100; ++k) {
    in_child([] {
      Roll roll;
      for (int n = 0; n < 3; ++n) CHECK(roll.call(3) == 3);
    });
  }
  stop = true;
  busy.join();
}

void idle_burns_nothing() {
  Roll roll;
  CHECK(roll.call(4) == 4);
  sleep_ms(20);  // the bounded spin after a job is over
  const double before = cpu_seconds();
  sleep_ms(300);
  const double burnt = cpu_seconds() - before;
  if (burnt >= 0.01) std::fprintf(stderr, "burnt %g s of processor time in 0.3 s\n", burnt);
  CHECK(burnt < 0.01);
  CHECK(roll.call(4) == 4);  // sleepers wake
}

void sleepers_wake_every_time() {
  Roll roll;
  for (int k = 0; k < 200; ++k) {
    CHECK(roll.call(3) == 3);
    std::this_thread::sleep_for(std::chrono::microseconds(k));  // around the end of the spin
  }
}

// Two shares of a job that is shared where that pays; how many ran. The second is `late`.
int count_if_late(int late_ms, Barrier* barrier = nullptr) {
  std::atomic<int> told{0};
  run(
      2,
      [&](int id, int count) {
        told = count;
        sleep_ms(id == 1 ? 5 + late_ms : 5);
        if (barrier && count > 1) barrier->wait(count);
      },
      Sharing::where_it_pays);
  return told;
}

// Whether so many jobs in a row come to be shared: on a busy machine a worker may be late by
// itself.
bool share_in_a_row(int jobs, Barrier* barrier = nullptr) {
  int row = 0;
  for (int k = 0; k < 300 && row < jobs; ++k) row = count_if_late(0, barrier) == 2 ? row + 1 : 0;
  return row == jobs;
}

void punctual_workers_share() { CHECK(share_in_a_row(10)); }

// As when another process has the second core. The caller stops to wait for it, tries it again
// after eight times what it lost, and takes it back once it is punctual.
void late_workers_are_left_out() {
  using Clock = std::chrono::steady_clock;
  for (Barrier* barrier : {static_cast<Barrier*>(nullptr), new Barrier}) {
    int shared = 0;
    while (count_if_late(40, barrier) == 2) CHECK(++shared < 20);
    CHECK(shared > 1);  // once is an accident
    while (count_if_late(40, barrier) == 1) {
    }
    const auto begin = Clock::now();
    while (count_if_late(0, barrier) == 1) {
    }
    CHECK(Clock::now() - begin > std::chrono::milliseconds(8 * 40 / 2));
    CHECK(share_in_a_row(5, barrier));
  }
}

// Denormals are zero inside a task, on every thread and for any count, and as before outside.
// A meeting takes time, is known for a while, and may be asked for by many at once.
void meetings_are_measured() {
  using gatewise::meeting_time;
  const double first = meeting_time(2);
  CHECK(first > 1e-9 && first < 1e-2);
  CHECK(meeting_time(2) == first);
  CHECK(meeting_time(1) > 0);  // nobody to meet: what is usual
  std::vector<std::thread> askers;
  for (int k = 0; k < 4; ++k)
    askers.emplace_back([] {
      for (int threads = 2; threads < 40; ++threads) CHECK(meeting_time(threads) > 1e-9);
    });
  for (auto& asker : askers) asker.join();
}

void denormals() {
  volatile float tiny = 1e-40f;
  CHECK(tiny * 0.5f != 0.0f);
#if defined(__x86_64__) || defined(__aarch64__)
  for (int threads : {1, 3}) {
    std::atomic<int> kept{0}, ran{0};
    run(threads, [&](int, int) {
      kept += tiny * 0.5f != 0.0f;
      ++ran;
    });
    CHECK(ran == threads && kept == 0);
  }
#endif
  CHECK(tiny * 0.5f != 0.0f);
}

// The system grants no more threads: the job runs with those there are.
void refused_threads() {
  rlimit space{};
  getrlimit(RLIMIT_AS, &space);
  space.rlim_cur = 256u << 20;  // a stack is 8 MB: some workers start, most do not
  CHECK(setrlimit(RLIMIT_AS, &space) == 0);
  Roll roll;
  const int count = roll.call(500);
  CHECK(count >= 1 && count < 500);
  CHECK(roll.call(500) == count);
  CHECK(roll.call(2) == (count < 2 ? count : 2));
}

void absurd_request() {
  Roll roll;
  const int count = roll.call(1'000'000);
  CHECK(count >= 1 && count <= Roll::kMost);
}

// The process ends while workers are awake and while another thread is in the middle of a job.
void exit_in_the_middle() {
  static std::atomic<bool> inside{false};
  std::thread([] {
    for (;;) {
      run(3, [](int, int) {
        inside = true;
        sleep_ms(1);
      });
    }
  }).detach();
  while (!inside) sleep_ms(1);
  std::exit(0);
}

struct Named {
  const char* name;
  void (*check)();
};
#define NAMED(check) {#check, check}
constexpr Named kChecks[] = {
    NAMED(counts),
    NAMED(caller_is_worker_0),
    NAMED(back_to_back),
    NAMED(barrier),
    NAMED(nested),
    NAMED(concurrent),
    NAMED(second_caller_does_not_wait),
    NAMED(fork_after_use),
    NAMED(fork_in_the_middle),
    NAMED(idle_burns_nothing),
    NAMED(sleepers_wake_every_time),
    NAMED(punctual_workers_share),
    NAMED(late_workers_are_left_out),
    NAMED(meetings_are_measured),
    NAMED(denormals),
    NAMED(refused_threads),
    NAMED(absurd_request),
    NAMED(exit_in_the_middle),
};

}  // namespace

// With no name, lists the checks.
int main(int argc, char** argv) {
  for (const Named& each : kChecks) {
    if (argc < 2) {
      std::puts(each.name);
    } else if (std::strcmp(argv[1], each.name) == 0) {
      alarm(60);
      each.check();
      return 0;
    }
  }
  return argc < 2 ? 0 : 2;
}
