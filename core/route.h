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

template <class T, class E = T>
i64 bytes_of_backward(const BackwardCall<T>& call) {
  return is_few<T, E>(call) ? few_bytes<T, E>(call) : backward_bytes<T, E>(call);
}
template <class T>
i64 backward_bytes_of_any(const BackwardCall<T>& call, int) {
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return bytes_of_backward<T, Pair>(call);
  return bytes_of_backward(call);
}

template <class T, class E = T>
void run_backward(BackwardCall<T>& call, int id, int count) {
  is_few<T, E>(call) ? few_backward<T, E>(call, id, count) : backward<T, E>(call, id, count);
}
template <class T>
void backward_of_any(BackwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return run_backward<T, Pair>(call, id, count);
  run_backward(call, id, count);
}

template <class T>
i64 sums_bytes_of_any(const SumsCall<T>& call) {
  if constexpr (MAY_ROUND<T>)
    if (call.tokens.rounded_d_z.data) return sums_bytes<T, Pair>(call);
  return sums_bytes(call);
}
template <class T>
void sums_of_any(SumsCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.tokens.rounded_d_z.data) return sums<T, Pair>(call, id, count);
  sums(call, id, count);
}

}  // namespace gatewise::GATEWISE_ISA
