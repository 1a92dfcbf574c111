// Which of the algorithms runs a call: the general one, in numbers or in pairs of bfloat16, or that
// of a small step. The call alone decides, so bits do not depend on the number of workers.
#pragma once
#include "backward.h"
#include "forward.h"
#include "small.h"

namespace gatewise::GATEWISE_ISA {

#if defined(GATEWISE_PAIRS)
inline constexpr bool PAIRS = true;
#else
inline constexpr bool PAIRS = false;
#endif

template <class T>
inline constexpr bool MAY_ROUND = PAIRS && sizeof(T) == 4;

template <class T>
i64 forward_bytes_of_any(const ForwardCall<T>& call, int) {
  Carver carver{nullptr};
  if constexpr (MAY_ROUND<T>)
    if (call.reduced) return forward_bytes<T, Pair>(call);
  if (!is_small(call)) return forward_bytes<T>(call);
  SmallForwardSpace<T>(call, carver);
  return carver.used;
}

template <class T>
void forward_of_any(ForwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.reduced)
      return call.direction[0].rounded_tape ? forward<T, Pair, Bf16>(call, id, count)
                                            : forward<T, Pair, T>(call, id, count);
  if (!is_small(call)) return forward<T>(call, id, count);
  Carver carver{call.workspace};
  if (id == 0) small_forward(call, carver);
}

template <class T>
i64 backward_bytes_of_any(const BackwardCall<T>& call, int) {
  Carver carver{nullptr};
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return backward_bytes<T, Pair>(call);
  if (!is_small(call)) return backward_bytes<T>(call);
  SmallSpace<T>(call, carver);
  return carver.used;
}

template <class T>
void backward_of_any(BackwardCall<T>& call, int id, int count) {
  if constexpr (MAY_ROUND<T>)
    if (call.direction[0].rounded_tape) return backward<T, Pair>(call, id, count);
  if (!is_small(call)) return backward<T>(call, id, count);
  Carver carver{call.workspace};
  if (id == 0) SmallBackward<T>(call, carver).run();
}

}  // namespace gatewise::GATEWISE_ISA
