// Which of the algorithms runs a call: the general one, in numbers or in pairs of bfloat16, or that
// of a single step or of few tokens. The call alone decides, so bits do not depend on the number of
// workers.
#pragma once
#include "backward.h"
#include "few.h"
#include "forward.h"
#include "single.h"

namespace gatewise::GATEWISE_ISA {

#if defined(GATEWISE_PAIRS)
inline constexpr bool PAIRS = true;
#else
inline constexpr bool PAIRS = false;
#endif

template <class T>
inline constexpr bool MAY_ROUND = PAIRS && sizeof(T) == 4;

template <class T, class E = T>
i64 bytes_of_forward(const ForwardCall<T>& call, int threads) {
  if (!is_single(call)) return forward_bytes<T, E>(call, threads);
  Carver carver{nullptr};
  SingleForward<T, E>(call, Team{0, threads, nullptr}, carver);
  return carver.used;
}
template <class T>
i64 forward_bytes_of_any(const ForwardCall<T>& call, int threads) {
  if constexpr (MAY_ROUND<T>)
    if (call.reduced) return bytes_of_forward<T, Pair>(call, threads);
  return bytes_of_forward(call, threads);
}

template <class T, class E = T, class K = Number<E>>
void run_forward(ForwardCall<T>& call, int id, int count) {
  if (!is_single(call)) return forward<T, E, K>(call, id, count);
  Carver carver{call.workspace};
  SingleForward<T, E, K>(call, Team{id, count, call.barrier}, carver).run();
}
template <class T>
void forward_of_any(ForwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.reduced)
      return call.direction[0].rounded_tape ? run_forward<T, Pair, Bf16>(call, id, count)
                                            : run_forward<T, Pair, T>(call, id, count);
  run_forward(call, id, count);
}

template <class T>
i64 backward_bytes_of_any(const BackwardCall<T>& call, int) {
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return backward_bytes<T, Pair>(call);
  return is_few(call) ? few_bytes(call) : backward_bytes<T>(call);
}

template <class T>
void backward_of_any(BackwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return backward<T, Pair>(call, id, count);
  is_few(call) ? few_backward(call, id, count) : backward<T>(call, id, count);
}

}  // namespace gatewise::GATEWISE_ISA
