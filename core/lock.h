// Python's lock while the core computes.
#pragma once
#include <nanobind/nanobind.h>

#include <optional>

namespace gatewise {

// Other Python threads may go on for as long as this lives, if the work is worth it. Given away
// while another thread waits for it, the lock comes back after two changes of thread, or after the
// 5 ms (sys.getswitchinterval()) for which that one may keep it.
class OthersMayGoOn {
 public:
  explicit OthersMayGoOn(double work) {
    if (work > kShort) given_away_.emplace();
  }

 private:
  // In floating-point operations, some 50 us. Below it two threads of calls alone, without any
  // other work, are slower together than one after the other.
  static constexpr double kShort = 2e6;
  std::optional<nanobind::gil_scoped_release> given_away_;
};

}  // namespace gatewise
