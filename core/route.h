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

template <class T>
i64 forward_bytes_of_any(const ForwardCall<T>& call, int threads) {
  Carver carver{nullptr};
  if constexpr (MAY_ROUND<T>)
    if (call.reduced) return forward_bytes<T, Pair>(call, threads);
  if (!is_single(call)) return forward_bytes<T>(call, threads);
  SingleForward<T>(call, 0, threads, carver);
  return carver.used;
}

template <class T>
void forward_of_any(ForwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.reduced)
      return call.direction[0].rounded_tape ? forward<T, Pair, Bf16>(call, id, count)
                                            : forward<T, Pair, T>(call, id, count);
  if (!is_single(call)) return forward<T>(call, id, count);
  Carver carver{call.workspace};
  const SingleForward<T> single(call, id, count, carver);
  single.run(share(single.u.J, id, count));
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
